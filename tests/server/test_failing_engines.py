"""Engines that fail, stall, are unreachable or are not engines: typed errors in bounded time."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import AsyncExitStack

import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.errors import (
    BusyError,
    EngineError,
    EngineTimeoutError,
    NumericError,
    UnavailableError,
)
from tests.chaos.proxy import FaultyProxy, Link
from tests.server.conftest import limits_of, listen, serving, speaks
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import LIMIT_S, until

LINE = "It is a fine day to be heard from start to end."


async def test_readyz_is_503_until_the_model_can_speak():
    async with serving(StandInEngine("not-ready")) as server, EngineClient(server.url) as client:
        assert (await client.status())["ready"] is False
        async with client._http().get(f"{server.url}/readyz") as response:
            assert response.status == 503
        async with client._http().get(f"{server.url}/healthz") as response:
            assert response.status == 200
        with pytest.raises(UnavailableError, match="loading"):
            await client.conversation()
        server.engine.mode = "normal"
        async with client._http().get(f"{server.url}/readyz") as response:
            assert response.status == 200


@pytest.mark.parametrize(
    "error",
    [EngineError("It broke."), NumericError("NaN came out."), UnavailableError("It stopped.")],
)
async def test_a_failing_engine_is_a_typed_error_after_what_it_said(server, client, error):
    server.engine.mode, server.engine.error = "failing", error
    conversation = await client.conversation()
    heard = []

    async def hear():
        async for chunk in await conversation.say(LINE):
            heard.append(chunk)

    with pytest.raises(type(error)) as caught:
        await hear()
    assert len(heard) == server.engine.fail_after
    assert caught.value.message == error.message
    assert caught.value.retryable == error.retryable
    server.engine.mode = "normal"
    assert speaks(await listen(await conversation.say(LINE)), LINE)


async def test_a_busy_engine_says_when_to_come_back(server, client):
    server.engine.mode = "busy"
    conversation = await client.conversation()
    with pytest.raises(BusyError) as caught:
        await listen(await conversation.say(LINE))
    assert caught.value.retry_after == 0.5


async def test_an_error_inside_the_server_gives_nothing_away(server, client, caplog):
    def broken(_, text, *__, **___):
        raise ValueError(text)

    server.engine.say = broken
    conversation = await client.conversation()
    with pytest.raises(EngineError) as caught:
        await listen(await conversation.say("secret words of a caller"))
    assert "secret" not in caught.value.message + caplog.text
    assert "ValueError" in caplog.text


async def test_a_stalled_engine_is_a_timeout_and_the_engine_is_told(server):
    server.engine.mode = "stalled"
    async with EngineClient(server.url, timeout=1.5) as client:
        conversation = await client.conversation()
        with pytest.raises(EngineTimeoutError):
            await listen(await conversation.say(LINE))
        await until(lambda: server.engine.cancelled == [LINE])


async def test_waiting_behind_an_earlier_sentence_is_no_timeout(server):
    server.engine.frame_s = 0.1
    async with EngineClient(server.url, timeout=1.5) as client:
        conversation = await client.conversation()
        first = asyncio.create_task(listen(await conversation.say(LINE * 2, more=True)))
        assert speaks(await listen(await conversation.say("And then.")), "And then.")
        await first


async def test_a_lost_connection_ends_every_utterance_typed(server):
    limits = limits_of(keep_s=0.1)
    async with serving(StandInEngine("stalled"), limits=limits) as lost, AsyncExitStack() as link:
        proxy = await link.enter_async_context(FaultyProxy(lost.url, Link(), random.Random(1)))
        client = await link.enter_async_context(EngineClient(proxy.url))
        conversation = await client.conversation()
        tasks = [asyncio.create_task(listen(await conversation.say(LINE))) for _ in range(3)]
        await until(lambda: lost.engine.utterances == 3)
        await proxy.__aexit__()
        for task in tasks:
            with pytest.raises(UnavailableError):
                await task
        with pytest.raises(UnavailableError):
            await conversation.say(LINE)
        await lost.settle()


async def test_no_engine_at_all_says_how_to_start_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with EngineClient(url) as client:
            for ask in (client.conversation, client.status):
                with pytest.raises(UnavailableError, match="csm_tts_plugin serve"):
                    await ask()


async def test_a_server_that_never_answers_is_left_in_time():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        async with serving() as good:
            async with EngineClient([url, good.url], connect_timeout=1.5) as client:
                conversation = await client.conversation()
                assert speaks(await listen(await conversation.say(LINE)), LINE)
            await good.settle()


async def test_a_server_of_another_kind_is_named_as_such(server):
    async with EngineClient(f"{server.url}/other") as client:
        with pytest.raises(UnavailableError, match="404"):
            await client.conversation()


async def test_a_gap_in_the_sound_is_an_error(server, client, monkeypatch):
    from csm_tts_plugin.server.relay import Relay

    send = Relay._send

    def lossy(relay, samples, frame):
        if frame == 3:
            relay._seq += 1
        send(relay, samples, frame)

    monkeypatch.setattr(Relay, "_send", lossy)
    server.engine.mode = "slow"
    conversation = await client.conversation()
    with pytest.raises(EngineError, match="lost"):
        await listen(await conversation.say(LINE))
    await until(lambda: server.engine.cancelled == [LINE])


async def test_a_conversation_opens_at_the_least_busy_engine():
    async with serving() as busy, serving() as idle:
        async with EngineClient([busy.url, idle.url]) as client:
            opened = [await client.conversation() for _ in range(4)]
            assert len(busy.engine.conversations) == len(idle.engine.conversations) == 2
            for conversation in opened:
                await conversation.aclose()
        await busy.settle()
        await idle.settle()


async def test_an_engine_that_is_not_ready_is_asked_last():
    async with serving(StandInEngine("not-ready")) as loading, serving() as ready:
        async with EngineClient([loading.url, ready.url]) as client:
            for _ in range(2):
                async with asyncio.timeout(LIMIT_S):
                    await client.conversation()
            assert len(ready.engine.conversations) == 2
        await ready.settle()
