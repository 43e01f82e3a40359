"""`say` writes complete files in the format of their name, and pipes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from csm_tts_plugin.__main__ import main
from csm_tts_plugin.audio.files import WholeFile
from csm_tts_plugin.audio.reference import decode_reference
from tests.commands.test_commands import LINE, a_clean_place, engine, one_line
from tests.server.conftest import nothing_left, pitch
from tests.server.test_process import ROOT, free_of_settings
from tests.support.stand_in_engine import frames_of, pitch_of

__all__ = ["a_clean_place", "engine", "nothing_left"]

SPEAK = """
import sys
from csm_tts_plugin.commands import say
from tests.support.stand_in_engine import StandInEngine
mode = sys.argv.pop(1)
say.load_engine = lambda config: StandInEngine(mode)
from csm_tts_plugin.__main__ import main
sys.exit(main())
"""
"""The command line as a process, with the stand-in engine in the mode of its first argument."""


def speaking(*arguments, mode="normal", **options):
    env = {**free_of_settings(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SPEAK, mode, "say", *arguments],
        stderr=subprocess.PIPE,
        env=env,
        **options,
    )


@pytest.mark.parametrize("rate", [8000, 24000, 48000])
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.wav", "pcm_s16le"),
        ("a", "pcm_s16le"),
        ("a.mp3", "mp3"),
        ("a.flac", "flac"),
        ("a.ogg", "vorbis"),
        ("a.opus", "opus"),
        ("a.AAC", "aac"),
    ],
)
def test_the_name_says_the_format(engine, name, codec, rate):
    assert main(["say", LINE, "-o", name, "--rate", str(rate)]) == 0
    with av.open(name) as file:
        assert file.streams.audio[0].codec_context.name.startswith(codec)
    with open(name, "rb") as file:
        samples = decode_reference(file.read())
    assert abs(pitch(samples) - pitch_of(LINE)) < 20.0
    assert abs(len(samples) / 24_000 - frames_of(LINE) * 0.08) < 0.3


@pytest.mark.parametrize("name", ["a.flac", "a.ogg"])
def test_a_flac_and_an_ogg_know_their_length(engine, name):
    assert main(["say", LINE, "-o", name]) == 0
    assert soundfile.info(name).frames == frames_of(LINE) * 1920


@pytest.mark.parametrize("name", ["a.m4a", "a.wma", "a.txt", "a.wav.gz"])
def test_an_ending_that_is_no_format_is_refused_before_anything_loads(engine, capsys, name):
    assert main(["say", LINE, "-o", name]) == 2
    assert ".mp3" in one_line(capsys)
    assert not os.listdir()
    assert engine.said == []


@pytest.mark.parametrize("mode", ["failing", "busy"])
@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac"])
def test_what_was_there_before_stays_whatever_fails(engine, capsys, mode, name):
    Path(name).write_text("a recording of years ago")
    engine.mode = mode
    assert main(["say", LINE, "-o", name]) == 2
    one_line(capsys)
    assert Path(name).read_text() == "a recording of years ago"
    assert os.listdir() == [name]


def test_what_cannot_be_put_in_place_is_one_line(engine, capsys, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WholeFile, "commit", full)
    assert main(["say", LINE, "-o", "a.wav"]) == 2
    assert "No space left" in one_line(capsys)
    assert os.listdir() == []


def test_a_dash_is_stdout_with_a_header_that_streams_and_nothing_else(tmp_path):
    child = speaking(LINE, "-o", "-", "--rate", "8000", stdout=subprocess.PIPE, cwd=tmp_path)
    sound, words = child.communicate(timeout=120)
    assert child.returncode == 0, words
    assert sound[:4] == b"RIFF"
    assert sound[40:44] == b"\xff\xff\xff\xff", "a length that nobody knows yet"
    assert len(sound) == 44 + 2 * 8000 * frames_of(LINE) * 80 // 1000
    assert abs(pitch(decode_reference(sound)) - pitch_of(LINE)) < 20.0
    assert b"first audio" in words
    assert os.listdir(tmp_path) == []


def test_the_sound_comes_while_it_is_made():
    child = speaking(LINE * 3, "-o", "-", mode="slow", stdout=subprocess.PIPE)
    assert len(child.stdout.read(44 + 2 * 1920)) == 44 + 2 * 1920
    assert child.poll() is None, "it is still speaking"
    child.communicate(timeout=120)
    assert child.returncode == 0


@pytest.mark.parametrize("target", ["-", "pipe"])
def test_a_reader_that_leaves_is_no_traceback(tmp_path, target):
    if target == "pipe":
        os.mkfifo(tmp_path / "pipe")
        name = str(tmp_path / "pipe")
        reader = {}
        thread = threading.Thread(target=lambda: reader.update(fd=os.open(name, os.O_RDONLY)))
        thread.start()
        child = speaking(LINE * 4, "-o", name, mode="slow", stdout=subprocess.DEVNULL)
        thread.join(100)
        os.read(reader["fd"], 100)
        os.close(reader["fd"])
    else:
        child = speaking(LINE * 4, "-o", "-", mode="slow", stdout=subprocess.PIPE)
        child.stdout.read(100)
        child.stdout.close()
    words = child.stderr.read().decode()
    assert child.wait(120) == 141, words
    assert "Traceback" not in words
    assert "Exception" not in words


@pytest.mark.parametrize("command", [["--help"], ["doctor"], ["say", LINE, "-o", "a.wav"]])
def test_lines_that_nobody_reads_are_no_traceback(tmp_path, command):
    reader, writer = os.pipe()
    os.close(reader)
    env = {**free_of_settings(), "PYTHONPATH": str(ROOT), "CSM_MODEL": "tiny"}
    ran = subprocess.run(
        [sys.executable, "-c", SPEAK, "normal", *command],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=env,
        cwd=tmp_path,
        timeout=150,
    )
    os.close(writer)
    assert b"Traceback" not in ran.stderr
    assert b"Exception ignored" not in ran.stderr
    assert ran.returncode in (0, 120, 141) if command == ["--help"] else ran.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
@pytest.mark.parametrize("target", ["-", "/dev/full"])
def test_a_full_device_is_one_line(target):
    with open("/dev/full", "wb") as full:
        child = speaking(LINE, "-o", target, stdout=full)
        words = child.communicate(timeout=120)[1].decode()
    assert child.returncode == 2
    assert "No space left" in words
    assert "Traceback" not in words


def test_to_a_terminal_no_sound_is_written(engine, capsys, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["say", LINE, "-o", "-"]) == 2
    assert engine.said == []


def test_loud_sound_clips_and_does_not_wrap(engine):
    assert main(["say", LINE, "-o", "a.mp3"]) == 0
    with open("a.mp3", "rb") as file:
        assert np.max(np.abs(decode_reference(file.read()))) < 0.7
