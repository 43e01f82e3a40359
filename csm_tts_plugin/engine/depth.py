"""The depth decoder's loop over the codebooks of one frame.

It dominates the time of a frame: 31 dependent passes at CSM-1B's size. Its keys and values live for
one frame, in memory that is allocated and divided into views once per batch size, so that a pass
costs little more than its matrix products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .steps import DepthCache, Drawing, Steps


def draw_depth(steps: Steps, cache: DepthCache, hidden: Tensor, x: Tensor, draw: Drawing) -> None:
    """Draw codebooks 1 and up, given the backbone's output `hidden` [B, C] and `x` [B, c], the
    depth decoder's embedding of codebook 0's code.
    """
    y = steps.first_pass(cache, hidden @ steps.weights.depth_projector, x)
    for codebook in range(1, steps.weights.codebooks):
        code = draw.choose(steps.depth_head(y, codebook), codebook)
        if code is not None:
            y = steps.depth_pass(cache, code, codebook + 1)
