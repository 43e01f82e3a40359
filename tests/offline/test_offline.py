"""Offline speech-to-text and LLM behind LiveKit's interfaces, without their models."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from aiohttp import web
from livekit.agents import APIConnectionError, APIConnectOptions, APIStatusError, APITimeoutError

from csm_tts_plugin.errors import ConfigError
from csm_tts_plugin.offline import models, process
from csm_tts_plugin.offline.process import OfflineProcess
from csm_tts_plugin.offline.stt import SAMPLE_RATE, OfflineSTT, to_pcm
from livekit import rtc

ONCE = APIConnectOptions(max_retry=0, timeout=60.0)


def frame(rate: int, channels: int = 1, seconds: float = 1.0) -> rtc.AudioFrame:
    time = np.arange(int(seconds * rate)) / rate
    wave = (8000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
    return rtc.AudioFrame(np.repeat(wave, channels).tobytes(), rate, channels, len(wave))


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_frame_becomes_16_khz_mono_of_the_same_length_and_pitch(rate, channels):
    halves = [frame(rate, channels, 0.5), frame(rate, channels, 0.5)]
    samples = np.frombuffer(to_pcm(halves), "<i2").astype(np.float64)
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=SAMPLE_RATE * 0.02)
    middle = samples[4000:12000]
    pitch = np.argmax(np.abs(np.fft.rfft(middle))) * SAMPLE_RATE / len(middle)
    assert pitch == pytest.approx(440, abs=5)
    assert np.abs(middle).max() == pytest.approx(8000, rel=0.1)


@pytest.fixture
async def whisper():
    """A stand-in for the transcriber: `answer(handler)` gives an STT that uses it."""
    runners: list[web.AppRunner] = []
    clients: list[OfflineSTT] = []

    async def answer(handler) -> OfflineSTT:
        app = web.Application(client_max_size=2**22)
        app.add_routes([web.post("/transcribe", handler)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        clients.append(OfflineSTT(f"http://127.0.0.1:{runner.addresses[0][1]}"))
        return clients[-1]

    yield answer
    for client in clients:
        await client.aclose()
    for runner in runners:
        await runner.cleanup()


async def test_a_turn_is_sent_as_pcm_and_comes_back_as_text(whisper):
    received = []

    async def transcribe(request):
        received.append((await request.read(), request.query["language"]))
        return web.json_response({"text": "hello"})

    stt = await whisper(transcribe)
    event = await stt.recognize(frame(48_000), conn_options=ONCE)
    assert event.alternatives[0].text == "hello"
    assert received[0][1] == "en"
    assert len(received[0][0]) == pytest.approx(2 * SAMPLE_RATE, rel=0.02)


async def test_a_refusal_is_a_status_error(whisper):
    async def refuse(_):
        raise web.HTTPInternalServerError

    with pytest.raises(APIStatusError) as caught:
        await (await whisper(refuse)).recognize(frame(16_000), conn_options=ONCE)
    assert caught.value.status_code == 500


async def test_an_answer_that_comes_too_late_is_a_timeout(whisper):
    never = asyncio.Event()

    async def silent(_):
        await never.wait()

    options = APIConnectOptions(max_retry=0, timeout=0.3)
    with pytest.raises(APITimeoutError):
        await (await whisper(silent)).recognize(frame(16_000), conn_options=options)
    never.set()  # so that its server can end


async def test_an_answer_that_is_no_transcript_is_a_connection_error(whisper):
    async def babble(_):
        return web.json_response({"words": 3})

    with pytest.raises(APIConnectionError):
        await (await whisper(babble)).recognize(frame(16_000), conn_options=ONCE)


async def test_nobody_listening_is_a_connection_error():
    stt = OfflineSTT("http://127.0.0.1:9")
    with pytest.raises(APIConnectionError):
        await stt.recognize(frame(16_000), conn_options=ONCE)
    await stt.aclose()


@pytest.mark.parametrize("find", [models.whisper_folder, models.smollm2_file])
def test_models_that_are_not_set_up_name_the_cure(find, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "_PLACES", (tmp_path,))
    with pytest.raises(ConfigError, match="make setup"):
        find()


def test_a_child_that_cannot_load_its_models_gives_its_reason(monkeypatch, tmp_path):
    """It looks next to the package and in its working folder: this copy of the package has none."""
    import shutil
    from pathlib import Path

    package = Path(models.__file__).parents[1]
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("assets"))
    monkeypatch.chdir(tmp_path)
    offline = OfflineProcess(stt=False, llm=True)
    with pytest.raises(ConfigError, match="make setup"):
        offline.start()
    offline.stop()


def test_only_what_was_asked_for_has_an_address():
    offline = OfflineProcess(stt=True, llm=False)
    assert list(offline.addresses("STT_URL", "LLM_URL")) == ["STT_URL"]
    assert process.OfflineProcess(stt=False, llm=False).addresses("STT_URL", "LLM_URL") == {}
