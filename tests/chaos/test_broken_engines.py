"""The engine under many clients at once: cancels at any time, and a step that keeps failing."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import numpy as np
import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import EngineConfig
from csm_tts_plugin.engine.api import Audio
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.errors import BusyError, EngineError
from tests.chaos.figures import record
from tests.engine.tools import TEXTS, alone, small_checkpoint
from tests.server.conftest import listen, serving
from tests.support.waiting import until

SECONDS = 0.48


class Overheard(Engine):
    """An engine that records the codes of each utterance: clients receive only audio."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.heard = []

    def say(self, conversation, text, sink, **options):
        codes = []
        self.heard.append((text, codes))

        def overhear(event):
            if isinstance(event, Audio):
                codes.append(event.codes)
            sink(event)

        return super().say(conversation, text, overhear, **options)


def engine_of(checkpoint, **places):
    config = EngineConfig(model="small", device="cpu", threads=1, **places)
    return Overheard(config, checkpoint=checkpoint)


async def caller(url, rng, goal, counts):
    """One greedily decoded sentence per conversation, most cancelled, until there were enough."""
    async with EngineClient(url, timeout=120.0, connect_timeout=60.0) as client:
        while counts["cancelled"] < goal or not counts["survived"]:
            conversation = await client.conversation(temperature=0.0, top_k=1)
            leave = rng.randrange(6) if rng.random() < 0.85 else None
            try:
                await hear(await conversation.say(rng.choice(TEXTS), max_seconds=SECONDS), leave)
                counts["survived" if leave is None else "cancelled"] += 1
            except BusyError:
                await asyncio.sleep(0.01)
            await conversation.aclose()


async def hear(utterance, leave):
    if leave == 0:
        return await utterance.cancel()
    heard = 0
    async for _ in utterance:
        heard += 1
        if heard == leave:
            return None


@pytest.mark.timeout(900)
@pytest.mark.parametrize("cancels", [60, pytest.param(1000, marks=pytest.mark.soak)])
async def test_cancels_over_the_network_leave_slots_free_and_survivors_exact(cancels):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    checkpoint = await asyncio.to_thread(small_checkpoint, 6, context=128, codebooks=3)
    expected = {text: alone(checkpoint, text, 6) for text in TEXTS}
    engine, counts = engine_of(checkpoint, slots=4, queue=4), Counter()
    async with serving(engine) as server:
        await asyncio.to_thread(engine.wait_ready, 120.0)
        callers = (caller(server.url, random.Random(seed + n), cancels, counts) for n in range(8))
        await asyncio.gather(*callers)
        await until(lambda: not engine.status().conversations)
        status = engine.status()
    compared = 0
    for text, codes in engine.heard:
        if codes:
            np.testing.assert_array_equal(np.stack(codes), expected[text][: len(codes)])
            compared += 1
    record("cancels", **counts, compared_with_solo=compared, codes_that_differ=0)
    assert (status.speaking, status.queued) == (0, 0)
    assert counts["survived"] > 0
    assert compared > cancels // 4


@pytest.mark.timeout(900)
@pytest.mark.parametrize("steps", [(1, 9), pytest.param(range(1, 51), marks=pytest.mark.soak)])
async def test_a_step_that_raises_is_a_typed_error_for_everybody(steps):
    checkpoint, late = await asyncio.to_thread(small_checkpoint, 3), []
    for step in steps:
        engine = engine_of(checkpoint, slots=4, queue=4)
        async with serving(engine) as server:
            await asyncio.to_thread(engine.wait_ready, 120.0)
            raised = raise_at(engine, step)
            async with EngineClient(server.url, timeout=120.0, connect_timeout=60.0) as client:
                conversations = [await client.conversation() for _ in range(9)]
                said = [await one.say("Some words. " * 12) for one in conversations[:8]]
                moments = await asyncio.gather(*map(failed_at, said))
                told = [moment - raised[0] for moment in moments if moment is not None]
                assert len(told) == len(said) or step > 30, "who spoke until now is told"
                assert told
                late += told
                with pytest.raises(EngineError):
                    await listen(await conversations[8].say("And who comes after."))
                with pytest.raises(EngineError):
                    await client.conversation()
            await until(lambda: not server.state.sessions)
    record(
        "raising_steps", steps=len(steps), clients=len(late), last_told_after_s=round(max(late), 3)
    )
    assert len(steps) < 50 or max(late) < 1.0


def raise_at(engine, step):
    """Steps from this number on raise; returns a list of the times at which they did."""
    runner, calls, raised = engine._rounds._runner, iter(range(1, 10_000)), []
    draw = runner.draw

    def breaking(*arguments):
        if next(calls) >= step:
            raised.append(time.monotonic())
            raise RuntimeError("device lost")
        return draw(*arguments)

    runner.draw = breaking
    return raised


async def failed_at(utterance):
    """The time of its error; None if it ended before."""
    try:
        await listen(utterance)
    except EngineError:
        return time.monotonic()
    return None
