"""The library of the C kernels is compiled once, and loaded only where it was made for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from csm_tts_plugin.engine.native import build

pytestmark = pytest.mark.skipif(not build.compilers(), reason="there is no C compiler here")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "csm_tts_plugin"


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    build._compile(build.compilers(), path)
    return path


def compiled(monkeypatch: pytest.MonkeyPatch, binary: Path) -> list[str]:
    """A compiler that takes no time; names of its results from now on."""
    made: list[str] = []

    def compile_it(programs: list[str], path: Path) -> None:
        made.append(path.name)
        shutil.copy(binary, path)

    monkeypatch.setattr(build, "_compile", compile_it)
    return made


def test_it_is_compiled_once_for_each_processor_and_source(
    cache: Path, binary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = compiled(monkeypatch, binary)
    for _ in range(3):
        assert build.load().most_rows() in {4, 8}
    assert (len(made), len(list(cache.iterdir()))) == (1, 1)
    other = tmp_path / "cpuinfo"
    other.write_text("model name : another\nflags : fpu\n\n")
    monkeypatch.setattr(build, "_PROCESSOR", other)
    build.load()
    monkeypatch.setattr(build, "_FLAGS", [*build._FLAGS, "-DOTHER"])
    build.load()
    assert (len(made), len(list(cache.iterdir()))) == (3, 3)


def test_a_damaged_library_is_compiled_again(
    cache: Path, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compiled(monkeypatch, binary)
    kept = build._kept(build.compilers())
    assert kept is not None
    kept.write_bytes(b"not a library")
    assert build.load().panel() in {16, 32}
    assert (len(made), kept.read_bytes()) == (1, binary.read_bytes())


def test_nothing_is_kept_where_others_could_write_or_the_processor_is_unknown(
    cache: Path, binary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = compiled(monkeypatch, binary)
    cache.mkdir()
    cache.chmod(0o777)
    build.load()
    cache.chmod(0o700)
    monkeypatch.setattr(build, "_PROCESSOR", tmp_path / "missing")
    build.load()
    monkeypatch.setattr(build, "_PROCESSOR", Path(__file__))
    build.load()
    assert (len(made), list(cache.iterdir())) == (3, [])


def test_a_library_that_others_could_have_put_there_is_not_loaded(
    cache: Path, binary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = compiled(monkeypatch, binary)
    kept = build._kept(build.compilers())
    assert kept is not None
    kept.symlink_to(binary)
    build.load()
    assert (len(made), kept.is_symlink()) == (1, False)
    kept.chmod(0o777)
    build.load()
    assert (len(made), kept.stat().st_mode & 0o777) == (2, 0o600)


def test_a_folder_that_cannot_be_written_to_is_no_fault(
    cache: Path, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compiled(monkeypatch, binary)

    def refuse(path: Path, kept: Path) -> Path:
        raise PermissionError

    monkeypatch.setattr(build, "_moved", refuse)
    assert build.load().panel() in {16, 32}
    monkeypatch.setattr(build.tempfile, "TemporaryDirectory", lambda **_: refuse(cache, cache))
    with pytest.raises(build.BuildError, match="cannot be kept or loaded"):
        build.load()
    assert len(made) == 1


def test_only_the_newest_libraries_stay(
    cache: Path, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(monkeypatch, binary)
    for number in range(12):
        monkeypatch.setattr(build, "_FLAGS", [f"-DN={number}"])
        build.load()
    assert len(list(cache.iterdir())) == build._OLD + 1


def test_what_the_compiler_says_is_told_and_another_one_is_tried(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.c"
    wrong.write_text("int main(void) { return nothing; }")
    monkeypatch.setattr(build, "SOURCES", (wrong,))
    with pytest.raises(build.BuildError, match=r"does not compile them \(.*nothing.* undeclared"):
        build.load()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    programs = ["/bin/false", *build.compilers()]
    monkeypatch.setattr(build, "compilers", lambda: programs)
    assert build.load().panel() in {16, 32}
