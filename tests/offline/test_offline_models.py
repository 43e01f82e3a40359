"""The real offline models of `make setup`, in their process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import soundfile

from csm_tts_plugin.offline import models
from csm_tts_plugin.offline.process import OfflineProcess
from csm_tts_plugin.offline.stt import to_pcm
from csm_tts_plugin.offline.whisper import SAMPLE_RATE, Transcriber
from livekit import rtc
from scripts import pins
from scripts.setup_tools import ROOT, TOOLS
from tests.support.processes import wait_until

FOLDER = TOOLS / pins.SPEECH_FOLDER


@pytest.fixture(scope="module")
def offline():
    process = OfflineProcess(stt=True, llm=True)
    process.start()
    yield process
    process.stop()


def hear(url: str, pcm: bytes) -> str:
    with urllib.request.urlopen(f"{url}/transcribe", data=pcm, timeout=60) as answer:
        return json.load(answer)["text"]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower().replace("mr.", "mister"))


@pytest.mark.parametrize("recording", pins.SPEECH, ids=lambda r: r.name[-4:])
def test_human_speech_is_understood(offline, recording):
    sound, rate = soundfile.read(FOLDER / f"{recording.name}.wav", dtype="int16")
    heard = words(hear(offline.stt_url, sound.tobytes()))
    said = words(recording.words)
    assert rate == SAMPLE_RATE
    assert len(set(said) - set(heard)) <= 0.15 * len(said)
    assert abs(len(heard) - len(said)) <= 3


def test_what_livekit_hears_at_24_khz_is_understood(offline):
    sound, rate = soundfile.read(FOLDER / f"{pins.SPEECH[4].name}.wav", dtype="int16")
    resampler = rtc.AudioResampler(rate, 24_000)
    frames = resampler.push(rtc.AudioFrame(sound.tobytes(), rate, 1, len(sound)))
    text = hear(offline.stt_url, to_pcm([*frames, *resampler.flush()]))
    assert "amiable" in text


def test_silence_is_not_talked_into_a_novel(offline):
    silence = np.zeros(2 * SAMPLE_RATE, np.int16).tobytes()
    assert len(words(hear(offline.stt_url, silence))) <= 3


def test_half_a_sample_is_refused(offline):
    with pytest.raises(urllib.error.HTTPError) as caught:
        hear(offline.stt_url, b"\0\0\0")
    assert caught.value.code == 400


def test_the_llm_answers_in_openais_protocol(offline):
    question = {
        "model": "smollm2",
        "max_tokens": 16,
        "messages": [{"role": "user", "content": "Hi!"}],
    }
    request = urllib.request.Request(
        f"{offline.llm_url}/chat/completions",
        data=json.dumps(question).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["choices"][0]["message"]["content"].strip()


def test_a_killed_child_comes_back_at_the_same_addresses(offline):
    before = offline.addresses("stt", "llm")
    dead = offline.pid
    os.kill(dead, signal.SIGKILL)
    assert wait_until(lambda: offline.pid != dead and answers(f"{before['stt']}/health"))
    assert hear(before["stt"], np.zeros(SAMPLE_RATE, np.int16).tobytes()) is not None
    assert offline.pid != dead
    assert offline.addresses("stt", "llm") == before


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60):
            return True
    except OSError:
        return False


def test_stopping_twice_leaves_no_process():
    process = OfflineProcess(stt=False, llm=True)
    process.start()
    pid = process.pid
    process.stop()
    process.stop()
    assert not is_running(pid)


def test_the_child_dies_with_a_worker_that_is_killed():
    worker = (
        "from csm_tts_plugin.offline.process import OfflineProcess\n"
        "p = OfflineProcess(stt=False, llm=True); p.start(); print(p.pid, flush=True)\n"
        "import time; time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", worker], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        child = int(parent.stdout.readline())
        assert is_running(child)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert wait_until(lambda: not is_running(child))


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_transcript_that_repeats_itself_is_made_again_from_the_whole_window(monkeypatch):
    windows = []

    def attempt(self, samples, language, window_s):
        windows.append(window_s)
        return ("five five five five", False) if window_s < 30 else ("five", True)

    monkeypatch.setattr(Transcriber, "_attempt", attempt)
    transcriber = Transcriber(models.whisper_folder(), threads=1)
    assert transcriber.transcribe(np.zeros(2 * SAMPLE_RATE, np.float32)) == "five"
    assert windows == [10.0, 30.0]
