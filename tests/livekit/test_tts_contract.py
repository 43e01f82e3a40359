"""The assertions of LiveKit's own TTS test suite, applied to this plugin."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import replace

import numpy as np
import pytest
from livekit.agents import (
    APIConnectionError,
    APIConnectOptions,
    APIError,
    APIStatusError,
    APITimeoutError,
)

from csm_tts_plugin.errors import BusyError, EngineError
from csm_tts_plugin.tts import TTS
from tests.livekit.speech import PATIENT, Events, drain, speak
from tests.server.conftest import serving
from tests.support import stand_in_engine
from tests.support.stand_in_engine import frames_of
from tests.support.waiting import until

WAYS = ["stream", "synthesize"]
TEXT = "This is a first sentence. And this is quite another one, which goes on."
FIRST, SECOND = "This is a first sentence.", "And this is quite another one, which goes on."
FRAMES = frames_of(FIRST) + frames_of(SECOND)
HASTY = APIConnectOptions(max_retry=3, retry_interval=0.01, timeout=120.0)
"""Retries at once; the long timeout avoids unrelated timeouts."""


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
async def test_a_reply_keeps_the_contract(server, how, rate):
    async with TTS(engine_url=server.url, sample_rate=rate) as speaker:
        events = Events().watch(speaker)
        speech = await speak(speaker, TEXT, how=how)
    frames = [event.frame for event in speech.events]
    assert len({event.request_id for event in speech.events}) == 1
    assert speech.events[0].request_id
    assert len({event.segment_id for event in speech.events}) == 1
    assert all(frame.sample_rate == rate and frame.num_channels == 1 for frame in frames)
    assert all(0 < frame.duration < 0.25 for frame in frames)
    assert [event.is_final for event in speech.events] == [False] * (len(frames) - 1) + [True]
    assert len(speech.samples) == FRAMES * 1_920 * rate // 24_000
    assert len(events.metrics) == 1
    assert events.errors == []
    metric = events.metrics[0]
    assert metric.audio_duration == pytest.approx(FRAMES * 0.08, abs=0.001)
    assert metric.characters_count == len(TEXT)
    assert metric.ttfb > 0
    assert not metric.cancelled
    assert metric.request_id == speech.events[0].request_id
    assert metric.streamed == (how == "stream")


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("rate", [8_000, 48_000])
async def test_sentences_are_heard_in_order_and_joined_without_a_gap(server, how, rate):
    async with TTS(engine_url=server.url, sample_rate=rate) as speaker:
        speech = await speak(speaker, TEXT, how=how)
    border = frames_of(FIRST) / FRAMES
    assert speech.sounds_like(FIRST, 0.0, border - 0.05)
    assert speech.sounds_like(SECOND, border + 0.05, 1.0)
    loud = np.abs(speech.samples).reshape(-1, rate // 100).max(axis=1)
    assert loud.min() > 0.2  # in every 10 ms


async def test_an_empty_stream_ends_quietly(speaker, events):
    for pieces in ([], [""], ["", " \n"]):
        async with speaker.stream(conn_options=PATIENT) as stream:
            for piece in pieces:
                stream.push_text(piece)
            stream.end_input()
            assert (await drain(stream)).events == []
    async with speaker.synthesize("  ", conn_options=PATIENT) as stream:
        assert (await drain(stream)).events == []
    assert events.errors == []


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("text", ["...", "👍", "?!", "**", "—", "```"])
async def test_text_with_nothing_to_speak_is_no_error(server, speaker, events, how, text):
    speech = await speak(speaker, text, how=how)
    assert speech.events[-1].is_final
    assert len(speech.samples) <= 24_000 // 10
    assert not speech.samples.any()
    assert events.errors == []
    assert server.engine.said == []


async def test_a_picture_in_a_reply_costs_neither_the_reply_nor_its_transcript(server, speaker):
    speech = await speak(speaker, "Well done. 👍 ", "Go on. ...")
    assert [text for _, text in server.engine.said] == ["Well done.", "Go on."]
    assert "".join(speech.transcripts) == "Well done. 👍 Go on. ..."


@pytest.mark.parametrize("how", WAYS)
async def test_a_stalled_engine_is_a_timeout(server, speaker, events, how):
    server.engine.mode = "stalled"
    with pytest.raises(APITimeoutError):
        await speak(speaker, TEXT, how=how, options=APIConnectOptions(max_retry=0, timeout=0.5))
    assert [event.recoverable for event in events.errors] == [False]
    await until(lambda: server.engine.utterances == 0)


@pytest.mark.parametrize("how", WAYS)
async def test_a_stalled_engine_is_tried_again_and_each_try_is_told(server, speaker, events, how):
    server.engine.mode = "stalled"
    options = replace(HASTY, timeout=0.3)
    with pytest.raises(APITimeoutError):
        await speak(speaker, TEXT, how=how, options=options)
    assert [event.recoverable for event in events.errors] == [True, True, True, False]
    assert events.metrics == []


async def test_a_server_that_accepts_and_never_answers_is_a_timeout():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        async with TTS(engine_url=url) as speaker:
            with pytest.raises(APITimeoutError):
                await speak(speaker, TEXT, options=APIConnectOptions(max_retry=0, timeout=1.0))


@pytest.mark.parametrize("how", WAYS)
async def test_a_failing_engine_is_tried_again_until_it_speaks(server, speaker, events, how):
    server.engine.mode, server.engine.fail_after = "failing", 0
    with pytest.raises(APIStatusError) as caught:
        await speak(speaker, TEXT, how=how, options=HASTY)
    assert caught.value.status_code == 500
    assert [event.recoverable for event in events.errors] == [True, True, True, False]
    speaker.once("error", lambda _: setattr(server.engine, "mode", "normal"))
    speech = await speak(speaker, TEXT, how=how, options=HASTY)
    assert len(speech.samples) == FRAMES * 1_920
    assert len(events.metrics) == 1


async def test_a_failure_behind_the_first_sound_is_told_once(server, speaker, events):
    server.engine.mode, server.engine.fail_after = "failing", 3
    with pytest.raises(APIStatusError):
        await speak(speaker, TEXT, options=HASTY)
    assert [event.recoverable for event in events.errors] == [False]
    server.engine.mode = "normal"
    assert (await speak(speaker, FIRST)).sounds_like(FIRST)


async def test_a_failure_that_a_retry_cannot_help_is_not_retried(server, speaker, events):
    server.engine.mode, server.engine.fail_after = "failing", 0
    server.engine.error = type("Final", (EngineError,), {"retryable": False, "code": "numeric"})(
        "NaN in the logits."
    )
    with pytest.raises(APIError):
        await speak(speaker, TEXT, options=HASTY)
    assert len(events.errors) == 1


async def test_a_busy_engine_is_429_and_tried_again(server, speaker, events):
    server.engine.mode = "busy"
    speaker.once("error", lambda _: setattr(server.engine, "mode", "normal"))
    speech = await speak(speaker, FIRST, options=HASTY)
    assert speech.sounds_like(FIRST)
    assert [event.error.status_code for event in events.errors] == [429]
    assert BusyError.retryable


async def test_an_engine_that_is_not_there_is_a_connection_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with TTS(engine_url=f"http://127.0.0.1:{taken.getsockname()[1]}") as speaker:
            events = Events().watch(speaker)
            with pytest.raises(APIConnectionError, match="No engine at"):
                await speak(speaker, TEXT, options=HASTY)
            assert len(events.errors) == 4


async def test_a_wrong_key_is_refused_once_and_no_key_or_text_is_told(caplog):
    caplog.set_level(logging.DEBUG)
    async with serving(key="right-key-canary") as server:
        async with TTS(engine_url=server.url, api_key="wrong-key-canary") as speaker:
            events = Events().watch(speaker)
            with pytest.raises(APIStatusError) as caught:
                await speak(speaker, "text canary", options=HASTY)
            assert caught.value.status_code == 401
            assert len(events.errors) == 1
            told = caplog.text + repr(speaker) + repr(caught.value) + str(caught.value)
            told += repr(speaker._engine) + repr(speaker._call) + repr(speaker._call.manner)
            assert "canary" not in told
        async with TTS(engine_url=server.url, api_key="right-key-canary") as speaker:
            assert (await speak(speaker, FIRST)).sounds_like(FIRST)
        await server.settle()


async def test_a_reply_without_sound_is_an_error_that_hides_its_text(server, speaker, caplog):
    caplog.set_level(logging.DEBUG)
    server.engine._step = lambda conversation: (
        (one := conversation.waiting.popleft()).sink,
        one.end(stand_in_engine.Reason.SILENCE),
    )
    with pytest.raises(APIError, match="without a sound") as caught:
        await speak(speaker, "canary words")
    assert "canary" not in caplog.text + str(caught.value)


async def test_a_cancelled_reply_reaches_the_engine(server, speaker):
    server.engine.mode = "slow"
    stream = speaker.stream(conn_options=PATIENT)
    stream.push_text(TEXT)
    stream.end_input()
    await anext(stream)
    await stream.aclose()
    await until(lambda: server.engine.utterances == 0)
    assert FIRST in server.engine.cancelled


async def test_loud_sound_clips_and_never_wraps(server, monkeypatch):
    monkeypatch.setattr(stand_in_engine, "AMPLITUDE", 2.0)
    for rate in (8_000, 24_000, 48_000):
        async with TTS(engine_url=server.url, sample_rate=rate) as speaker:
            samples = (await speak(speaker, FIRST)).samples
        assert samples.max() > 0.98
        assert samples.min() < -0.98
        # A wrap would be a step from one end of the scale to the other.
        steepest = 2.0 * 2 * np.pi * stand_in_engine.pitch_of(FIRST) / rate
        assert np.abs(np.diff(samples)).max() < max(1.2 * steepest, 0.5)


async def test_nothing_runs_on_after_a_reply(server, speaker):
    await speak(speaker, TEXT)
    open = {task.get_name() for task in asyncio.all_tasks()}
    assert {name for name in open if "TTS" in name or "csm-reply" in name} == set()


async def test_the_engine_knows_that_a_reply_goes_on(server, speaker):
    await speak(speaker, TEXT)
    assert [(one.text, one.more) for one in server.engine.heard] == [(FIRST, True), (SECOND, False)]
