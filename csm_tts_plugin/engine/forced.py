"""Logits of one frame for given codes, to compare two implementations of the frame step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .frame import draw_frame
from .steps import Drawing, Steps
from .weights import PackedCsm

if TYPE_CHECKING:
    from .frame import Batch, FrameState


def forced_logits(steps: Steps, state: FrameState, batch: Batch, codes: Tensor) -> Tensor:
    """[K, B, codes]: the logits from which the codes [B, K] of the next frame would be drawn."""
    drawing = _ForcedDrawing(steps.weights, codes)
    draw_frame(cast(Steps, _Forced(steps, drawing)), state, batch, 0)
    return torch.stack(drawing.logits)


class _ForcedDrawing(Drawing):
    """Uses given codes instead of drawing, and keeps the logits."""

    def __init__(self, weights: PackedCsm, codes: Tensor) -> None:
        self._weights, self._forced = weights, codes
        self.logits: list[Tensor] = []

    def choose(self, logits: Tensor, codebook: int) -> Tensor | None:
        self.logits.append(logits.float().clone())
        embeddings = self._weights.depth_embeddings
        code = self._forced[:, codebook]
        return embeddings[codebook][code] if codebook < len(embeddings) else None

    def codes(self) -> Tensor:
        return self._forced

    def sound(self) -> Tensor:
        return torch.ones_like(self._forced[:, 0], dtype=torch.bool)


class _Forced:
    """Steps that use given codes."""

    def __init__(self, steps: Steps, drawing: Drawing) -> None:
        self._steps, self._drawing = steps, drawing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._steps, name)

    def at(self, batch: int) -> _Forced:
        return self

    def drawing(self, state: FrameState, batch: Batch, candidates: int) -> Drawing:
        return self._drawing

    def draw_frame(self, *given: Any) -> tuple[Tensor, Tensor]:
        # Not the inner object's method, which would call its own `drawing`.
        return Steps.draw_frame(cast(Steps, self), *given)
