"""Ten minutes of 64 callers on a real engine, with interruptions and lost connections; no leaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import FRAME_SAMPLES, EngineConfig, ServerConfig
from csm_tts_plugin.errors import (
    BusyError,
    CsmError,
    EngineError,
    EngineTimeoutError,
    UnavailableError,
)
from csm_tts_plugin.server.supervisor import EngineProcess
from tests.chaos.figures import descriptors_of, record, resident, slope
from tests.server.conftest import serving
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import LIMIT_S, until

CALLERS = 64
WHOLE = 5 * CALLERS
"""Complete utterances in the short test."""
TEXTS = (
    "Hello there.",
    "I can hear you well, thank you.",
    "Let me look that up for you now.",
    "It was the best of times, it was the worst of times.",
)


@dataclass
class Soak:
    url: str
    key: str | None
    over: Callable[[Counter[str]], bool]
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    severed: set[object] = field(default_factory=set)
    """Conversations cut off here. The client resumes them; each may fail once if it cannot."""

    async def caller(self, number: int) -> None:
        rng = random.Random(self.seed + number)
        while not self.over(self.counts):
            async with EngineClient(
                self.url, key=self.key, timeout=120.0, connect_timeout=60.0
            ) as client:
                with contextlib.suppress(BusyError):
                    await self.call(client, rng)

    async def call(self, client: EngineClient, rng: random.Random) -> None:
        """One conversation of 1 to 5 sentences; 10 % are interrupted, 1 % lose the connection."""
        conversation = await client.conversation(rate=rng.choice([8_000, 24_000]))
        for _ in range(rng.randrange(1, 6)):
            if self.over(self.counts):
                return
            text = rng.choice(TEXTS)
            stop = rng.randrange(1, 10) if rng.random() < 0.10 else None
            cut = rng.randrange(1, 10) if rng.random() < 0.01 else None
            try:
                utterance = await conversation.say(text, max_seconds=2.0)
                await self.listen(utterance, conversation, stop, cut)
            except BusyError as full:
                self.counts["refused"] += 1
                await asyncio.sleep(full.retry_after)
            except EngineTimeoutError:
                self.counts["past their deadline"] += 1
            except UnavailableError:
                socket = conversation._link.socket
                why = f"closed with {socket.close_code}, {socket.exception()!r}"
                assert conversation in self.severed, f"nobody cut it: {why}"
                self.severed.remove(conversation)
                self.counts["not resumed"] += 1
                return

    async def listen(self, utterance, conversation, stop, cut) -> None:
        """Counts every sample: a gap or an extra frame counts as a loss."""
        heard, samples = 0, 0
        try:
            async for chunk in utterance:
                heard, samples = heard + 1, samples + chunk.samples
                self.counts["chunks"] += 1
                if heard == cut:
                    self.severed.add(conversation)
                    self.counts["connections cut"] += 1
                    conversation._link.socket._response.connection.transport.abort()
                if heard == stop:
                    self.counts["broken into"] += 1
                    return
        except CsmError as error:
            if not error.retryable or isinstance(error, EngineError):
                self.counts["lost"] += 1
            raise
        whole = utterance.result.frames * FRAME_SAMPLES * conversation.rate // 24_000
        self.counts["whole"] += 1
        self.counts["lost"] += samples != whole


async def soak(url, key, over, pid, warm=0.0, every=0.5):
    """The callers' counts, the times of memory measurements in seconds, and the memory in MiB.

    Ends when `over` is true of the counts.
    """
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    began = time.monotonic()
    run = Soak(url, key, over, seed)
    moments, memory = [], []

    async def watch():
        while True:
            await asyncio.sleep(every)
            if (now := time.monotonic() - began) >= warm:
                moments.append(now)
                memory.append(resident(pid))

    watching = asyncio.create_task(watch())
    try:
        async with asyncio.TaskGroup() as callers:
            for number in range(CALLERS):
                callers.create_task(run.caller(number))
    finally:
        watching.cancel()
    return run.counts, moments, memory


async def test_64_callers_leave_nothing_behind():
    engine = StandInEngine(slots=16, queue=48)
    async with serving(engine) as server:
        counts, _, _ = await soak(server.url, None, lambda n: n["whole"] > WHOLE, os.getpid())
        await server.settle()
    assert counts["lost"] == 0


@pytest.mark.soak
@pytest.mark.timeout(2400)
async def test_64_callers_for_ten_minutes():
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
    config = EngineConfig(model="tiny", device="cpu", slots=16, queue=48, threads=1)
    tasks = len(asyncio.all_tasks())
    with EngineProcess(config, ServerConfig(port=0), start_timeout=300.0) as engine:
        url = await engine.ready(300.0)
        pid = engine.pid
        async with EngineClient(url, key=engine.key, timeout=60.0, connect_timeout=60.0) as client:
            await (await client.conversation()).aclose()
            await client.status()
            open_before = descriptors_of(pid)
            end = time.monotonic() + seconds
            counts, moments, memory = await soak(
                url, engine.key, lambda _: time.monotonic() > end, pid, seconds / 5, 5.0
            )
            status = {"conversations": 1}
            async with asyncio.timeout(LIMIT_S):
                while any(status.get(n) for n in ("speaking", "queued", "conversations")):
                    await asyncio.sleep(0.1)
                    status = await client.status()
            with contextlib.suppress(AssertionError):
                await until(lambda: descriptors_of(pid) <= open_before)
            left = descriptors_of(pid)
        assert engine.pid == pid, "it never fell"
    growth = 60.0 * slope(moments, memory)
    record(
        "soak",
        seconds=round(seconds),
        callers=CALLERS,
        slots=config.slots,
        queue=config.queue,
        **{name.replace(" ", "_"): counts[name] for name in sorted(counts)},
        lost_utterances=counts["lost"],
        memory_mib_first_and_last=[round(memory[0], 1), round(memory[-1], 1)],
        memory_mib_a_minute=round(growth, 3),
        slots_leaked=status["speaking"] + status["queued"] + status["conversations"],
        descriptors_leaked=max(0, left - open_before),
        tasks_leaked=len(asyncio.all_tasks()) - tasks,
    )
    assert counts["lost"] == 0
    assert counts["broken into"]
    assert counts["connections cut"]
    assert left <= open_before
    assert growth < 1.0
