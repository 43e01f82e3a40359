"""Decides whether the C kernels are used: if they are right and faster than PyTorch here.

Both compute the same frames of the model's own weights: the logits of the depth decoder for the
same codes, and the backbone's output after them. Then both are timed in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..forced import forced_logits
from ..frame import Batch, FrameState
from ..steps import Steps
from ..weights import PackedCsm
from .build import BuildError, shared
from .layout import packed_bytes
from .steps import NativeSteps

_LARGEST = 2 << 30
"""Bytes of weights up to which a second copy of them is kept, in the kernels' order. Larger models
do not speak in real time on a CPU."""
_ERROR = 1e-3
"""Largest accepted difference, relative to the largest value: rounding gives less than 1e-5."""
_ROWS = 8
_TURNS = 3
_POSITIONS = 64
TRIED = 128
"""Positions that `select` writes to, at most; more would make the memory of all rows resident."""


def select(plain: Steps, state: FrameState) -> tuple[NativeSteps | None, str]:
    """The kernels, or None, and what to tell about it in a few words. Overwrites the rows."""
    weights = plain.weights
    if packed_bytes(weights) > _LARGEST:
        return None, "the weights are too large for a second copy"
    try:
        own = NativeSteps(weights, state, shared())
    except (BuildError, ValueError) as error:
        return None, str(error)
    count = min(_ROWS, state.rows)
    _fill(weights, state)
    if not _same(own, plain, state, Batch(count)):
        return None, "their results differ from PyTorch's"
    for size in sorted({1, count}):
        mine, theirs = _times(own, plain, state, Batch(size))
        if mine > theirs:
            return None, f"they are slower for {size} rows"
    return own, "C kernels"


def _fill(weights: PackedCsm, state: FrameState) -> None:
    """Rows as in the middle of utterances, with random contents."""
    generator = torch.Generator().manual_seed(1)
    used = min(_POSITIONS, state.context - 1)
    state.memory[..., : used + 1, :].normal_(generator=generator)
    state.hidden.normal_(generator=generator)
    state.codes.random_(0, weights.codes, generator=generator)
    state.position.fill_(used)
    state.sampling.temperature.fill_(0.9)
    state.sampling.top_k.fill_(min(50, weights.codes))


def _same(own: NativeSteps, plain: Steps, state: FrameState, batch: Batch) -> bool:
    codes = batch.take(state.codes).clone()
    theirs = forced_logits(plain, state, batch, codes)[1:].transpose(0, 1)
    if not _near(own.told(state, batch), theirs):
        return False
    length = min(TRIED, state.length)
    before = [tensor.clone() for tensor in state.tensors(length)]
    plain.read_frame(state, batch, length)
    right = [tensor[: batch.count].clone() for tensor in (state.tensors(length)[0], state.hidden)]
    for tensor, value in zip(state.tensors(length), before, strict=True):
        tensor.copy_(value)
    own.read_frame(state, batch, length)
    mine = [tensor[: batch.count] for tensor in (state.tensors(length)[0], state.hidden)]
    return all(_near(a, b) for a, b in zip(mine, right, strict=True))


def _near(mine: Tensor, theirs: Tensor) -> bool:
    # A difference of NaN is not less than anything.
    return bool((mine - theirs).abs().max() <= _ERROR * theirs.abs().max())


def _times(own: Steps, plain: Steps, state: FrameState, batch: Batch) -> tuple[float, float]:
    """Seconds of a frame, the least of a few turns each."""
    length = min(TRIED, state.length)

    def frame(steps: Steps) -> Callable[[], object]:
        def work() -> None:
            steps.draw_frame(state, batch, min(50, steps.weights.codes))
            steps.read_frame(state, batch, length)
            state.position.fill_(min(_POSITIONS, state.context - 1))

        return work

    taken: list[list[float]] = [[], []]
    for _ in range(_TURNS):
        for times, work in zip(taken, (frame(own), frame(plain)), strict=True):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
    return min(taken[0]), min(taken[1])
