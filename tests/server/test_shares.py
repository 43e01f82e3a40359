"""Several keys at one engine: each has a limited share and a limited number of conversations."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import aiohttp
import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import AgentConfig, ServerConfig
from csm_tts_plugin.errors import AuthError, BusyError
from csm_tts_plugin.server.access import which_key
from tests.server.conftest import limits_of, listen, serving, speaks
from tests.server.raw import answer, raw
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import LIMIT_S, until

LINE = "It is a fine day to be heard from start to end."
KEYS = "ann-key, ben-key"
SHARE = 6
"""Three quarters of 4 slots and 4 places in the queue."""


def two_keys(**options):
    return serving(StandInEngine("stalled", slots=4, queue=4), key=KEYS, **options)


async def fill(stack, server, key, count):
    """Opens `count` conversations of one key and asks each to speak."""
    client = await stack.enter_async_context(EngineClient(server.url, key=key))
    before = len(server.engine.said)
    conversations = [await client.conversation() for _ in range(count)]
    said = [await one.say(LINE) for one in conversations]
    await until(lambda: len(server.engine.said) == before + count)
    return said


async def test_a_key_gets_its_share_of_the_places_and_the_rest_is_for_others():
    async with two_keys() as server:
        async with AsyncExitStack() as stack:
            mine = await fill(stack, server, "ann-key", SHARE)
            greedy = await stack.enter_async_context(EngineClient(server.url, key="ann-key"))
            conversation = await greedy.conversation()
            with pytest.raises(BusyError, match="6 places") as caught:
                await listen(await conversation.say(LINE))
            assert caught.value.retry_after > 0
            await fill(stack, server, "ben-key", 2)
            assert server.engine.utterances == 8
            await mine[0].cancel()
            await until(lambda: server.engine.utterances == 7)
            again = await conversation.say(LINE)
            await until(lambda: server.engine.utterances == 8)
            await again.cancel()
        await server.settle()


async def test_what_a_key_held_is_free_again_when_its_clients_are_gone():
    async with two_keys() as server:
        for _ in range(3):
            async with AsyncExitStack() as stack:
                await fill(stack, server, "ann-key", SHARE)
            await server.settle()
        server.engine.mode = "normal"
        async with EngineClient(server.url, key="ann-key") as client:
            for _ in range(2 * SHARE):  # one after the other: never more than one at a time
                conversation = await client.conversation()
                assert speaks(await listen(await conversation.say(LINE)), LINE)
                await conversation.aclose()
        await server.settle()


async def test_every_route_counts_for_its_key():
    async with two_keys() as server:
        async with AsyncExitStack() as stack:
            await fill(stack, server, "ann-key", SHARE)
            headers = {"Authorization": "Bearer ann-key"}
            session = await stack.enter_async_context(aiohttp.ClientSession(headers=headers))
            async with session.post(f"{server.url}/v1/audio/speech", json={"input": LINE}) as said:
                body = await said.json()
                assert (said.status, body["error"]["code"]) == (503, "busy")
                assert int(said.headers["Retry-After"]) >= 1
        await server.settle()


async def test_a_key_that_comes_with_open_counts_as_well():
    async with two_keys() as server:
        async with AsyncExitStack() as stack:
            await fill(stack, server, "ben-key", SHARE)
            ws = await stack.enter_async_context(raw(server))
            await ws.send_json({"type": "open", "key": "ben-key"})
            assert (await answer(ws))["type"] == "opened"
            await ws.send_json({"type": "say", "id": "1", "text": LINE})
            assert (await answer(ws))["code"] == "busy"
        await server.settle()


async def test_a_single_key_may_take_all():
    engine = StandInEngine("stalled", slots=4, queue=4)
    async with serving(engine, key="ann-key") as server:
        async with AsyncExitStack() as stack:
            await fill(stack, server, "ann-key", 8)
        await server.settle()


async def test_conversations_have_a_bound_also_where_they_are_silent():
    limits = limits_of(conversations_per_place=1)
    async with two_keys(limits=limits) as server:
        async with (
            EngineClient(server.url, key="ann-key") as ann,
            EngineClient(server.url, key="ben-key") as ben,
        ):
            held = [await ann.conversation() for _ in range(SHARE)]
            with pytest.raises(BusyError, match="6 conversations") as caught:
                await ann.conversation()
            assert caught.value.retry_after > 0
            for _ in range(8 - SHARE):
                await ben.conversation()
            with pytest.raises(BusyError, match="All 8"):
                await ben.conversation()
            await held[0].aclose()
            await until(lambda: len(server.engine.conversations) == 7)
            await ben.conversation()
        await server.settle()


async def test_each_of_several_keys_opens_and_no_other_does():
    async with serving(key=KEYS) as server:
        for key in ("ann-key", "ben-key"):
            async with EngineClient(server.url, key=key) as client:
                await client.conversation()
        for key in ("ann", KEYS, "ann-key,ben-key", ""):
            async with EngineClient(server.url, key=key) as client:
                with pytest.raises(AuthError):
                    await client.conversation()
        await asyncio.wait_for(server.settle(), LIMIT_S)


def test_a_key_is_compared_with_every_one_whichever_it_is(monkeypatch):
    asked = []

    def compare(a, b):
        asked.append(b)
        return a == b

    monkeypatch.setattr("csm_tts_plugin.server.access.hmac.compare_digest", compare)
    for given, number in (("one", 0), ("two", 1), ("none", None), (None, None), ("\ud800", None)):
        assert which_key(given, ("one", "two")) == number
    assert asked == [b"one", b"two"] * 5


def test_a_list_of_keys_is_read_and_its_first_is_what_clients_show():
    env = {"CSM_ENGINE_KEY": " one, two ,,three"}
    assert ServerConfig.from_env(env).keys == ("one", "two", "three")
    assert AgentConfig.from_env(env).engine_key == "one"
    assert ServerConfig.from_env({}).keys == ()
    assert AgentConfig.from_env({}).engine_key is None
