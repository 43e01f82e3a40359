"""One frame for the first B rows: depth loop, sound, backbone on what was drawn.

The order makes the first frame cheap: reading the prompt leaves the hidden state from which the
first frame is drawn at once, and the backbone runs when its sound is already on the way. An end
frame goes through the backbone too, because the next turn of a conversation reads it.

All state is in tensors with one row per seat, written in place; nothing here waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .depth import DepthCache, draw_depth
from .layers import rotate
from .sampling import Sampler, SamplingRows
from .weights import PackedCsm


class FrameState:
    """Keys, values and cursors of all rows.

    `keys` and `values`: one [rows, kv_heads, context + 1, D] per layer; the last position takes
    what rows without work write. `hidden` [rows, C]: the backbone's last output, from which the
    next frame is drawn. `position` [rows]: positions read so far. `codes` [rows, K]: the last
    frame.
    """

    def __init__(self, weights: PackedCsm, rows: int, context: int) -> None:
        device, dtype = weights.lm_head.device, weights.dtype
        layer = weights.layers[0]
        shape = (rows, layer.kv_heads, context + 1, layer.head_dim)
        count = len(weights.layers)
        self.rows, self.context = rows, context
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(count)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(count)]
        self.hidden = torch.zeros(rows, weights.lm_head.shape[0], dtype=dtype, device=device)
        self.position = torch.zeros(rows, dtype=torch.int64, device=device)
        self.codes = torch.zeros(rows, weights.codebooks, dtype=torch.int64, device=device)
        self.sampling = SamplingRows.empty(rows, device)
        self.places = torch.arange(max(context + 1, rows), device=device)
        self._weights = weights
        self._depth: dict[int, DepthCache] = {}

    def tensors(self) -> list[Tensor]:
        """Everything that belongs to a row, for moving one."""
        cursors = [self.hidden, self.position, self.codes, *self.sampling.tensors()]
        return [*self.keys, *self.values, *cursors]

    def depth(self, batch: int) -> DepthCache:
        """Where the depth decoder keeps one frame's keys and values for `batch` rows."""
        if batch not in self._depth:
            self._depth[batch] = DepthCache(self._weights, batch)
        return self._depth[batch]

    def bytes_per_position(self) -> int:
        return sum(t[0, :, 0].numel() * t.element_size() for t in (*self.keys, *self.values))


def draw_frame(
    weights: PackedCsm,
    state: FrameState,
    batch: int,
    candidates: int,
    shape_logits: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The next frame of the first `batch` rows from their hidden states: codes [B, K], and whether
    a row's logits were all numbers [B]; where they were not, its codes mean nothing.

    A row whose first K - 1 codes are all the end code has ended; its whole frame is then the end
    frame, as prompts write it. `shape_logits` may change codebook 0's logits [B, codes].
    """
    hidden = state.hidden[:batch]
    sampler = Sampler(state.sampling, batch, weights.codebooks, weights.codes, candidates)
    logits = hidden @ weights.lm_head
    first = sampler(logits if shape_logits is None else shape_logits(logits), 0)
    codes = draw_depth(weights, state.depth(batch), hidden, first, sampler)
    ended = (codes[:, :-1] == weights.eos_code).all(dim=1, keepdim=True)
    codes = codes.masked_fill(ended, weights.eos_code)
    state.codes[:batch].copy_(codes)
    return codes, sampler.sound()


def read_frame(weights: PackedCsm, state: FrameState, batch: int, length: int) -> None:
    """The backbone reads the last frame of the first `batch` rows, seeing `length` positions."""
    position = state.position[:batch]
    x = weights.embed_frames(state.codes[:batch])
    # Rows that only pad the batch may stand anywhere; they write where nobody looks.
    place = position.clamp(max=state.context)
    cos, sin = weights.cos[place][:, None], weights.sin[place][:, None]
    mask = (state.places[:length] <= position[:, None])[:, None, None]
    rows = state.places[:batch]
    for layer, all_keys, all_values in zip(weights.layers, state.keys, state.values, strict=True):
        keys, values = all_keys[:batch], all_values[:batch]
        qk, v = layer.project_one(x)
        qk = rotate(qk, cos, sin)
        keys[rows, :, place] = qk[:, layer.heads :]
        values[rows, :, place] = v
        q = qk[:, : layer.heads]
        x = layer.finish(x, layer.attend_one(q, keys[:, :, :length], values[:, :, :length], mask))
    state.hidden[:batch].copy_(weights.norm(x))
    position += 1
    state.sampling.frame[:batch] += 1


def read_prompt(
    weights: PackedCsm, state: FrameState, row: int, start: int, positions: Tensor
) -> None:
    """The backbone reads `positions` [n, K + 1] into `row`, whose first `start` positions are
    valid.
    """
    count = positions.shape[0]
    end = start + count
    x = weights.embed_positions(positions)[None]
    cos, sin = weights.cos[start:end], weights.sin[start:end]
    mask = state.places[:end] <= state.places[start:end, None]
    for index, layer in enumerate(weights.layers):
        keys, values = state.keys[index][row : row + 1], state.values[index][row : row + 1]
        q, k, v = layer.project(x, cos, sin)
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        y = layer.attend(q, keys[:, :, :end], values[:, :, :end], mask[None, None])
        x = layer.finish(x, y)
    state.hidden[row] = weights.norm(x[0, -1])
    state.position[row] = end
