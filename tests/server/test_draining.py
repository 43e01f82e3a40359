"""A draining server finishes its replies and tells new requests when to come back."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.errors import UnavailableError
from tests.server.conftest import listen, serving, speaks
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import until

LINE = "It is a fine day to be heard from start to end."


async def test_a_reply_under_way_is_finished_also_between_its_sentences():
    async with serving() as server, EngineClient(server.url) as client:
        conversation = await client.conversation()
        assert speaks(await listen(await conversation.say(LINE, more=True)), LINE)
        drain = asyncio.create_task(server.state.drain(60.0))
        await until(lambda: server.state.draining)
        assert speaks(await listen(await conversation.say("And then.")), "And then.")
        await asyncio.wait_for(drain, 60.0)
        with pytest.raises(UnavailableError):
            await conversation.say(LINE)
        await server.settle()


async def test_what_is_new_is_refused_on_every_route_with_when_to_come_back():
    async with serving(StandInEngine("stalled")) as server, EngineClient(server.url) as client:
        conversation, quiet = await client.conversation(), await client.conversation()
        task = asyncio.create_task(listen(await conversation.say(LINE)))
        await until(lambda: server.engine.utterances == 1)
        drain = asyncio.create_task(server.state.drain(60.0))
        await until(lambda: server.state.draining)
        for ask in (client.conversation, lambda: said(quiet)):
            with pytest.raises(UnavailableError) as caught:
                await ask()
            assert caught.value.retry_after > 0
        async with aiohttp.ClientSession() as session:
            for path in ("v1/audio/speech", "ws", "v1/stream"):
                method = "POST" if path.endswith("speech") else "GET"
                async with session.request(method, f"{server.url}/{path}", json={}) as answer:
                    assert answer.status in (400, 503)
                    assert answer.status == 400 or int(answer.headers["Retry-After"]) >= 1
        assert (await client.status())["ready"] is False
        server.engine.mode = "normal"
        assert speaks(await task, LINE)
        await asyncio.wait_for(drain, 60.0)
        await server.settle()


async def said(conversation):
    return await listen(await conversation.say(LINE))


async def test_a_reply_that_was_broken_into_holds_nobody_up():
    async with serving(StandInEngine("slow")) as server, EngineClient(server.url) as client:
        conversation = await client.conversation()
        async for _ in await conversation.say(LINE * 9, more=True):
            break
        await until(lambda: not any(one.speaking for one in server.state.sessions))
        await asyncio.wait_for(server.state.drain(600.0), 60.0)
        await server.settle()
