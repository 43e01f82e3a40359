"""Streams join, leave and are cancelled; no stream ever gets a frame of another."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import FRAME_SAMPLES
from csm_tts_plugin.engine.api import Audio
from csm_tts_plugin.errors import BusyError
from tests.chaos.figures import record
from tests.server.conftest import serving
from tests.support import stand_in_engine
from tests.support.stand_in_engine import StandInEngine, frames_of

CALLERS = 24
SLOTS = 4


def marked(utterance):
    """A frame in which every sample is the number at the end of the text."""
    mark = int(utterance.text.rsplit(" ", 1)[1]) / 32768
    event = Audio(utterance.id, utterance.frame, np.full(FRAME_SAMPLES, mark, np.float32))
    utterance.frame += 1
    return event


class Caller:
    def __init__(self, url, rng, count, counts):
        self.url, self.rng, self.count, self.counts = url, rng, count, counts

    async def run(self):
        left = self.count
        while left:
            async with EngineClient(self.url, timeout=60.0) as client:
                conversation = await client.conversation()
                while left:
                    left -= await self.utter(conversation)
                    if self.rng.random() < 0.05:
                        # Leaves in the middle of a word; another client gets the slot next.
                        await conversation.say(self.text())
                        break

    def text(self):
        self.mark = self.counts["said"] = self.counts["said"] + 1
        return f"This is the one that is marked with {self.mark}"

    async def utter(self, conversation):
        """Listens to one utterance, or to its first frames; 1 if it had a slot."""
        text = self.text()
        mark, stop = self.mark, self.rng.random() < 0.3
        after, heard = self.rng.randrange(1, frames_of(text)), []
        try:
            async for chunk in await conversation.say(text):
                heard += [chunk]
                if stop and len(heard) == after:
                    break
        except BusyError:
            await asyncio.sleep(0.01)
            return 0
        samples = np.frombuffer(b"".join(chunk.pcm for chunk in heard), "<i2")
        self.counts["foreign"] += int(np.count_nonzero(samples != mark))
        assert len(heard) == (after if stop else frames_of(text))
        self.counts["slots"] += 1
        return 1


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_no_frame_of_another_stream_is_heard_over_many_slot_reuses(monkeypatch, count):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    monkeypatch.setattr(stand_in_engine._Utterance, "sound", marked)
    counts = {"said": 0, "foreign": 0, "slots": 0}
    each = -(-count // CALLERS)
    async with serving(StandInEngine(slots=SLOTS, queue=CALLERS, frame_s=0.0)) as server:
        callers = [
            Caller(server.url, random.Random(seed + n), each, counts) for n in range(CALLERS)
        ]
        await asyncio.gather(*(caller.run() for caller in callers))
        await server.settle()
    record("slot_reuse", slots_used=counts["slots"], foreign_samples=counts["foreign"])
    assert counts["slots"] >= count
    assert counts["foreign"] == 0
