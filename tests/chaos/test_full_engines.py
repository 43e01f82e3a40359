"""Full engines: the client asks the next one, and a reply in progress waits for a slot."""

from __future__ import annotations

import asyncio

import pytest

from csm_tts_plugin.client.call import Call, Manner
from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.client.reply import Reply
from csm_tts_plugin.errors import BusyError, EngineTimeoutError
from tests.chaos.test_resume import SENTENCES, Listener, repeated, slowly
from tests.server.conftest import serving
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import LIMIT_S, until


async def speak(urls, listener, sentences, timeout=60.0):
    async with EngineClient(urls, timeout=60.0) as client:

        async def connect():
            return client

        call = Call(connect, Manner())
        try:
            reply = Reply(call, lambda: None, listener, 24_000, timeout)
            await reply.speak(slowly(sentences), lambda call: None)
        finally:
            await call.aclose()


def refusing(engine):
    """Refuses as in the mode `busy`, and counts how often."""
    engine.mode, engine.refused = "busy", 0
    say = engine.say

    def counted(*arguments, **options):
        try:
            return say(*arguments, **options)
        except BusyError:
            engine.refused += 1
            raise

    engine.say = counted
    return engine


async def test_where_the_first_engine_is_full_the_next_one_speaks():
    async with serving(refusing(StandInEngine())) as full, serving() as good:
        listener = Listener()
        await speak([full.url, good.url], listener, SENTENCES)
        assert repeated(listener.pcm, SENTENCES) == [0] * len(SENTENCES)
        assert [text for _, text in good.engine.said] == SENTENCES
        assert full.engine.refused
        await full.settle()
        await good.settle()


async def test_where_all_engines_are_full_the_host_is_told_before_the_first_sound():
    async with serving(refusing(StandInEngine())) as one, serving(refusing(StandInEngine())) as two:
        with pytest.raises(BusyError) as caught:
            await speak([one.url, two.url], Listener(), SENTENCES[:1])
        assert caught.value.retry_after > 0
        assert (one.engine.refused, two.engine.refused) == (1, 1)
        await one.settle()
        await two.settle()


async def test_a_reply_whose_next_engine_is_full_goes_on_when_it_has_room():
    async with serving(StandInEngine("slow")) as lost, serving(refusing(StandInEngine())) as full:
        listener = Listener()
        task = asyncio.create_task(speak([lost.url, full.url], listener, SENTENCES))
        await until(lambda: listener.pcm)
        lost.engine.mode = "not-ready"
        lost.state.end_sessions()
        await until(lambda: full.engine.refused >= 3)
        full.engine.mode = "normal"
        await asyncio.wait_for(task, LIMIT_S)
        assert sum(map(bool, repeated(listener.pcm, SENTENCES))) <= 1
        await lost.settle()
        await full.settle()


async def test_a_reply_under_way_asks_a_full_engine_again():
    async with serving(refusing(StandInEngine("slow"))) as server:
        listener, heard = Listener(), asyncio.Event()
        server.engine.mode = "slow"

        async def sentences():
            async for sentence in slowly(SENTENCES):
                yield sentence
                await heard.wait()  # the engine has no text of this reply left, and fills up

        async with EngineClient(server.url, timeout=60.0) as client:

            async def connect():
                return client

            call = Call(connect, Manner())
            reply = Reply(call, lambda: None, listener, 24_000, 60.0)
            task = asyncio.create_task(reply.speak(sentences(), lambda call: None))
            await until(lambda: listener.pcm and not server.engine.utterances)
            server.engine.mode = "busy"
            heard.set()
            await until(lambda: server.engine.refused)
            server.engine.mode = "normal"
            await asyncio.wait_for(task, LIMIT_S)
            await call.aclose()
        assert repeated(listener.pcm, SENTENCES) == [0] * len(SENTENCES)
        await server.settle()


async def test_asking_again_is_bounded_by_the_replys_timeout():
    async with serving(StandInEngine("slow")) as lost, serving(refusing(StandInEngine())) as full:
        listener = Listener()
        task = asyncio.create_task(speak([lost.url, full.url], listener, SENTENCES, timeout=3.0))
        await until(lambda: listener.pcm or task.done())
        lost.engine.mode = "not-ready"
        lost.state.end_sessions()
        with pytest.raises((BusyError, EngineTimeoutError)):
            await asyncio.wait_for(task, LIMIT_S)
        await lost.settle()
        await full.settle()
