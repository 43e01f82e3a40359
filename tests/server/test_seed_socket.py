"""`WS /ws` with csm-streaming-tf's messages: valid requests, answers and errors."""

from __future__ import annotations

import base64
import json
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
import pytest

from csm_tts_plugin.audio.reference import encode_wav
from tests.server.conftest import limits_of, pitch, serving
from tests.support.stand_in_engine import StandInEngine, frames_of, pitch_of
from tests.support.waiting import LIMIT_S, until

LINE = "It is a fine day to be heard from start to end."


def recording(seconds=1.0):
    rng = np.random.default_rng(1)
    return encode_wav(rng.uniform(-0.3, 0.3, int(24_000 * seconds)).astype("float32"))


def asking(text=LINE, **changes):
    audio = base64.b64encode(recording()).decode()
    return {"audio": audio, "transcript": "What I said.", "response_text": text} | changes


@asynccontextmanager
async def seed_client(server, **options):
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/ws", **options) as ws,
    ):
        yield ws


async def reply(ws):
    """The audio and the last message of one reply."""
    sound = b""
    while "audio" in (message := await ws.receive_json(timeout=LIMIT_S)):
        assert message["sample_rate"] == 24_000
        sound += base64.b64decode(message["audio"])
    return np.frombuffer(sound, "<i2") / 32767.0, message


async def test_a_reply_comes_in_pieces_and_then_its_completion(server):
    async with seed_client(server) as ws:
        for text in (LINE, "And the next reply of this very socket."):
            await ws.send_json(asking(text))
            samples, last = await reply(ws)
            assert last == {"status": "complete"}
            assert len(samples) == 1920 * frames_of(text)
            assert abs(pitch(samples) - pitch_of(text)) < 20.0


async def test_the_first_piece_comes_before_the_last_is_made(server):
    server.engine.mode = "slow"
    async with seed_client(server) as ws:
        await ws.send_json(asking())
        assert "audio" in await ws.receive_json(timeout=LIMIT_S)
        assert server.engine.utterances == 1


async def test_the_recording_is_the_voice_and_is_forgotten_with_the_reply(server):
    server.engine.mode = "slow"
    async with seed_client(server) as ws:
        await ws.send_json(asking())
        await until(lambda: server.engine.utterances)
        (held,) = server.engine.conversations.values()
        assert [(turn.text, len(turn.audio)) for turn in held.voice.turns] == [
            ("What I said.", 24_000)
        ]
        assert held.voice.private
        assert (await reply(ws))[1] == {"status": "complete"}
        await until(lambda: server.engine.idle)


async def test_a_long_reply_is_spoken_sentence_by_sentence(server):
    texts = [f"This is the sentence with the number {n}." for n in range(6)]
    async with seed_client(server) as ws:
        await ws.send_json(asking(" ".join(texts)))
        samples, last = await reply(ws)
        assert last == {"status": "complete"}
        assert [text for _, text in server.engine.said] == texts
        assert len(samples) == 1920 * sum(map(frames_of, texts))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "bad_request"),
        ("[]", "bad_request"),
        ("{}", "bad_request"),
        (json.dumps(asking(audio="http://host/a.wav")), "bad_audio"),
        (json.dumps(asking(audio="AAAA")), "bad_audio"),
        (json.dumps(asking(audio=7)), "bad_request"),
        (json.dumps(asking(transcript=" ")), "bad_text"),
        (json.dumps(asking("")), "bad_text"),
        (json.dumps(asking("...")), "bad_text"),
        (json.dumps(asking("so " * 2000)), "bad_text"),
        (json.dumps(asking(more=1)), "bad_request"),
        (b"\0\0", "bad_request"),
    ],
)
async def test_bad_input_is_answered_and_the_socket_is_usable_after_it(server, text, code):
    async with seed_client(server) as ws:
        await (ws.send_bytes if isinstance(text, bytes) else ws.send_str)(text)
        answer = await ws.receive_json(timeout=LIMIT_S)
        assert isinstance(answer["error"], str)
        assert (answer["code"], answer["retryable"]) == (code, False)
        await ws.send_json(asking())
        assert (await reply(ws))[1] == {"status": "complete"}


async def test_a_busy_engine_says_when_to_come_back(server):
    server.engine.mode = "busy"
    async with seed_client(server) as ws:
        await ws.send_json(asking())
        _, last = await reply(ws)
        assert (last["code"], last["retryable"], last["retry_after"]) == ("busy", True, 0.5)
        assert server.engine.idle
        server.engine.mode = "normal"
        await ws.send_json(asking())
        assert (await reply(ws))[1] == {"status": "complete"}


async def test_a_failing_engine_is_an_error_after_what_it_said(server):
    server.engine.mode = "failing"
    async with seed_client(server) as ws:
        await ws.send_json(asking())
        samples, last = await reply(ws)
        assert len(samples) == 1920 * server.engine.fail_after
        assert last["code"] == "engine"
        await until(lambda: server.engine.idle)


async def test_a_client_that_leaves_frees_the_engine(server):
    server.engine.mode = "stalled"
    async with seed_client(server) as ws:
        await ws.send_json(asking())
        await until(lambda: server.engine.utterances)
    await server.settle()
    assert server.engine.cancelled == [LINE]


async def test_requests_of_a_socket_are_answered_in_order_and_not_without_end():
    async with serving(StandInEngine("stalled")) as server:
        async with seed_client(server) as ws:
            await ws.send_json(asking())
            await until(lambda: server.engine.utterances)
            for text in ("The second.", "The third.", "One too many."):
                await ws.send_json(asking(text))
            assert (await ws.receive_json(timeout=LIMIT_S))["code"] == "busy"
            server.engine.mode = "normal"
            for _ in range(3):
                assert (await reply(ws))[1] == {"status": "complete"}
            assert [text for _, text in server.engine.said] == [LINE, "The second.", "The third."]
        await server.settle()


async def test_the_socket_needs_the_key():
    async with serving(key="k3y") as server:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with seed_client(server):
                pass
        assert caught.value.status == 401
        async with seed_client(server, headers={"Authorization": "Bearer k3y"}) as ws:
            await ws.send_json(asking())
            assert (await reply(ws))[1] == {"status": "complete"}
        await server.settle()


async def test_a_silent_engine_is_a_typed_error_in_time():
    async with serving(StandInEngine("stalled"), limits=limits_of(answer_s=0.2)) as server:
        async with seed_client(server) as ws:
            await ws.send_json(asking())
            assert (await reply(ws))[1]["code"] == "timeout"
        await server.settle()


async def test_a_server_that_stops_says_so_and_closes():
    async with serving(StandInEngine("stalled")) as server:
        async with seed_client(server) as ws:
            await ws.send_json(asking())
            await until(lambda: server.engine.utterances)
            server.state.end_sessions()
            assert (await reply(ws))[1]["code"] == "unavailable"
            while (message := await ws.receive(timeout=LIMIT_S)).type is aiohttp.WSMsgType.TEXT:
                assert "error" in message.data
        await server.settle()
