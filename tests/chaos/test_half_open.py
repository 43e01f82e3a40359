"""Half-open connections: the peer is gone without a FIN, and packets are dropped."""

from __future__ import annotations

import asyncio
import random
import time

import aiohttp
import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import Limits
from csm_tts_plugin.errors import UnavailableError
from tests.chaos.figures import record
from tests.chaos.proxy import FaultyProxy, Link
from tests.server.conftest import limits_of, listen, serving, speaks
from tests.server.test_seed_socket import asking, seed_client
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import LIMIT_S, until

LINE = "It is a fine day to be heard from start to end."
SOON = limits_of(heartbeat_s=0.4)


def swallowing(server):
    return FaultyProxy(server.url, Link(), random.Random(1))


async def one_slot_is_freed(limits):
    """A client vanishes with the only slot, and a waiting client gets it; how long that took."""
    async with serving(StandInEngine("stalled", slots=1, queue=1), limits=limits) as server:
        async with (
            swallowing(server) as proxy,
            EngineClient(proxy.url, timeout=600.0) as gone,
            EngineClient(server.url, timeout=600.0) as waits,
        ):
            await (await gone.conversation()).say(LINE)
            await until(lambda: server.engine.utterances == 1)
            task = asyncio.create_task(listen(await (await waits.conversation()).say(LINE)))
            await until(lambda: server.engine.utterances == 2)
            proxy.swallow()
            began = time.monotonic()
            await until(lambda: len(server.engine.conversations) == 1)
            taken = time.monotonic() - began
            server.engine.mode = "normal"
            assert speaks(await task, LINE)
        await server.settle()
    return taken


async def test_a_half_open_client_gives_its_slot_to_who_waits():
    await one_slot_is_freed(SOON)


@pytest.mark.soak
@pytest.mark.timeout(240)
async def test_a_half_open_client_is_freed_with_the_limits_as_they_are():
    taken = await one_slot_is_freed(Limits())
    record("half_open_client", freed_after_s=round(taken, 2))


async def test_a_half_open_client_of_the_seeds_socket_is_freed():
    async with (
        serving(StandInEngine("stalled"), limits=SOON) as server,
        swallowing(server) as proxy,
        seed_client(proxy, timeout=aiohttp.ClientWSTimeout(ws_close=0.1)) as ws,
    ):
        await ws.send_json(asking(LINE))
        await until(lambda: server.engine.utterances == 1)
        proxy.swallow()
        await server.settle()


async def test_a_client_notices_that_its_engine_is_gone(monkeypatch):
    monkeypatch.setattr("csm_tts_plugin.client.engine._HEARTBEAT_SECONDS", 0.4)
    async with serving(StandInEngine("stalled"), limits=SOON) as server:
        async with swallowing(server) as proxy, EngineClient(proxy.url, timeout=600.0) as client:
            task = asyncio.create_task(listen(await (await client.conversation()).say(LINE)))
            await until(lambda: server.engine.utterances == 1)
            proxy.swallow()
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(task, LIMIT_S)
        await server.settle()
