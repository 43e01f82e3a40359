"""A conversation outlives its connection and continues over the next one."""

from __future__ import annotations

import asyncio
import base64
import json
import random

import aiohttp
import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.errors import CsmError, UnavailableError
from tests.chaos.proxy import FaultyProxy, Link
from tests.server.conftest import limits_of, listen, serving
from tests.server.raw import answer, raw
from tests.support.stand_in_engine import StandInEngine, frames_of
from tests.support.waiting import LIMIT_S, until

LINE = "It is a fine day to be heard from start to end. " * 4
KEEP = "a-secret-of-22-letters-or-more"


def pcm(chunks):
    return b"".join(chunk.pcm for chunk in chunks)


def cut(conversation):
    conversation._link.socket._response.connection.transport.abort()


async def test_an_utterance_goes_on_where_it_was(server, client):
    whole = pcm(await listen(await (await client.conversation()).say(LINE)))
    conversation = await client.conversation()
    said = len(server.engine.said)
    heard = []
    async for chunk in await conversation.say(LINE):
        heard.append(chunk)
        if len(heard) % 9 == 0:
            cut(conversation)
    assert pcm(heard) == whole
    assert [chunk.frame for chunk in heard] == list(range(frames_of(LINE)))
    assert len(server.engine.said) == said + 1
    assert server.state.metrics.resumed._value.get() >= 3


async def test_what_was_said_while_the_link_was_down_is_said_once_and_in_order(server, client):
    conversation = await client.conversation()
    for n in range(6):
        cut(conversation)
        await conversation.turn("caller", f"Turn {n}.")
        await listen(await conversation.say(f"Sentence {n} of a reply."))
    assert [text for _, text in server.engine.said] == [
        f"Sentence {n} of a reply." for n in range(6)
    ]
    (context,) = server.engine.conversations.values()
    assert [turn.text for turn in context.turns] == [f"Turn {n}." for n in range(6)]


async def test_a_cancel_reaches_the_engine_over_the_next_connection(server, client):
    server.engine.mode = "stalled"
    conversation = await client.conversation()
    utterance = await conversation.say(LINE)
    await until(lambda: server.engine.utterances == 1)
    cut(conversation)
    await utterance.cancel()
    await until(lambda: server.engine.utterances == 0)


async def test_a_voice_changes_although_the_answer_was_lost(server, client):
    conversation = await client.conversation()
    changing = asyncio.create_task(conversation.set_voice("stock", temperature=0.5))
    await asyncio.sleep(0)
    cut(conversation)
    await changing
    await listen(await conversation.say(LINE))


async def test_a_client_that_does_not_come_back_is_forgotten():
    limits = limits_of(keep_s=0.3)
    async with serving(StandInEngine("stalled"), limits=limits) as server, raw(server) as ws:
        await ws.send_json({"type": "open", "keep": KEEP})
        await answer(ws)
        await ws.send_json({"type": "say", "id": "1", "text": LINE})
        await until(lambda: server.engine.utterances == 1)
        ws._response.connection.transport.abort()
        await server.settle()
        assert server.state.kept == {}
        async with raw(server) as late:
            await late.send_json({"type": "open", "keep": KEEP, "received": 1})
            assert (await answer(late))["code"] == "unavailable"
            await late.send_json({"type": "open", "keep": KEEP})
            assert "received" not in await answer(late)


async def test_a_client_that_closes_is_freed_at_once():
    """With these limits, only the close can free it."""
    limits = limits_of(keep_s=3600.0, heartbeat_s=3600.0)
    async with serving(limits=limits) as server, EngineClient(server.url) as client:
        await client.conversation()
        await client.aclose()
        await until(lambda: server.engine.idle)


async def test_nobody_else_takes_a_conversation_over():
    async with serving(key="one,two") as server, aiohttp.ClientSession() as http:
        url = f"{server.url}/v1/stream"
        async with http.ws_connect(url, headers={"Authorization": "Bearer one"}) as ws:
            await ws.send_json({"type": "open", "keep": KEEP})
            await answer(ws)
            other = {"Authorization": "Bearer two"}
            async with http.ws_connect(url, headers=other) as thief:
                await thief.send_json({"type": "open", "keep": KEEP, "received": 1})
                assert (await answer(thief))["code"] == "unavailable"
            await ws.send_json({"type": "say", "id": "1", "text": "Mine."})
            assert (await answer(ws))["type"] == "audio"


@pytest.mark.parametrize("keep", ["short", "with spaces in it, all of them", 5, "x" * 65])
async def test_a_bad_secret_is_refused(server, keep):
    async with raw(server) as ws:
        await ws.send_json({"type": "open", "keep": keep})
        assert (await answer(ws))["code"] == "bad_request"


async def read_until_done(ws):
    """Each of the engine's messages; audio and its header are one."""
    seen = []
    while not seen or seen[-1].get("type") != "done":
        message = await ws.receive(timeout=LIMIT_S)
        if message.type is aiohttp.WSMsgType.TEXT:
            seen.append(json.loads(message.data))
        else:
            seen[-1]["pcm"] = base64.b64encode(message.data).decode()
    return seen


@pytest.mark.parametrize("received", [0, 1, 7, frames_of(LINE) + 2])
async def test_what_is_kept_is_given_again_from_any_message_on(server, received):
    async with raw(server) as first:
        await first.send_json({"type": "open", "keep": KEEP})
        await first.send_json({"type": "say", "id": "1", "text": LINE})
        seen = await read_until_done(first)
        async with raw(server) as second:
            await second.send_json({"type": "open", "keep": KEEP, "received": received})
            told = await answer(second)
            assert (told["type"], told["received"]) == ("opened", 1)
            await second.send_json({"type": "say", "id": "2", "text": "More."})
            assert (await read_until_done(second))[: len(seen) - received] == seen[received:]


async def test_what_was_acknowledged_or_never_sent_cannot_be_asked_for(server):
    for received in (2, 10**6):
        async with raw(server) as first, raw(server) as second:
            await first.send_json({"type": "open", "keep": KEEP})
            await first.send_json({"type": "say", "id": "1", "text": LINE})
            await read_until_done(first)
            await first.send_json({"type": "ack", "received": 9})
            await first.send_json({"type": "say", "id": "2", "text": "More."})
            await read_until_done(first)
            await second.send_json({"type": "open", "keep": KEEP, "received": received})
            assert (await answer(second))["code"] == "unavailable"
        await server.settle()


async def test_an_acknowledged_message_is_not_kept(server):
    async with raw(server) as ws:
        await ws.send_json({"type": "open", "keep": KEEP})
        await answer(ws)
        (session,) = server.state.sessions
        await ws.send_json({"type": "say", "id": "1", "text": LINE})
        kept = frames_of(LINE) + 2
        await until(lambda: len(session._outbox._sent) == kept)
        await ws.send_json({"type": "ack", "received": kept - 3})
        await until(lambda: len(session._outbox._sent) == 3)
        await ws.send_json({"type": "ack", "received": 10**9})
        await until(lambda: len(session._outbox._sent) == 0)


async def test_an_engine_of_an_earlier_version_is_spoken_with(monkeypatch, server):
    """It does not know `keep`: nothing is resumed, and everything else works as before."""
    from csm_tts_plugin.wire import protocol

    monkeypatch.setattr(protocol, "_read_keep", lambda fields: None)
    async with EngineClient(server.url) as client:
        conversation = await client.conversation()
        assert conversation._link._opening.keep is None
        assert len(await listen(await conversation.say(LINE))) == frames_of(LINE)
        server.engine.mode = "stalled"
        utterance = await conversation.say(LINE)
        cut(conversation)
        with pytest.raises(UnavailableError):
            await listen(utterance)


async def test_resuming_at_random_moments_loses_and_repeats_nothing():
    texts = [f"This is sentence {n} of the many that are said here." for n in range(12)]
    link = Link(resets=0.03)
    async with (
        serving(StandInEngine(slots=64, queue=64)) as server,
        FaultyProxy(server.url, link, random.Random(11)) as proxy,
    ):

        async def call(at):
            async with EngineClient(proxy.url, timeout=60.0, connect_timeout=20.0) as client:
                conversation = await client.conversation()
                said = [await conversation.say(f"Call {at}. {text}") for text in texts]
                return [pcm(await listen(one)) for one in said]

        calls = await asyncio.gather(*(call(at) for at in range(6)), return_exceptions=True)
        for at, heard in enumerate(calls):
            assert isinstance(heard, list | CsmError), heard
            if isinstance(heard, list):
                frames = [frames_of(f"Call {at}. {text}") for text in texts]
                assert [len(one) // 3840 for one in heard] == frames
        assert sum(isinstance(heard, list) for heard in calls) >= 5, calls
        assert proxy.resets > 6
        assert len(server.engine.said) == len(set(server.engine.said))
