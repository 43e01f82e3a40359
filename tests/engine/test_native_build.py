"""The library of the C kernels is compiled once, and loaded only where it was made for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from csm_tts_plugin.engine.native import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="there is no C compiler here")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "csm_tts_plugin"


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    build._compile(str(build.compiler()), path)
    return path


def compiled(monkeypatch: pytest.MonkeyPatch, binary: Path) -> list[str]:
    """A compiler that takes no time; names of its results from now on."""
    made: list[str] = []

    def compile_it(program: str, path: Path) -> None:
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
    kept = build._kept(str(build.compiler()))
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
    assert (len(made), list(cache.iterdir())) == (2, [])
