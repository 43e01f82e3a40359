"""Clients that stall, disappear or send garbage get an error, are freed and affect no others."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.errors import (
    AuthError,
    BusyError,
    EngineTimeoutError,
    RequestError,
    TextError,
    UnavailableError,
)
from tests.server.conftest import limits_of, listen, serving, speaks
from tests.server.raw import HANDSHAKE, LONG, answer, closed, deaf, opened, raw
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import LIMIT_S, until

LINE = "It is a fine day to be heard from start to end."


async def test_a_stalled_reader_is_dropped_and_holds_nobody_back():
    async with serving(limits=limits_of(output_buffer_s=4.0)) as server:
        plain = await asyncio.to_thread(deaf, server, 10)  # more than the kernel buffers
        try:
            async with EngineClient(server.url) as client:
                conversation = await client.conversation()
                for _ in range(5):
                    assert speaks(await listen(await conversation.say(LINE)), LINE)
                await until(lambda: len(server.engine.conversations) == 1)
                await until(lambda: len(server.state.sessions) == 1)
        finally:
            plain.close()
        await server.settle()


def hold_back(server):
    """Sends nothing to the only client until the returned event is set."""
    outbox = next(iter(server.state.sessions))._outbox
    reading = asyncio.Event()
    send = outbox._send

    async def late(item):
        await reading.wait()
        await send(item)

    outbox._send = late
    return reading


async def test_a_reader_slower_than_the_buffer_is_told_why():
    async with serving(limits=limits_of(output_buffer_s=0.5)) as server:
        async with EngineClient(server.url) as client:
            conversation = await client.conversation()
            reading = hold_back(server)
            utterance = await conversation.say(LONG)
            await until(lambda: server.engine.idle)
            reading.set()
            with pytest.raises(BusyError, match="read faster"):
                await listen(utterance)
        await server.settle()


async def test_cancel_drops_what_waits_for_a_slow_reader():
    async with serving() as server, raw(server) as ws:
        await opened(ws)
        reading = hold_back(server)
        outbox = next(iter(server.state.sessions))._outbox
        for id in ("1", "2"):
            await ws.send_str(json.dumps({"type": "say", "id": id, "text": LINE}))
        await until(lambda: len(server.engine.said) == 2 and server.engine.utterances == 0)
        await ws.send_str('{"type":"cancel","id":"1"}')
        await until(lambda: outbox.seconds <= 0.08 * (len(LINE) // 4) + 0.01)
        reading.set()
        heard = {"1": 0, "2": 0}
        done = []
        while len(done) < 2:
            message = await ws.receive(timeout=LIMIT_S)
            if message.type is aiohttp.WSMsgType.TEXT:
                body = json.loads(message.data)
                heard[body["id"]] += body["type"] == "audio"
                done += [body["id"]] if body["type"] == "done" else []
        assert heard == {"1": 1, "2": len(LINE) // 4}  # one chunk was already being sent
        assert done == ["1", "2"]


async def test_no_sound_follows_a_cancel_even_when_the_engine_makes_some(server):
    server.engine.mode = "slow"
    server.engine.cancel = lambda utterance: None
    async with raw(server) as ws:
        await opened(ws)
        await ws.send_str(json.dumps({"type": "say", "id": "1", "text": LINE}))
        assert (await answer(ws))["type"] == "audio"
        await ws.send_str('{"type":"cancel","id":"1"}')
        await ws.send_str('{"type":"what follows is after the cancel"}')
        heard = []
        while (message := await ws.receive(timeout=LIMIT_S)).type is not aiohttp.WSMsgType.TEXT or (
            json.loads(message.data)["type"] != "done"
        ):
            heard.append(message)
        texts = [m.data for m in heard if m.type is aiohttp.WSMsgType.TEXT]
        assert "error" in texts[-1]


async def test_a_half_open_client_is_freed():
    async with serving(StandInEngine("stalled"), limits=limits_of(heartbeat_s=0.2)) as server:
        plain = await asyncio.to_thread(deaf, server)
        try:
            await until(lambda: len(server.engine.conversations) == 1)
            await server.settle()
        finally:
            plain.close()


def test_a_half_open_client_is_freed_within_30_seconds_by_default():
    assert limits_of().heartbeat_s * 1.5 <= 30.0


async def test_a_client_that_never_opens_is_dropped():
    async with serving(limits=limits_of(open_s=0.1)) as server, raw(server) as ws:
        assert (await closed(ws))["code"] == "timeout"


async def test_an_idle_conversation_is_closed_but_not_while_it_speaks():
    async with serving(limits=limits_of(session_idle_s=0.2)) as server, raw(server) as ws:
        server.engine.mode = "slow"
        await opened(ws)
        await ws.send_str(json.dumps({"type": "say", "id": "1", "text": LINE}))
        kinds = []
        while (message := await ws.receive(timeout=LIMIT_S)).type is not aiohttp.WSMsgType.CLOSE:
            if message.type is aiohttp.WSMsgType.TEXT:
                kinds.append(json.loads(message.data)["type"])
            if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING):
                break
        assert kinds[-2:] == ["done", "error"]
        assert kinds.count("audio") == len(LINE) // 4
        await server.settle()


async def test_random_bytes_leave_the_server_speaking(server):
    import random

    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(60):
        host, port = server.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        if rng.random() < 0.7:
            writer.write(HANDSHAKE)
        writer.write(rng.randbytes(rng.randrange(1, 3000)))
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    async with EngineClient(server.url) as client:
        conversation = await client.conversation()
        assert speaks(await listen(await conversation.say(LINE)), LINE)


async def test_a_client_cannot_ask_for_an_utterance_of_another(server):
    server.engine.mode = "slow"
    async with EngineClient(server.url) as one, EngineClient(server.url) as other:
        first, second = await one.conversation(), await other.conversation()
        utterance = await first.say(LINE)
        mine = await second.say("A word.")
        assert mine.id == utterance.id
        await mine.cancel()
        assert speaks(await listen(utterance), LINE)


def test_errors_of_the_caller_are_not_retryable_and_those_of_the_engine_are():
    assert not any(kind.retryable for kind in (RequestError, AuthError, TextError))
    assert all(kind.retryable for kind in (BusyError, UnavailableError, EngineTimeoutError))
