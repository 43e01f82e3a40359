"""A file is replaced completely or stays unchanged."""

from __future__ import annotations

import os
import stat

import pytest

from csm_tts_plugin.audio.files import WholeFile, is_special, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def broken_off(path, data=b"half"):
    def fails():
        with WholeFile(path) as whole:
            whole.file.write(data)
            whole.file.flush()
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()


def test_what_breaks_off_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.wav"
    broken_off(path)
    assert names(tmp_path) == []
    path.write_bytes(b"before")
    broken_off(path)
    assert (path.read_bytes(), names(tmp_path)) == (b"before", ["a.wav"])


def test_nobody_sees_half_a_file(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"before")
    with WholeFile(path) as whole:
        whole.file.write(b"after")
        whole.file.flush()
        assert path.read_bytes() == b"before"
    assert (path.read_bytes(), names(tmp_path)) == (b"after", ["a.wav"])


def test_modes_and_links_stay(tmp_path):
    path, link = tmp_path / "a.txt", tmp_path / "link"
    path.write_text("before")
    path.chmod(0o640)
    link.symlink_to(path)
    write_whole(link, "after")
    assert link.is_symlink()
    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_of_any_other_and_a_private_one_its_own(tmp_path):
    (tmp_path / "other").write_text("")
    write_whole(tmp_path / "a", "x")
    write_whole(tmp_path / "b", "x", private=True)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
    assert modes["a"] == modes["other"]
    assert modes["b"] == 0o600


def test_what_cannot_be_written_is_told_before_anything_is_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        WholeFile(tmp_path / "no" / "a.wav")
    with pytest.raises(IsADirectoryError):
        WholeFile(tmp_path)
    with pytest.raises(OSError, match="too long"):
        WholeFile(tmp_path / ("a" * 300))
    assert names(tmp_path) == []


def test_a_file_that_is_a_mount_of_its_own_is_written_into(tmp_path, monkeypatch):
    """As when a container mounts a single file: renaming over it is refused."""
    path = tmp_path / "a.txt"
    path.write_text("before, and longer")

    def busy(self, target):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("pathlib.Path.replace", busy)
    write_whole(path, "after")
    assert (path.read_text(), names(tmp_path)) == ("after", ["a.txt"])


def test_a_file_in_a_folder_that_takes_no_new_ones_is_written_into(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("before")
    real = os.open

    def refused(name, flags, *rest, **more):
        if str(name).endswith(".part"):
            raise PermissionError(13, "Permission denied")
        return real(name, flags, *rest, **more)

    monkeypatch.setattr("csm_tts_plugin.audio.files.os.open", refused)
    broken_off(path)
    assert path.read_text() == "before"
    write_whole(path, "after")
    assert path.read_text() == "after"


def test_pipes_and_devices_are_told_from_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    found = {name: is_special(tmp_path / name) for name in ("pipe", "file", "nothing", ".")}
    assert found == {"pipe": True, "file": False, "nothing": False, ".": False}
    assert is_special(os.devnull)
