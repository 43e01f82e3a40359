"""`POST /v1/audio/speech` with OpenAI's own client."""

from __future__ import annotations

import asyncio
import io
import json
import socket

import aiohttp
import av
import numpy as np
import openai
import pytest

from tests.server.conftest import figure, limits_of, pitch, serving
from tests.support.stand_in_engine import AMPLITUDE, StandInEngine, frames_of, pitch_of
from tests.support.waiting import until

LINE = "It is a fine day to be heard from start to end."
SAMPLES = 1920 * frames_of(LINE)


def client_of(server, key="none", **options):
    options.setdefault("max_retries", 0)
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, **options)


@pytest.fixture
async def openai_client(server):
    async with client_of(server) as client:
        yield client


def asked(**changes):
    return {"model": "tts-1", "voice": "stock", "input": LINE} | changes


def decoded(data):
    """Samples and rate of an encoded file, by libav."""
    with av.open(io.BytesIO(data)) as file:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=24_000)
        frames = [r for f in file.decode(audio=0) for r in resampler.resample(f)]
        frames += resampler.resample(None)
        return np.concatenate([frame.to_ndarray()[0] for frame in frames])


@pytest.mark.parametrize("format", ["wav", "mp3", "opus", "flac", "aac", None])
async def test_every_format_holds_the_whole_speech(openai_client, format):
    options = {} if format is None else {"response_format": format}
    answer = await openai_client.audio.speech.create(**asked(**options))
    samples = decoded(answer.content)
    # The codecs pad the audio to whole blocks.
    assert 0 <= len(samples) - SAMPLES <= (0 if format in ("wav", "flac") else 3 * 1152)
    assert abs(pitch(samples) - pitch_of(LINE)) < 20.0
    assert abs(np.median(np.abs(samples)) - AMPLITUDE / np.sqrt(2)) < 0.05
    kind = {"opus": "ogg", "mp3": "mpeg", None: "mpeg"}.get(format, format)
    assert answer.response.headers["content-type"] == f"audio/{kind}"
    assert answer.response.headers["transfer-encoding"] == "chunked"


async def test_pcm_is_16_bit_at_24_khz(openai_client):
    answer = await openai_client.audio.speech.create(**asked(response_format="pcm"))
    samples = np.frombuffer(answer.content, "<i2") / 32767.0
    assert len(samples) == SAMPLES
    assert abs(pitch(samples) - pitch_of(LINE)) < 20.0


@pytest.mark.parametrize("format", ["pcm", "mp3", "opus"])
async def test_sound_is_streamed_as_it_is_made(server, openai_client, format):
    server.engine.mode = "slow"
    speech = openai_client.audio.speech.with_streaming_response
    async with speech.create(**asked(input=LINE * 4, response_format=format)) as answer:
        pieces = answer.iter_bytes()
        data = await anext(pieces)
        assert data
        assert server.engine.utterances
        server.engine.mode = "normal"
        data += b"".join([piece async for piece in pieces])
    assert len(data) > 4000


async def test_a_long_text_is_spoken_sentence_by_sentence(server, openai_client):
    texts = [f"This is the sentence with the number {n}." for n in range(12)]
    answer = await openai_client.audio.speech.create(
        **asked(input=" ".join(texts), response_format="pcm")
    )
    assert [text for _, text in server.engine.said] == texts
    assert len({conversation for conversation, _ in server.engine.said}) == 1
    assert len(answer.content) == 2 * 1920 * sum(map(frames_of, texts))


async def test_sampling_can_be_asked_for_with_an_extra_body(server, openai_client):
    server.engine.mode = "slow"
    task = asyncio.create_task(
        openai_client.audio.speech.create(**asked(speed=1.0), extra_body={"seed": 7, "top_k": 3})
    )
    await until(lambda: server.engine.conversations)
    (held,) = server.engine.conversations.values()
    assert (held.sampling.seed, held.sampling.top_k) == (7, 3)
    server.engine.mode = "normal"
    await task


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"input": " "}, "bad_text", "input"),
        ({"input": "..."}, "bad_text", "words"),
        ({"input": "so " * 2000}, "bad_text", "4096"),
        ({"voice": "aria"}, "bad_voice", "CSM_VOICES_DIR"),
        ({"voice": "Alloy"}, "bad_voice", "voice"),
        ({"voice": "../x"}, "bad_voice", "voice"),
        ({"voice": {"id": "nobody"}}, "bad_voice", "CSM_VOICES_DIR"),
        ({"response_format": "tar"}, "bad_request", "mp3"),
        ({"speed": 1.5}, "bad_request", "speed"),
        ({"instructions": "Sing it."}, "bad_request", "instructions"),
        ({"stream_format": "tar"}, "bad_request", "sse"),
        ({"extra_body": {"song": 1}}, "bad_request", "song"),
    ],
)
async def test_what_cannot_be_had_is_refused_as_openai_does(
    server, openai_client, changes, code, word
):
    with pytest.raises(openai.BadRequestError) as caught:
        await openai_client.audio.speech.create(**asked(**changes))
    error = caught.value
    assert (error.code, error.type, error.param) == (code, "invalid_request_error", None)
    assert word in error.body["message"]
    assert server.engine.said == []


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff\xfe{", b'{"input": "a", "input": "b"}'])
async def test_a_body_that_is_no_request_is_refused(server, body):
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/audio/speech", data=body) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_a_body_too_large_is_refused():
    async with serving(limits=limits_of(message_bytes=1000)) as server:
        async with client_of(server) as client:
            with pytest.raises(openai.BadRequestError, match="too large"):
                await client.audio.speech.create(**asked(input="a" * 2000))
        await server.settle()


async def test_a_wrong_key_is_an_authentication_error():
    async with serving(key="k3y") as server:
        async with client_of(server, "other") as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.audio.speech.create(**asked())
            assert "k3y" not in str(caught.value)
        assert server.engine.said == []
        async with client_of(server, "k3y") as client:
            assert (await client.audio.speech.create(**asked())).content
        await server.settle()


async def test_a_busy_engine_is_503_with_retry_after(server, openai_client):
    server.engine.mode = "busy"
    with pytest.raises(openai.InternalServerError) as caught:
        await openai_client.audio.speech.create(**asked())
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.code == "busy"
    assert server.engine.idle


async def test_openais_client_comes_back_when_a_slot_is_free(server):
    server.engine.mode = "busy"
    async with client_of(server, max_retries=2) as client:
        task = asyncio.create_task(client.audio.speech.create(**asked(response_format="pcm")))
        await until(lambda: figure(server, "csm_errors_total", code="busy"))
        server.engine.mode = "normal"
        assert len((await task).content) == 2 * SAMPLES


async def test_an_engine_that_fails_before_the_first_sound_has_a_status(server, openai_client):
    server.engine.mode, server.engine.fail_after = "failing", 0
    with pytest.raises(openai.InternalServerError) as caught:
        await openai_client.audio.speech.create(**asked())
    assert (caught.value.status_code, caught.value.code) == (500, "engine")


async def test_a_speech_that_breaks_off_is_not_taken_for_a_whole_one(server, openai_client):
    server.engine.mode = "failing"
    with pytest.raises(openai.APIConnectionError):
        await openai_client.audio.speech.create(**asked(response_format="pcm"))
    await until(lambda: server.engine.idle)


async def test_a_silent_engine_is_a_timeout():
    async with serving(StandInEngine("stalled"), limits=limits_of(answer_s=0.2)) as server:
        async with client_of(server) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.audio.speech.create(**asked())
            assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        await server.settle()


@pytest.mark.parametrize("mode", ["stalled", "slow"])
async def test_a_client_that_leaves_frees_the_engine(server, openai_client, mode):
    server.engine.mode = mode
    task = asyncio.create_task(openai_client.audio.speech.create(**asked(input=LINE * 4)))
    await until(lambda: server.engine.utterances)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await server.settle()
    assert server.engine.cancelled


async def test_a_reader_that_stops_reading_holds_no_slot():
    # More audio than the kernel's buffers hold.
    limits = limits_of(stalled_reader_s=0.3, speech_chars=100_000)
    async with serving(limits=limits) as server:
        text = " ".join(f"This is the sentence number {n} of very many." for n in range(900))
        body = json.dumps(asked(input=text, response_format="pcm")).encode()
        head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = server.url.removeprefix("http://").split(":")
            plain.connect((host, int(port)))
            plain.sendall(head.encode() + b"\r\n\r\n" + body)
            await until(lambda: server.engine.said)
            await until(lambda: server.engine.idle)
        await server.settle()
        assert len(server.engine.said) < 900


async def test_draining_finishes_what_speaks_and_refuses_more(server, openai_client):
    server.engine.mode = "slow"
    task = asyncio.create_task(openai_client.audio.speech.create(**asked(response_format="pcm")))
    await until(lambda: server.engine.utterances)
    drain = asyncio.create_task(server.state.drain(20.0))
    await until(lambda: server.state.draining)
    with pytest.raises(openai.InternalServerError) as caught:
        await openai_client.audio.speech.create(**asked())
    assert caught.value.code == "unavailable"
    assert len((await task).content) == 2 * SAMPLES
    await drain


async def test_markup_is_gone_before_the_text_is_split(server, openai_client):
    text = (
        "See [the page. Now](https://example.com/" + "a.b/" * 40 + ").<!-- no. t --> Fine "
        'is 2 * 3.[1] <break time="1.5s"/>[0]Dial *67.<|end_of_text|>'
    )
    await openai_client.audio.speech.create(**asked(input=text))
    assert [one for _, one in server.engine.said] == [
        "See the page.",
        "Now.",
        "Fine is 2 times 3.",
        "Dial star 67.",
    ]
