"""One frame for B rows: depth decoder, then the backbone on the drawn codes; the codec runs beside.

The order gives an early first frame: prefill leaves the hidden state from which the first frame is
drawn at once, and the backbone runs when its audio is already on the way. An end frame goes through
the backbone too, because it is part of the next turn's context.

All state is in tensors with one row per conversation, written in place; nothing waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .sampling import SamplingRows
from .steps import DepthCache, Steps, bias_of
from .weights import PackedCsm


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of a step: the first `count` ones, or those in `index` [count]."""

    count: int
    index: Tensor | None = None

    def take(self, state: Tensor) -> Tensor:
        """[rows, ...] -> [count, ...]; a view where these are the first rows"""
        return state[: self.count] if self.index is None else state.index_select(0, self.index)

    def put(self, state: Tensor, value: Tensor) -> None:
        """[count, ...] into [rows, ...]"""
        if self.index is None:
            state[: self.count].copy_(value)
        else:
            state.index_copy_(0, self.index, value)

    def add_one(self, state: Tensor) -> None:
        """Add 1 to these rows of `state` [rows]. A row that occurs twice is increased once."""
        if self.index is None:
            state[: self.count] += 1
        else:
            state.index_copy_(0, self.index, state.index_select(0, self.index) + 1)


class FrameState:
    """Keys, values and cursors of all rows.

    `keys` and `values`: one [rows, kv_heads, n, D] per layer, views of one tensor; n is `context`
    plus one position to which padding rows write, rounded up to a multiple of 8. `hidden`
    [rows, C]: the backbone's last output, from which the next frame is drawn. `position` [rows]:
    number of positions read. `codes` [rows, K]: the last frame.
    """

    def __init__(self, weights: PackedCsm, rows: int, context: int) -> None:
        device, dtype = weights.lm_head.device, weights.dtype
        layer = weights.layers[0]
        self.rows, self.context, self.length = rows, context, eights(context + 1)
        shape = (len(weights.layers), 2, rows, layer.kv_heads, self.length, layer.head_dim)
        self.memory = torch.zeros(shape, dtype=dtype, device=device)
        self.keys, self.values = list(self.memory[:, 0]), list(self.memory[:, 1])
        self.hidden = torch.zeros(rows, weights.lm_head.shape[0], dtype=dtype, device=device)
        self.position = torch.zeros(rows, dtype=torch.int64, device=device)
        self.codes = torch.zeros(rows, weights.codebooks, dtype=torch.int64, device=device)
        self.sampling = SamplingRows.empty(rows, device)
        self.places = torch.arange(max(self.length, rows), device=device)
        self._depth: dict[tuple[type, int], DepthCache] = {}

    def tensors(self, length: int | None = None) -> list[Tensor]:
        """All tensors that belong to the rows, with rows as the first dimension, for moving one.
        `length`: only so many positions of keys and values.
        """
        cursors = [self.hidden, self.position, self.codes, *self.sampling.tensors()]
        return [self.memory[..., :length, :].movedim(2, 0), *cursors]

    def depth(self, steps: Steps, batch: int) -> DepthCache:
        """The depth decoder's keys and values of one frame for `batch` rows."""
        key = type(steps), batch
        if key not in self._depth:
            self._depth[key] = steps.depth_cache(batch)
        return self._depth[key]

    def bytes_per_position(self) -> int:
        return self.memory[:, :, 0, :, 0].numel() * self.memory.element_size()


def draw_frame(
    steps: Steps,
    state: FrameState,
    batch: Batch,
    candidates: int,
    shape_logits: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw the next frame of the rows of `batch` from their hidden states. Returns codes [B, K] and
    whether all logits of a row were finite, bool [B]; if not, its codes are meaningless.

    A row whose first K - 1 codes are all the end code has ended; its whole frame is then the end
    frame, as in prompts. `candidates`: the largest top-k among the rows, 0 if all are greedy.
    `shape_logits` may change codebook 0's logits [B, codes].
    """
    return steps.at(batch.count).draw_frame(state, batch, candidates, shape_logits)


def read_frame(steps: Steps, state: FrameState, batch: Batch, length: int) -> None:
    """Run the backbone on the last frame of the rows of `batch`, with attention over `length`
    positions, a multiple of 8.
    """
    steps.at(batch.count).read_frame(state, batch, length)


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` positions of a prompt for `row`, which holds `start` positions already."""

    row: int
    start: int
    count: int


def read_prompts(
    weights: PackedCsm, state: FrameState, pieces: Sequence[Piece], positions: Tensor
) -> None:
    """Prefill `positions` [n, K + 1], the concatenated positions of all pieces.

    Matrix products run over all of them at once, attention over each piece by itself. The pieces'
    rows are distinct.
    """
    x = weights.embed_positions(positions)[None]
    spans = [slice(piece.start, piece.start + piece.count) for piece in pieces]
    cos = torch.cat([weights.cos[span] for span in spans])
    sin = torch.cat([weights.sin[span] for span in spans])
    biases = [_causal_bias(weights, state, span) for span in spans]
    sizes = [piece.count for piece in pieces]
    for layer, all_keys, all_values in zip(weights.layers, state.keys, state.values, strict=True):
        q, k, v = (torch.split(part, sizes, dim=2) for part in layer.project(x, cos, sin))
        attended = []
        for number, (piece, span) in enumerate(zip(pieces, spans, strict=True)):
            keys, values = all_keys[piece.row, None], all_values[piece.row, None]
            keys[:, :, span] = k[number]
            values[:, :, span] = v[number]
            seen = keys[:, :, : span.stop], values[:, :, : span.stop]
            attended.append(layer.attend(q[number], *seen, biases[number]))
        x = layer.finish(x, attended[0] if len(pieces) == 1 else torch.cat(attended, dim=1))
    last = 0
    for piece, span in zip(pieces, spans, strict=True):
        last += piece.count
        state.hidden[piece.row] = weights.norm(x[0, last - 1])
        state.position[piece.row].fill_(span.stop)


def _causal_bias(weights: PackedCsm, state: FrameState, span: slice) -> Tensor:
    """The causal bias of positions `span` over [0, span.stop), for the concatenated queries of a
    group of heads: [1, 1, group * n, span.stop].

    Its rows are aligned to multiples of 8, which CUDA kernels require; otherwise each layer would
    copy it.
    """
    layer = weights.layers[0]
    seen = state.places[: eights(span.stop)] <= state.places[span, None]
    bias = bias_of(seen, weights.dtype).repeat(layer.heads // layer.kv_heads, 1)
    return bias[None, None, :, : span.stop]


def eights(length: int) -> int:
    """`length` rounded up to a multiple of 8."""
    return -(-length // 8) * 8
