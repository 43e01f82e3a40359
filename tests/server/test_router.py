"""One address for several engines: distribution of calls, failures, and reported state."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from csm_tts_plugin.client.call import Call, Manner
from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.client.reply import Reply
from csm_tts_plugin.config import Limits
from csm_tts_plugin.errors import BusyError, UnavailableError
from csm_tts_plugin.server.figures import merged
from csm_tts_plugin.server.fleet import CONNECT_S
from csm_tts_plugin.server.state import ServerState
from csm_tts_plugin.voices.store import VoiceStore
from tests.chaos.test_resume import SENTENCES, Listener, repeated, slowly
from tests.server.conftest import limits_of, listen, serving, speaks
from tests.server.raw import answer, raw
from tests.server.test_seed_socket import asking, reply
from tests.server.test_voice_routes import adding, ask
from tests.support.routed import routing
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import until

LINE = "It is a fine day to be heard from start to end."
NOWHERE = "http://127.0.0.1:9"
KEEP = "a-secret-of-22-letters-or-more"


@asynccontextmanager
async def fleet(*engines, limits=None, **settings):
    """(router, its servers)"""
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(serving(one, limits=limits, **settings))
            for one in engines
        ]
        urls = [one.url for one in servers]
        settings["limits"] = limits or Limits()
        router = await stack.enter_async_context(routing(urls, **settings))
        yield router, servers
        for one in servers:
            await one.settle()


def two():
    return StandInEngine(), StandInEngine()


def conversations(servers):
    return [len(one.engine.conversations) for one in servers]


async def speech(url, text=LINE, **options):
    body = {"input": text, "response_format": "pcm"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/audio/speech", json=body, **options) as got,
    ):
        return got.status, dict(got.headers), await got.read()


# Distribution of calls


async def test_the_router_has_every_route_of_an_engine():
    async with fleet(StandInEngine()) as (router, (one,)):
        assert routes(router.app) == routes(one.app)


def routes(app):
    return {(route.method, route.resource.canonical) for route in app.router.routes()}


async def test_a_burst_of_calls_is_spread_before_the_engines_have_told_of_it():
    async with fleet(*two()) as (router, servers), EngineClient(router.url) as client:
        await asyncio.gather(*(client.conversation() for _ in range(10)))
        assert conversations(servers) == [5, 5]


async def test_an_engine_is_not_late_because_the_router_paused(monkeypatch):
    check, asked = ServerState.check_open, []

    def checking(state):
        if not asked:  # the first socket is about to be accepted
            time.sleep(1.1 * CONNECT_S)
        asked.append(state)
        check(state)

    monkeypatch.setattr(ServerState, "check_open", checking)
    async with (
        fleet(*two()) as (router, servers),
        EngineClient(router.url, connect_timeout=60.0) as client,
    ):
        await asyncio.gather(*(client.conversation() for _ in range(10)))
        assert conversations(servers) == [5, 5]
        assert len(asked) == 20, "no other engine was tried: one socket and one opening for each"


async def test_a_burst_is_spread_over_the_room_that_calls_of_others_leave():
    """Also if the engines report in the middle of it."""
    async with (
        fleet(*two()) as (router, servers),
        EngineClient(servers[0].url) as other,
        EngineClient(router.url) as client,
    ):
        for _ in range(4):
            await other.conversation()
        await router.fleet.look_at_all()
        burst = [client.conversation() for _ in range(8)]
        looking = [router.fleet.look_at_all() for _ in range(8)]
        await asyncio.gather(*(one for pair in zip(burst, looking, strict=True) for one in pair))
        assert conversations(servers) == [6, 6]


async def test_a_call_goes_where_there_is_more_room():
    async with (
        fleet(StandInEngine(slots=2), StandInEngine(slots=8)) as (router, servers),
        EngineClient(servers[0].url) as other,
        EngineClient(router.url) as client,
    ):
        for _ in range(3):
            await other.conversation()
        await router.fleet.look_at_all()
        for _ in range(4):
            await client.conversation()
        assert conversations(servers) == [3, 4]


async def test_requests_are_spread_too():
    engines = [StandInEngine("slow"), StandInEngine("slow")]
    async with fleet(*engines) as (router, _):
        answers = await asyncio.gather(*(speech(router.url) for _ in range(6)))
        assert [status for status, _, _ in answers] == [200] * 6
        assert len({sound for _, _, sound in answers}) == 1
        assert [len(one.said) for one in engines] == [3, 3]


async def test_an_engine_that_is_away_or_loading_is_passed_over():
    async with (
        fleet(StandInEngine("not-ready"), StandInEngine()) as (_, servers),
        routing([NOWHERE, "", *(one.url for one in servers)]) as router,
        EngineClient(router.url) as client,
    ):
        conversation = await client.conversation()
        assert speaks(await listen(await conversation.say(LINE)), LINE)
        assert (await speech(router.url))[0] == 200
        assert len(servers[1].engine.said) == 2


# All engines full, or none available


async def test_an_open_that_one_engine_refuses_goes_to_the_next_and_then_is_refused():
    limits = limits_of(conversations_per_place=1)
    engines = [StandInEngine(slots=1, queue=0), StandInEngine(slots=1, queue=0)]
    async with (
        fleet(*engines, limits=limits) as (router, servers),
        EngineClient(servers[0].url) as full,
        EngineClient(router.url) as client,
    ):
        await full.conversation()
        router.fleet.members[0].account.others = 0  # the router does not know of it yet
        await client.conversation()
        assert conversations(servers) == [1, 1]
        with pytest.raises(BusyError) as through:
            await client.conversation()
        with pytest.raises(BusyError) as alone:
            await full.conversation()
        assert str(through.value) == str(alone.value)
        assert through.value.retry_after == alone.value.retry_after


async def test_a_refused_socket_may_ask_again():
    async with fleet(StandInEngine("not-ready")) as (router, (one,)), raw(router) as ws:
        await ws.send_str('{"type":"open"}')
        assert (await answer(ws))["code"] == "unavailable"
        one.engine.mode = "normal"
        await ws.send_str('{"type":"open"}')
        assert (await answer(ws))["type"] == "opened"


async def test_a_request_that_one_engine_refuses_is_spoken_by_the_other():
    async with fleet(StandInEngine("busy"), StandInEngine()) as (router, servers):
        assert (await speech(router.url))[0] == 200
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"{router.url}/ws", max_msg_size=2**24) as ws,
        ):
            await ws.send_json(asking())
            assert (await reply(ws))[1] == {"status": "complete"}
        assert len(servers[1].engine.said) == 2


async def test_where_all_are_full_the_answer_is_that_of_a_full_engine():
    async with fleet(StandInEngine("busy"), StandInEngine("busy")) as (router, servers):
        status, headers, body = await speech(router.url)
        assert (status, body) == (await speech(servers[0].url))[::2]
        assert (status, headers["Retry-After"]) == (503, "1")
        assert b'"busy"' in body
        for url in (router.url, servers[0].url):
            async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/ws") as ws:
                await ws.send_json(asking())
                told = await ws.receive_json(timeout=20)
                assert (told["code"], told["retry_after"]) == ("busy", 0.5)


async def test_where_no_engine_is_there_it_is_said_and_nothing_hangs():
    async with routing([NOWHERE, ""]) as router:
        assert (await speech(router.url))[0] == 503
        async with EngineClient(router.url) as client:
            with pytest.raises(UnavailableError):
                await client.conversation()
            assert (await client.status())["ready"] is False
        status, answer = await ask(router, "DELETE", "/ann")
        assert (status, answer["error"]["code"]) == (503, "unavailable")


# Lost conversations and engines


async def test_a_conversation_goes_on_at_its_own_engine():
    async with fleet(*two()) as (router, servers), EngineClient(router.url) as client:
        several = [await client.conversation() for _ in range(4)]
        for n, one in enumerate(several):
            one._link.socket._response.connection.transport.abort()
            assert speaks(
                await listen(await one.say(f"Sentence {n}: {LINE}")), f"Sentence {n}: {LINE}"
            )
        assert conversations(servers) == [2, 2]
        assert sum(one.state.metrics.resumed._value.get() for one in servers) == 4


async def test_a_conversation_that_no_engine_keeps_is_told_so():
    async with fleet(*two()) as (router, _), raw(router) as ws:
        await ws.send_json({"type": "open", "keep": KEEP, "received": 4})
        told = await answer(ws)
        assert (told["code"], told["about"]) == ("unavailable", "open")
        await ws.send_json({"type": "open", "keep": KEEP})
        assert (await answer(ws))["type"] == "opened"


async def test_the_router_forgets_whose_conversation_it_was_when_the_engine_does():
    limits = limits_of(keep_s=0.1)
    async with fleet(StandInEngine(), limits=limits) as (router, _):
        async with raw(router) as ws:
            await ws.send_json({"type": "open", "keep": KEEP})
            await answer(ws)
            assert router.fleet.kept.find(KEEP) is router.fleet.members[0]
        await until(lambda: router.fleet.kept.find(KEEP) is None)


async def test_a_reply_whose_engine_dies_goes_on_at_another():
    short = limits_of(keep_s=0.5)
    async with fleet(StandInEngine("slow"), StandInEngine(), limits=short) as (router, servers):
        listener, client = Listener(), EngineClient(router.url, timeout=60.0)

        async def connect():
            return client

        call = Call(connect, Manner())
        reply = Reply(call, lambda: None, listener, 24_000, 60.0)
        task = asyncio.create_task(reply.speak(slowly(SENTENCES), lambda call: None))
        await until(lambda: listener.pcm)
        servers[0].engine.mode = "not-ready"
        for session in list(servers[0].state.sessions):
            session._socket._req.transport.abort()
        await asyncio.wait_for(task, 60.0)
        await call.aclose()
        await client.aclose()
        extra = repeated(listener.pcm, SENTENCES)
        assert sum(map(bool, extra)) <= 1, "the sentence under way is begun again, no other"
        assert servers[1].engine.said


async def test_a_reply_whose_engine_fills_up_goes_on_at_another():
    async with fleet(StandInEngine("slow"), StandInEngine()) as (router, servers):
        listener, client, heard = (
            Listener(),
            EngineClient(router.url, timeout=60.0),
            asyncio.Event(),
        )

        async def connect():
            return client

        async def sentences():
            async for sentence in slowly(SENTENCES):
                yield sentence
                await heard.wait()  # the engine has no text of this reply left, and fills up

        call = Call(connect, Manner())
        reply = Reply(call, lambda: None, listener, 24_000, 60.0)
        task = asyncio.create_task(reply.speak(sentences(), lambda call: None))
        await until(lambda: listener.pcm and not servers[0].engine.utterances)
        servers[0].engine.mode = "busy"
        heard.set()
        await asyncio.wait_for(task, 60.0)
        await call.aclose()
        await client.aclose()
        assert repeated(listener.pcm, SENTENCES) == [0] * len(SENTENCES)
        assert [text for _, text in servers[1].engine.said] == SENTENCES[1:]


# Keys and voices


async def test_engines_have_a_key_of_their_own_where_clients_need_none():
    async with serving(key="of the engines alone") as one, routing([one.url]) as router:
        assert (await speech(router.url, headers={"Authorization": "Bearer nonsense"}))[0] == 200
        assert (await speech(one.url))[0] == 401
        async with EngineClient(router.url) as client:
            conversation = await client.conversation()
            assert speaks(await listen(await conversation.say(LINE)), LINE)
        await one.settle()


async def test_the_clients_own_key_reaches_the_engine_so_that_shares_hold():
    async with (
        fleet(StandInEngine("stalled", slots=2, queue=2), key="one,two") as (router, _),
        EngineClient(router.url, key="two") as greedy,
    ):
        several = [await greedy.conversation() for _ in range(4)]
        waiting = [asyncio.create_task(listen(await one.say(LINE))) for one in several]
        done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert "This key" in str(done.pop().exception())
        for task in rest:
            task.cancel()


async def test_a_voice_is_there_at_every_engine_and_forgotten_by_all(tmp_path):
    async with fleet(*two(), voices_dir=tmp_path) as (router, servers):
        assert await ask(router, "POST", json=adding()) == (201, {"id": "ann"})
        key = VoiceStore(tmp_path).load("ann").key
        async with EngineClient(router.url) as client:
            for _ in range(2):
                await client.conversation("ann")
            assert conversations(servers) == [1, 1]
            assert await ask(router, "DELETE", "/ann") == (204, None)
        assert [one.engine.forgotten for one in servers] == [[key], [key]]
        assert (await ask(router, "DELETE", "/ann"))[0] == 404


# Reported state


async def test_readiness_tells_all_engines_and_their_sums():
    async with (
        fleet(StandInEngine(slots=2), StandInEngine("not-ready", slots=4)) as (
            router,
            servers,
        ),
        aiohttp.ClientSession() as http,
        EngineClient(router.url) as client,
    ):
        await client.conversation()
        servers[0].engine.told = {"reference_seconds": 10.0, "follows": "pitch and size"}
        async with http.get(f"{router.url}/readyz") as got:
            told = await got.json()
        assert (told["clones"], told["follows"]) == (False, "pitch and size")
        assert (got.status, told["ready"]) == (200, True)
        assert told["detail"] == "1 of 2 engines ready; engine 1: loading"
        assert (told["slots"], told["conversations"], told["model"]) == (2, 1, "stand-in")
        assert [one["ready"] for one in told["engines"]] == [True, False]
        assert [one["engine"] for one in told["engines"]] == ["0", "1"]
        servers[0].engine.mode = "not-ready"
        async with http.get(f"{router.url}/readyz") as got:
            assert (got.status, (await got.json())["ready"]) == (503, False)


async def test_figures_of_all_engines_are_told_with_their_names():
    async with fleet(*two(), key="k3y") as (router, servers), aiohttp.ClientSession() as http:
        async with EngineClient(servers[1].url, key="k3y") as client:
            await listen(await (await client.conversation()).say(LINE))
        async with http.get(f"{router.url}/metrics") as got:
            assert got.status == 401
        bearer = {"Authorization": "Bearer k3y"}
        async with http.get(f"{router.url}/metrics", headers=bearer) as got:
            assert got.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            text = await got.text()
        assert 'csm_utterances_total{engine="0",reason="end"} 0.0' in text
        assert 'csm_utterances_total{engine="1",reason="end"} 1.0' in text
        assert 'csm_engine_up{device="cpu",engine="1"} 1.0' in text
        assert 'csm_first_audio_seconds_bucket{engine="1",le="+Inf"} 1.0' in text
        assert 'process_open_fds{engine="router"}' in text
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(names) == len(set(names)), "each family once"


async def test_an_engine_that_is_gone_is_told_as_such():
    async with serving() as one, routing([one.url, NOWHERE]) as router:
        async with aiohttp.ClientSession() as http, http.get(f"{router.url}/metrics") as got:
            text = await got.text()
        assert 'csm_engine_up{device="cpu",engine="1"} 0.0' in text
        assert 'csm_ready{engine="0"} 1.0' in text


def test_merged_figures_are_the_sum_of_what_was_read():
    text = (
        "# HELP csm_x Said.\n# TYPE csm_x histogram\n"
        'csm_x_bucket{le="0.1"} 1.0\ncsm_x_bucket{le="+Inf"} 3.0\ncsm_x_count 3.0\ncsm_x_sum 2.5\n'
        '# HELP csm_y_total Tricky "text" here.\n# TYPE csm_y_total counter\n'
        'csm_y_total{of="a\\"b"} 7.0\n'
    )
    read = {family.name: family for family in families(merged({"0": text, "1": text}).decode())}
    assert [sample.labels["le"] for sample in read["csm_x"].samples if "le" in sample.labels] == [
        "0.1", "+Inf", "0.1", "+Inf",
    ]  # fmt: skip
    assert [sample.value for sample in read["csm_y"].samples] == [7.0, 7.0]
    assert {sample.labels["of"] for sample in read["csm_y"].samples} == {'a"b'}


def families(text):
    return list(text_string_to_metric_families(text))
