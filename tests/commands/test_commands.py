"""The command line: its output, and one-line messages for user errors."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from csm_tts_plugin.__main__ import main
from csm_tts_plugin.audio.reference import encode_wav
from csm_tts_plugin.commands import say
from tests.server.conftest import nothing_left, pitch, serving
from tests.support.stand_in_engine import StandInEngine, frames_of, pitch_of

__all__ = ["nothing_left"]

ROOT = Path(__file__).resolve().parents[2]
LINE = "It is a fine day to be heard from start to end."


@pytest.fixture(autouse=True)
def a_clean_place(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("CSM_", "LIVEKIT_", "HF_ENDPOINT")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def engine(monkeypatch):
    stand_in = StandInEngine()
    monkeypatch.setattr(say, "load_engine", lambda config: stand_in)
    return stand_in


def one_line(capsys):
    errors = capsys.readouterr().err
    assert errors.startswith("csm_tts_plugin: ")
    assert errors.count("\n") == 1
    return errors


@pytest.mark.parametrize("rate", [8000, 24000, 48000])
def test_say_writes_what_was_spoken(engine, capsys, rate):
    assert main(["say", LINE, "-o", "hello.wav", "--rate", str(rate), "--seed", "3"]) == 0
    with wave.open("hello.wav") as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (rate, 1, 2)
        samples = np.frombuffer(file.readframes(10**9), "<i2") / 32767.0
    assert len(samples) == frames_of(LINE) * rate * 80 // 1000
    assert abs(pitch(samples, rate) - pitch_of(LINE)) < 20.0
    printed = capsys.readouterr().out
    for words in ("ready: stand-in", "first audio after", "real-time factor", "wrote hello.wav"):
        assert words in printed


def test_say_speaks_sentence_by_sentence(engine):
    assert main(["say", "This is the first. And this is the second. That is all."]) == 0
    assert [text for _, text in engine.said] == [
        "This is the first.",
        "And this is the second.",
        "That is all.",
    ]


def test_say_takes_a_recording_for_a_voice(engine, capsys):
    rng = np.random.default_rng(1)
    Path("ref.wav").write_bytes(encode_wav(rng.uniform(-0.3, 0.3, 24_000).astype("float32")))
    opened = []
    engine_open = engine.open
    engine.open = lambda voice, sampling: opened.append(voice) or engine_open(voice, sampling)
    assert main(["say", LINE, "--voice", "ref.wav", "--transcript", "What I said."]) == 0
    assert opened[0].turns[0].text == "What I said."
    printed = capsys.readouterr().out
    assert "consent" in printed
    assert "this model" not in printed


FOLLOWER = {"model": "tiny", "reference_seconds": 10.0, "follows": "pitch and size"}
FOLLOWS = "  this model follows the pitch and size of the voice and does not clone it\n"
TOO_LONG = "  this model uses at most 10 s of reference audio, and this is longer:"
NO_VOICE = "  this model cannot use another voice: the stock voice speaks\n"


def reference(seconds: float) -> list[str]:
    rng = np.random.default_rng(1)
    samples = rng.uniform(-0.3, 0.3, int(seconds * 24_000)).astype("float32")
    Path("ref.wav").write_bytes(encode_wav(samples))
    return ["--voice", "ref.wav", "--transcript", "What I said."]


@pytest.mark.parametrize(
    ("told", "seconds", "line"),
    [
        (FOLLOWER, 1.0, FOLLOWS),
        (FOLLOWER, 11.0, TOO_LONG),
        ({"model": "tiny", "reference_seconds": 0.0}, 1.0, NO_VOICE),
    ],
)
def test_say_tells_once_what_the_model_makes_of_a_voice(engine, capsys, told, seconds, line):
    engine.told = told
    assert main(["say", LINE, *reference(seconds)]) == 0
    printed = capsys.readouterr().out
    assert line in printed
    assert printed.count("this model") == 1


def test_say_tells_nothing_of_a_voice_where_none_was_given(engine, capsys):
    engine.told = FOLLOWER
    assert main(["say", LINE]) == 0
    assert "this model" not in capsys.readouterr().out


async def test_say_tells_it_of_a_remote_engine_too(capsys):
    async with serving(StandInEngine()) as server:
        server.engine.told = FOLLOWER
        given = ["say", LINE, "--engine-url", server.url]
        assert await asyncio.to_thread(main, [*given, *reference(1.0)]) == 0
        assert capsys.readouterr().out.count(FOLLOWS) == 1
        assert await asyncio.to_thread(main, given) == 0
        assert "this model" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["..."], "nothing to say"),
        ([LINE, "--voice", "missing.wav", "--transcript", "a"], "missing.wav"),
        ([LINE, "--voice", "ref.wav"], "transcript"),
        ([LINE, "--transcript", "a"], "--voice"),
        ([LINE, "--voice", "nobody"], "CSM_VOICES_DIR"),
        ([LINE, "--temperature", "9"], "--temperature"),
        ([LINE, "-o", "no/such/folder/a.wav"], "-o"),
        ([LINE, "--engine-url", "http://127.0.0.1:9"], "csm_tts_plugin serve"),
        ([LINE, "--engine-url", "ftp://a"], "engine URL"),
    ],
)
def test_what_say_cannot_do_is_one_line_and_leaves_no_file(engine, capsys, arguments, words):
    Path("ref.wav").write_bytes(b"")
    assert main(["say", *arguments]) == 2
    assert words in one_line(capsys)
    assert not Path("out.wav").exists()


def test_say_stops_the_engine_that_failed(engine, capsys):
    engine.mode = "failing"
    assert main(["say", LINE]) == 2
    assert "stand-in failed" in one_line(capsys)
    assert not engine._thread.is_alive()


def test_doctor_passes_with_tiny_and_fails_with_what_is_out_of_reach(monkeypatch, capsys):
    monkeypatch.setenv("CSM_MODEL", "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert main(["doctor", "--port", str(port)]) == 0
    assert f"port {port} is free" in capsys.readouterr().out
    monkeypatch.setenv("LIVEKIT_URL", f"ws://127.0.0.1:{port}")
    monkeypatch.setenv("LIVEKIT_API_KEY", "k3y")
    assert main(["doctor", "--port", str(port)]) == 1
    printed = capsys.readouterr().out
    assert "BAD  no LiveKit" in printed
    assert "BAD  LIVEKIT_API_SECRET is not set" in printed
    assert "k3y" not in printed


def test_doctor_finds_a_damaged_voice(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CSM_MODEL", "tiny")
    monkeypatch.setenv("CSM_VOICES_DIR", str(tmp_path))
    (tmp_path / "ann.wav").write_bytes(b"RIFF")
    assert main(["doctor"]) == 1
    assert "BAD  voice ann" in capsys.readouterr().out


def test_settings_come_from_a_dotenv_file():
    Path(".env").write_text("CSM_SLOTS=many\n")
    command = [sys.executable, "-m", "csm_tts_plugin", "serve", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "csm_tts_plugin: CSM_SLOTS must be a whole number, got 'many'.\n"


def test_a_command_imports_neither_torch_nor_livekit_to_explain_itself():
    code = (
        "import sys; from csm_tts_plugin.__main__ import main\n"
        "try: main([{name!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({{'torch', 'livekit', 'transformers'}} & set(sys.modules)))"
    )
    for name in ("say", "serve", "doctor"):
        script = code.format(name=name)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, env=environment, timeout=60
        )
        assert done.returncode == 0, done.stderr
