"""Four slots, a queue of four and 64 simultaneous clients: eight are accepted, the others are told
when to retry.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

import aiohttp
import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import EngineConfig
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.errors import BusyError
from tests.engine.tools import small_checkpoint
from tests.server.conftest import listen, serving
from tests.server.test_seed_socket import asking, seed_client
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import until

LONG = "And so it goes on."
SLOTS = QUEUE = 4
ARRIVALS = 64


class Crowd:
    """Simultaneous clients, and how many of them were accepted and refused by each route."""

    def __init__(self):
        self.taken = Counter()
        self.refused = Counter()
        self.hang_up = asyncio.Event()

    async def native(self, server):
        async with EngineClient(server.url, timeout=120.0, connect_timeout=60.0) as client:
            conversation = await client.conversation()
            utterance = await conversation.say(LONG, max_seconds=30.0)
            listening = asyncio.create_task(listen(utterance))
            hang_up = asyncio.create_task(self.hang_up.wait())
            await asyncio.wait({listening, hang_up}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                with pytest.raises(BusyError) as caught:
                    listening.result()
                assert caught.value.retry_after > 0
            self._count("native", not listening.done())
            for task in (listening, hang_up):
                task.cancel()
            await asyncio.gather(listening, hang_up, return_exceptions=True)

    async def seed(self, server):
        async with seed_client(server) as ws:
            await ws.send_json(asking(LONG))
            answer = asyncio.create_task(ws.receive_json())
            hang_up = asyncio.create_task(self.hang_up.wait())
            await asyncio.wait({answer, hang_up}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                assert answer.result()["code"] == "busy"
                assert answer.result()["retry_after"] > 0
            self._count("seed", not answer.done())
            for task in (answer, hang_up):
                task.cancel()
            await asyncio.gather(answer, hang_up, return_exceptions=True)

    async def openai(self, server):
        async with aiohttp.ClientSession() as session:
            body = {"input": LONG, "voice": "stock", "response_format": "pcm"}
            asked = asyncio.create_task(session.post(f"{server.url}/v1/audio/speech", json=body))
            hang_up = asyncio.create_task(self.hang_up.wait())
            await asyncio.wait({asked, hang_up}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                assert asked.result().status == 503
                assert int(asked.result().headers["Retry-After"]) >= 1
                asked.result().release()
            self._count("openai", not asked.done())
            for task in (asked, hang_up):
                task.cancel()
            await asyncio.gather(asked, hang_up, return_exceptions=True)

    def _count(self, route, taken):
        (self.taken if taken else self.refused)[route] += 1


async def come_and_go(server, ways):
    """All clients connect; when all but eight were refused, those eight disconnect."""
    crowd = Crowd()
    refusals = len(ways) - SLOTS - QUEUE
    async with asyncio.TaskGroup() as tasks:
        for way in ways:
            tasks.create_task(getattr(crowd, way)(server))
        await until(lambda: sum(crowd.refused.values()) >= refusals)
        # The last accepted one gets a slot in the engine's next round.
        await until(lambda: occupancy(server) == (SLOTS, QUEUE))
        crowd.hang_up.set()
    assert sum(crowd.taken.values()) == SLOTS + QUEUE
    assert sum(crowd.refused.values()) == refusals
    await until(lambda: server.engine.status().conversations == 0)
    assert occupancy(server) == (0, 0)


def occupancy(server):
    status = server.engine.status()
    return status.speaking, status.queued


@pytest.mark.parametrize(
    "ways", [["native"] * ARRIVALS, ["native", "seed", "openai", "openai"] * (ARRIVALS // 4)]
)
async def test_the_server_takes_slots_and_queue_and_refuses_the_rest(ways):
    async with serving(StandInEngine("stalled", slots=SLOTS, queue=QUEUE)) as server:
        for _ in range(2):  # all places are free again for the second crowd
            await come_and_go(server, ways)


@pytest.mark.timeout(300)
async def test_the_real_engine_takes_slots_and_queue_and_refuses_the_rest():
    config = EngineConfig(model="small", device="cpu", slots=SLOTS, queue=QUEUE, threads=1)
    engine = Engine(
        config, checkpoint=await asyncio.to_thread(partial(small_checkpoint, 3, context=1024))
    )
    async with serving(engine) as server:
        await asyncio.to_thread(engine.wait_ready, 120.0)
        await come_and_go(server, ["native"] * ARRIVALS)
