"""A sentence whose deadline has passed is cancelled, and its slot is free for others."""

from __future__ import annotations

import json

import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.errors import EngineTimeoutError
from tests.server.conftest import figure, limits_of, listen, serving, speaks
from tests.server.raw import answer, opened, raw
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import until

LINE = "It is a fine day to be heard from start to end."


def saying(id, **members):
    return json.dumps({"type": "say", "id": id, "text": LINE, **members})


async def test_a_sentence_that_waits_past_its_deadline_is_refused_typed_and_retryable():
    async with serving(StandInEngine("stalled", slots=1, queue=1)) as server:
        async with raw(server) as speaker, raw(server) as ws:
            await opened(speaker)
            await speaker.send_str(saying("1"))
            await opened(ws)
            await ws.send_str(saying("7", deadline=0.1))
            error = await answer(ws)
            assert (error["type"], error["id"], error["code"]) == ("error", "7", "timeout")
            assert error["retryable"] is True
            assert error["retry_after"] > 0
            await until(lambda: server.engine.cancelled == [LINE])
            assert figure(server, "csm_errors_total", code="timeout") == 1
            server.engine.mode = "normal"
            await ws.send_str(saying("7", deadline=20.0))
            assert (await answer(ws))["type"] == "audio", "the socket is usable, the id is free"
        await server.settle()


async def test_the_servers_own_bound_holds_where_a_client_names_none_or_more():
    async with serving(StandInEngine("stalled"), limits=limits_of(answer_s=0.1)) as server:
        async with raw(server) as ws:
            await opened(ws)
            for id, wish in (("1", {}), ("2", {"deadline": 3600.0})):
                await ws.send_str(saying(id, **wish))
                error = await answer(ws)
                assert (error["id"], error["code"]) == (id, "timeout")
        await server.settle()


async def test_waiting_behind_an_own_sentence_is_not_waiting():
    async with serving(StandInEngine("slow")) as server:
        async with raw(server) as ws, raw(server) as clock:
            await opened(ws)
            await ws.send_str(saying("1"))
            assert (await answer(ws))["type"] == "audio"
            server.engine.mode = "stalled"
            await ws.send_str(saying("2", deadline=0.1))
            await until(lambda: len(server.engine.said) == 2)
            await opened(clock)
            await clock.send_str(saying("3", deadline=0.3))
            assert (await answer(clock))["code"] == "timeout"
            await until(lambda: server.engine.cancelled)
            assert server.engine.utterances == 2, "the other two are still to be spoken"
        await server.settle()


async def test_speech_that_has_begun_has_no_deadline(server):
    server.engine.mode = "slow"
    async with EngineClient(server.url) as client:
        conversation = await client.conversation()
        heard = []
        async for chunk in await conversation.say(LINE):
            if not heard:
                (session,) = server.state.sessions
                session._too_late(session._relays["1"])
            heard.append(chunk)
        assert speaks(heard, LINE)


async def test_the_next_sentence_has_its_turn_when_one_was_given_up():
    async with serving(StandInEngine("stalled")) as server:
        async with raw(server) as ws:
            await opened(ws)
            await ws.send_str(saying("1", deadline=0.1))
            await ws.send_str(saying("2", deadline=0.1))
            assert [(await answer(ws))["id"] for _ in range(2)] == ["1", "2"]
        await server.settle()


async def test_a_client_tells_the_engine_how_long_it_waits(server):
    server.engine.mode = "stalled"
    async with EngineClient(server.url, timeout=60.0) as client:
        conversation = await client.conversation()
        utterance = await conversation.say(LINE, timeout=0.2)
        await until(lambda: server.engine.cancelled == [LINE])
        with pytest.raises(EngineTimeoutError):
            await listen(utterance)
