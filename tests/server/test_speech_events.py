"""`stream_format=sse`: driven by LiveKit's plugin for OpenAI, and by OpenAI's own client."""

from __future__ import annotations

import base64
import json

import httpx2
import numpy as np
import openai
import pytest
from livekit.agents import APIConnectionError, APIStatusError
from livekit.agents.types import APIConnectOptions

from csm_tts_plugin.config import FRAME_SECONDS
from livekit.plugins import openai as livekit_openai
from tests.server.conftest import pitch, serving
from tests.server.test_openai_speech import LINE, SAMPLES, asked, client_of, decoded
from tests.support.stand_in_engine import StandInEngine, frames_of, pitch_of
from tests.support.waiting import until

ONCE = APIConnectOptions(max_retry=0)


def voice_of(server, **options):
    return livekit_openai.TTS(base_url=f"{server.url}/v1", api_key="none", voice="stock", **options)


async def heard(voice, text=LINE):
    """Samples in [-1, 1], and LiveKit's metrics of the synthesis."""
    metrics = []
    voice.on("metrics_collected", metrics.append)
    async with voice.synthesize(text, conn_options=ONCE) as stream:
        frames = [event.frame async for event in stream]
    samples = np.concatenate([np.frombuffer(frame.data, np.int16) for frame in frames])
    return samples / 32767.0, metrics


async def events_of(answer):
    return [json.loads(line[6:]) async for line in answer.iter_lines() if line.startswith("data: ")]


@pytest.mark.parametrize("model", ["gpt-4o-mini-tts", "eustlb/csm-1b", "tts-1"])
@pytest.mark.parametrize("format", ["mp3", "pcm", "wav", "opus"])
async def test_livekits_plugin_for_openai_speaks_with_any_model_name(server, model, format):
    voice = voice_of(server, model=model, response_format=format)
    samples, metrics = await heard(voice)
    assert abs(pitch(samples) - pitch_of(LINE)) < 20.0
    assert abs(len(samples) / 24_000 - frames_of(LINE) * FRAME_SECONDS) < 0.15
    assert [text for _, text in server.engine.said] == [LINE]
    if model != "tts-1":  # for tts-1 the plugin requests no events
        (metric,) = metrics
        assert (metric.input_tokens, metric.output_tokens) == (len(LINE), frames_of(LINE))
    await voice.aclose()


async def test_the_plugin_is_told_what_is_wrong(server):
    voice = voice_of(server)
    with pytest.raises(APIStatusError) as caught:
        await heard(voice, "...")
    assert caught.value.status_code == 400
    server.engine.mode = "failing"
    with pytest.raises(APIConnectionError):
        await heard(voice)
    await voice.aclose()
    await until(lambda: server.engine.idle)


async def test_the_plugin_with_a_voice_that_is_not_here_gets_the_names_there_are(server):
    voice = livekit_openai.TTS(voice="nobody", base_url=f"{server.url}/v1", api_key="none")
    with pytest.raises(APIStatusError, match="stock"):
        await heard(voice)
    await voice.aclose()


@pytest.mark.parametrize("format", ["mp3", "wav", "flac", "aac", "opus", "pcm"])
async def test_the_deltas_joined_are_the_file(server, format):
    options = asked(response_format=format, stream_format="sse")
    async with client_of(server) as client:
        speech = client.audio.speech.with_streaming_response
        async with speech.create(**options) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            *deltas, done = await events_of(answer)
        plain = await client.audio.speech.create(**asked(response_format=format))
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    data = b"".join(base64.b64decode(event["audio"], validate=True) for event in deltas)
    assert done["type"] == "speech.audio.done"
    frames = frames_of(LINE)
    assert done["usage"] == {
        "input_tokens": len(LINE),
        "output_tokens": frames,
        "total_tokens": len(LINE) + frames,
    }
    if format == "opus":  # its pages carry a random serial number
        assert len(decoded(data)) >= SAMPLES
    else:
        assert data == plain.content


async def test_events_come_while_the_rest_is_made(server):
    server.engine.mode = "slow"
    async with client_of(server) as client:
        speech = client.audio.speech.with_streaming_response
        options = asked(input=LINE * 4, response_format="pcm", stream_format="sse")
        async with speech.create(**options) as answer:
            lines = answer.iter_lines()
            first = json.loads((await anext(lines)).removeprefix("data: "))
            assert first["type"] == "speech.audio.delta"
            assert server.engine.utterances
            server.engine.mode = "normal"
            rest = [line async for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["type"] == "speech.audio.done"


async def test_a_speech_that_breaks_off_says_so_and_has_no_end(server):
    server.engine.mode = "failing"
    async with client_of(server) as client:
        speech = client.audio.speech.with_streaming_response
        seen = []

        async def read():
            async with speech.create(**asked(stream_format="sse", response_format="pcm")) as answer:
                async for line in answer.iter_lines():
                    seen.extend([json.loads(line[6:])] if line else [])

        with pytest.raises(httpx2.RemoteProtocolError):
            await read()
    assert seen[-1]["type"] == "error"
    assert seen[-1]["error"]["code"] == "engine"
    assert "speech.audio.done" not in {event["type"] for event in seen}
    await until(lambda: server.engine.idle)


async def test_what_fails_before_the_first_sound_has_a_status():
    async with serving(StandInEngine("busy")) as server:
        async with client_of(server) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.audio.speech.create(**asked(stream_format="sse"))
            assert caught.value.code == "busy"
        await server.settle()
