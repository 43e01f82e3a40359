"""Decides whether the C kernels are used: if they are right and not slower than PyTorch here.

Both compute the same frames of the model's own weights: all logits for the same codes, the codes
that follow from the logits, and the backbone's output after them. Then both are timed in turns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..forced import forced_logits
from ..frame import Batch, FrameState
from ..steps import Steps
from ..weights import PackedCsm
from .build import BuildError, shared
from .layout import packed_bytes
from .memory import near, no_slower
from .steps import NativeSteps

_LARGEST = 2 << 30
"""Bytes of weights up to which a second copy of them is kept, in the kernels' order. Larger models
do not speak in real time on a CPU."""
_ERROR = 1e-3
"""Largest accepted difference, relative to the largest value: rounding gives less than 1e-5."""
_ROWS = 16
_POSITIONS = 64
TRIED = 128
"""Positions that `select` writes to, at most; more would make the memory of all rows resident."""


def select(plain: Steps, state: FrameState) -> tuple[NativeSteps | None, str]:
    """The kernels, or None, and the reason for the log. Overwrites the rows."""
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
        if not no_slower(_frame(own, state, size), _frame(plain, state, size)):
            return None, f"PyTorch is faster for a batch of {size}"
    return own, "C kernels"


def _fill(weights: PackedCsm, state: FrameState) -> None:
    """Rows as in the middle of utterances, with random contents."""
    generator = torch.Generator().manual_seed(1)
    used = min(_POSITIONS, state.context - 1)
    state.memory[..., : used + 1, :].normal_(generator=generator)
    state.hidden.normal_(generator=generator)
    state.codes.random_(0, weights.codes, generator=generator)
    state.position.fill_(used)
    state.sampling.temperature.fill_(0.0)
    state.sampling.top_k.fill_(min(50, weights.codes))


def _same(own: NativeSteps, plain: Steps, state: FrameState, batch: Batch) -> bool:
    codes = batch.take(state.codes).clone()
    theirs = forced_logits(plain, state, batch, codes).transpose(0, 1)
    if not near(own.told(state, batch), theirs, _ERROR):
        return False
    drawn, sound = own.draw_frame(state, batch, 0)
    best = own.told(state, batch).argmax(dim=-1)
    ended = (drawn[:, :-1] == own.weights.eos_code).all(dim=1)
    if not (sound.all() and torch.equal(best[~ended], drawn[~ended])):
        return False
    length = min(TRIED, state.length)
    before = [tensor.clone() for tensor in state.tensors(length)]
    plain.read_frame(state, batch, length)
    right = [tensor[: batch.count].clone() for tensor in (state.tensors(length)[0], state.hidden)]
    for tensor, value in zip(state.tensors(length), before, strict=True):
        tensor.copy_(value)
    own.read_frame(state, batch, length)
    mine = [tensor[: batch.count] for tensor in (state.tensors(length)[0], state.hidden)]
    return all(near(a, b, _ERROR) for a, b in zip(mine, right, strict=True))


def _frame(steps: Steps, state: FrameState, size: int) -> Callable[[], None]:
    """One sampled frame of the first rows."""
    length = min(TRIED, state.length)

    def work() -> None:
        state.position.fill_(min(_POSITIONS, state.context - 1))
        state.sampling.temperature.fill_(0.9)
        steps.draw_frame(state, Batch(size), min(50, steps.weights.codes))
        steps.read_frame(state, Batch(size), length)

    return work
