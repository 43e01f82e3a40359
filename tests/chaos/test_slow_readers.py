"""Clients that stop reading: their buffers are bounded, and other clients do not wait."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from contextlib import contextmanager

import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import Limits
from tests.chaos.figures import record, resident, slope
from tests.server.conftest import limits_of, listen, serving
from tests.server.raw import deaf, frame, opened, raw
from tests.support.stand_in_engine import StandInEngine, frames_of
from tests.support.waiting import until

LINE = "It is a fine day to be heard from start to end."
MIB = 2**20


@contextmanager
def at_most(limit):
    """Fails if memory use inside ever exceeds that before by `limit` bytes or more."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield
        assert tracemalloc.get_traced_memory()[1] - before < limit
    finally:
        tracemalloc.stop()


async def speak(client, rate=24_000):
    """Checks only the length: measuring the pitch takes more memory than is measured here."""
    conversation = await client.conversation(rate=rate)
    chunks = await listen(await conversation.say(LINE))
    assert sum(chunk.samples for chunk in chunks) == frames_of(LINE) * rate * 80 // 1000
    await conversation.aclose()


async def test_a_stalled_reader_holds_no_more_sound_than_the_limit_says():
    engine = StandInEngine(frame_s=0.002)
    async with serving(engine, limits=limits_of(output_buffer_s=2.0)) as server:
        async with EngineClient(server.url) as client:
            # Objects that are made once, such as filters, do not count.
            await speak(client, rate=48_000)
        with at_most(4 * MIB):  # 2 s at 48 kHz are 0.2 MiB; 158 s (15 MiB) are requested
            plain = await asyncio.to_thread(deaf, server, 4)
            try:
                await until(lambda: server.engine.said)
                async with EngineClient(server.url) as client:
                    for _ in range(3):
                        await speak(client)
                await server.settle()
            finally:
                plain.close()


async def test_who_asks_without_end_and_reads_nothing_is_not_read_from():
    """Of the answers to 4,000 messages only a few hundred are buffered."""
    async with serving() as server, raw(server) as ws:
        await opened(ws)
        (session,) = server.state.sessions
        sent, going = asyncio.Event(), session._outbox._send

        async def stalled(item):
            await sent.wait()
            await going(item)

        session._outbox._send = stalled
        transport = ws._response.connection.transport
        question = frame(json.dumps({"type": "x" * 130}).encode())
        transport.write(question * 4_000)
        await until(lambda: session._outbox._texts >= server.limits.output_messages)
        async with EngineClient(server.url) as client:
            await speak(client)
        assert session._outbox._texts <= server.limits.output_messages + 1
        sent.set()
        for _ in range(4_000):
            assert (await ws.receive_json(timeout=60))["code"] == "bad_request"


async def stalled(server):
    """A reader that stalls, and its session."""
    before = set(server.state.sessions)
    plain = await asyncio.to_thread(deaf, server, 60)
    await until(lambda: any(one.speaking for one in server.state.sessions - before), limit_s=300.0)
    (session,) = (one for one in server.state.sessions - before if one.speaking)
    return plain, session


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_a_reader_stalled_for_ten_minutes_leaves_memory_flat():
    """It reconnects whenever it was dropped, while other clients speak."""
    seconds, warm = 600.0, 60.0
    engine = StandInEngine(slots=8, queue=200, frame_s=0.05)
    async with (
        serving(engine, limits=Limits()) as server,
        EngineClient(server.url, timeout=300.0, connect_timeout=300.0) as client,
    ):
        began, moments, memory, drops, spoken = time.monotonic(), [], [], 0, 0
        plain, session = await stalled(server)
        while (now := time.monotonic() - began) < seconds:
            await speak(client)
            spoken += 1
            if now > warm and (not moments or now - moments[-1] > 5.0):
                moments.append(now)
                memory.append(resident())
            if session not in server.state.sessions:
                plain.close()
                drops += 1
                plain, session = await stalled(server)
            await asyncio.sleep(0.2)
        plain.close()
        await server.settle()
    growth = 60 * slope(moments, memory)
    record(
        "stalled_reader",
        seconds=round(seconds),
        times_dropped=drops,
        utterances_of_others=spoken,
        memory_mib=[round(min(memory), 1), round(max(memory), 1)],
        memory_mib_a_minute=round(growth, 3),
    )
    assert growth < 1.0
