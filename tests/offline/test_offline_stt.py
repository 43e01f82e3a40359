"""Speech-to-text that works while the caller speaks: LiveKit's voice activity detection on recorded
human speech, and a transcriber whose answers the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest
import soundfile
from aiohttp import web
from livekit.agents import APIConnectOptions, inference, stt

from csm_tts_plugin.offline.stt import SAMPLE_RATE, OfflineSTT
from livekit import rtc
from scripts import pins
from scripts.setup_tools import TOOLS
from tests.support.waiting import LIMIT_S

RATE = 24_000
SPEECH = TOOLS / pins.SPEECH_FOLDER
pytestmark = pytest.mark.skipif(not SPEECH.is_dir(), reason="recorded speech: run `make setup`")

Answer = Callable[[int, float], Awaitable[str]]
Kind = stt.SpeechEventType


class Transcriber:
    """Answers by a function of the request's number (from 1) and its seconds of audio."""

    def __init__(self, answer: Answer) -> None:
        self.seconds: list[float] = []
        self._text = answer

    async def answer(self, request: web.Request) -> web.Response:
        self.seconds.append(len(await request.read()) / 2 / SAMPLE_RATE)
        text = await self._text(len(self.seconds), self.seconds[-1])
        return web.json_response({"text": text})


async def counted(number: int, _: float) -> str:
    return f"transcript {number}"


@pytest.fixture
async def listening() -> AsyncIterator[Callable[..., Awaitable[tuple[OfflineSTT, Transcriber]]]]:
    runners: list[web.AppRunner] = []
    clients: list[OfflineSTT] = []

    async def start(answer: Answer = counted) -> tuple[OfflineSTT, Transcriber]:
        transcriber = Transcriber(answer)
        app = web.Application(client_max_size=2**22)
        app.add_routes([web.post("/transcribe", transcriber.answer)])
        runners.append(runner := web.AppRunner(app))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        clients.append(OfflineSTT(url, vad=inference.VAD(model="silero")))
        return clients[-1], transcriber

    yield start
    for client in clients:
        await client.aclose()
    for runner in runners:
        await runner.cleanup()


def recording(index: int) -> np.ndarray:
    samples, rate = soundfile.read(SPEECH / f"{pins.SPEECH[index].name}.wav", dtype="int16")
    resampler = rtc.AudioResampler(rate, RATE)
    frames = resampler.push(rtc.AudioFrame(samples.tobytes(), rate, 1, len(samples)))
    frames += resampler.flush()
    return np.concatenate([np.frombuffer(frame.data, np.int16) for frame in frames])


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.int16)


async def hear(speech: OfflineSTT, *parts: np.ndarray) -> list[stt.SpeechEvent]:
    """All events of the stream for this audio, pushed in frames of 20 ms."""
    options = APIConnectOptions(max_retry=1, retry_interval=0.01, timeout=60)
    async with speech.stream(conn_options=options) as stream:

        async def feed() -> None:
            sound, step = np.concatenate(parts), RATE // 50
            for at in range(0, len(sound) - step + 1, step):
                stream.push_frame(rtc.AudioFrame(sound[at : at + step].tobytes(), RATE, 1, step))
                await asyncio.sleep(0)
            stream.end_input()

        feeding = asyncio.create_task(feed())
        try:
            async with asyncio.timeout(LIMIT_S):
                return [event async for event in stream]
        finally:
            feeding.cancel()


def texts(events: list[stt.SpeechEvent], kind: Kind) -> list[str]:
    return [event.alternatives[0].text for event in events if event.type == kind]


async def test_a_turn_is_transcribed_once_and_the_transcript_made_in_its_last_pause_is_final(
    listening,
):
    speech, transcriber = await listening()
    sound = recording(4)
    events = await hear(speech, silence(0.5), sound, silence(1.0))
    assert texts(events, Kind.FINAL_TRANSCRIPT) == ["transcript 1"]
    assert texts(events, Kind.PREFLIGHT_TRANSCRIPT) == ["transcript 1"]
    assert len(transcriber.seconds) == 1
    assert transcriber.seconds[0] == pytest.approx(len(sound) / RATE, abs=0.7)
    kinds = [event.type for event in events]
    assert kinds[0] == Kind.START_OF_SPEECH
    assert kinds.index(Kind.END_OF_SPEECH) < kinds.index(Kind.FINAL_TRANSCRIPT)


async def test_speech_after_a_pause_makes_a_new_transcript_of_the_whole_turn(listening):
    speech, transcriber = await listening()
    first, then = recording(4), recording(3)
    events = await hear(speech, silence(0.5), first, then[RATE * 4 // 10 :], silence(1.0))
    final = texts(events, Kind.FINAL_TRANSCRIPT)
    assert [event.type for event in events].count(Kind.END_OF_SPEECH) == 1
    assert len(transcriber.seconds) >= 2, "there was no pause"
    assert final == [f"transcript {len(transcriber.seconds)}"]
    whole = (len(first) + len(then)) / RATE - 0.5
    assert transcriber.seconds[-1] == pytest.approx(whole, abs=0.8)
    assert transcriber.seconds[-1] > transcriber.seconds[0] + 3


async def test_the_next_turn_starts_anew(listening):
    speech, transcriber = await listening()
    turns = (recording(4), recording(1))
    events = await hear(speech, silence(0.5), turns[0], silence(1.0), turns[1], silence(1.0))
    assert texts(events, Kind.FINAL_TRANSCRIPT)[-1] == f"transcript {len(transcriber.seconds)}"
    assert len(texts(events, Kind.FINAL_TRANSCRIPT)) == 2
    assert transcriber.seconds[-1] == pytest.approx(len(turns[1]) / RATE, abs=0.7)


async def test_a_transcript_that_failed_in_the_pause_is_made_again_and_nobody_is_told(listening):
    async def fails_first(number: int, _: float) -> str:
        if number == 1:
            raise web.HTTPInternalServerError
        return "at last"

    speech, _ = await listening(fails_first)
    errors: list[object] = []
    speech.on("error", errors.append)
    events = await hear(speech, silence(0.5), recording(4), silence(1.0))
    assert texts(events, Kind.FINAL_TRANSCRIPT) == ["at last"]
    assert errors == []


async def test_a_turn_that_cannot_be_transcribed_is_told_once_and_the_next_one_is_heard(listening):
    async def fails_first(number: int, _: float) -> str:
        if number <= 3:  # once in advance, and twice as LiveKit requests it
            raise web.HTTPInternalServerError
        return "the next turn"

    speech, _ = await listening(fails_first)
    errors = []
    speech.on("error", errors.append)
    turns = (recording(4), recording(1))
    events = await hear(speech, silence(0.5), turns[0], silence(1.0), turns[1], silence(1.0))
    assert [error.recoverable for error in errors] == [True, False]
    assert texts(events, Kind.FINAL_TRANSCRIPT) == ["the next turn"]
    assert [event.type for event in events].count(Kind.END_OF_SPEECH) == 2


async def test_a_pause_without_words_gives_no_transcript(listening):
    async def nothing(_: int, __: float) -> str:
        return ""

    speech, _ = await listening(nothing)
    events = await hear(speech, silence(0.5), recording(4), silence(1.0))
    assert {event.type for event in events} == {Kind.START_OF_SPEECH, Kind.END_OF_SPEECH}


async def test_without_a_voice_detector_there_is_no_stream_to_be_had():
    speech = OfflineSTT("http://127.0.0.1:9")
    assert not speech.capabilities.streaming
    with pytest.raises(ValueError, match="vad"):
        speech.stream()
