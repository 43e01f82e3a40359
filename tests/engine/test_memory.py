"""Memory does not grow with the number of utterances."""

from __future__ import annotations

import gc
import random
import resource
import sys
import tracemalloc

import pytest
import torch

from csm_tts_plugin.engine.frame import FrameState
from csm_tts_plugin.engine.weights import PackedCsm
from tests.engine.tools import ByHand, noise, say, voice
from tests.support.models import small_model

_SPARE = 96 * 1024
"""Bytes that may vary: the interpreter's caches, remains of the last conversations."""


class Caller:
    """Conversations that open, speak, are interrupted, change their voice and close, at random."""

    def __init__(self, hand: ByHand, seed: int) -> None:
        self.hand, self.rng = hand, random.Random(seed)
        self.spoken = 0

    def call(self) -> None:
        """One conversation of a few sentences."""
        engine, rng = self.hand.engine, self.rng
        number = rng.randrange(1_000_000)
        chosen = voice(f"caller {number}", 0.5, private=True, seed=number)
        conversation = engine.open(rng.choice([None, chosen]))
        for _ in range(rng.randint(1, 6)):
            heard = say(engine, conversation, "Yes, so it is.", max_seconds=0.24)
            if rng.random() < 0.3:
                self.hand.round()
                engine.cancel(heard.id)
            if rng.random() < 0.1:
                engine.set_voice(conversation, None)
            self.hand.run()
            self.spoken += 1
            assert heard.over
        engine.close(conversation)
        self.hand.run()


def held() -> tuple[int, int]:
    """Bytes that Python and numpy hold, and bytes in tensors."""
    gc.collect()
    tensors = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        if type(one) is torch.Tensor
    }
    return tracemalloc.get_traced_memory()[0], sum(tensors.values())


def resident() -> int:
    """The peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


@pytest.mark.timeout(3_000)
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.soak)])
def test_memory_is_flat_over_many_utterances(small, count, seed):
    hand = ByHand(small, slots=2, queue=2)
    caller = Caller(hand, seed)
    kept_voices = len(hand.rounds._voices)
    tracemalloc.start()
    try:
        while caller.spoken < count // 3:
            caller.call()
        before, resident_before = held(), resident()
        while caller.spoken < count:
            caller.call()
        after = held()
    finally:
        tracemalloc.stop()
    print(
        f"{caller.spoken} utterances: Python {before[0]} to {after[0]} bytes, tensors {before[1]} "
        f"to {after[1]}, most resident {resident_before} to {resident()}"
    )
    assert after[0] - before[0] < _SPARE
    assert after[1] == before[1]
    assert hand.free()
    assert len(hand.rounds._voices) == kept_voices
    assert not hand.engine._conversations


def test_a_position_takes_its_keys_and_values_and_nothing_else():
    """At CSM-1B's size these are 2 x 16 layers x 8 heads x 64 x 2 bytes = 32 KiB."""
    model = small_model(1)
    config = model.config
    state = FrameState(PackedCsm(model), rows=2, context=64)
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert state.bytes_per_position() == numbers * 4
    caches = state.memory.numel() * state.memory.element_size()
    assert caches == state.bytes_per_position() * 2 * (64 + 8)


def test_the_check_sees_one_turn_that_stays():
    tracemalloc.start()
    try:
        before = held()
        kept = noise(1.2)
        after = held()
    finally:
        tracemalloc.stop()
    assert after[0] - before[0] > _SPARE
    assert len(kept)
