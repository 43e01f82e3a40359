"""One frame for the first B rows: depth loop, sound, backbone on what was drawn.

The order makes the first frame cheap: reading the prompt leaves the hidden state from which the
first frame is drawn at once, and the backbone runs when its sound is already on the way. An end
frame goes through the backbone too, because the next turn of a conversation reads it.

All state is in tensors with one row per seat, written in place; nothing here waits for the host.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
        self.places = torch.arange(context + 1, device=device)

    def tensors(self) -> list[Tensor]:
        """Everything that belongs to a row, for moving one."""
        cursors = [self.hidden, self.position, self.codes, *self.sampling.tensors()]
        return [*self.keys, *self.values, *cursors]

    def bytes_per_position(self) -> int:
        return sum(t[0, :, 0].numel() * t.element_size() for t in (*self.keys, *self.values))


def draw_frame(weights: PackedCsm, state: FrameState, batch: int, candidates: int) -> Tensor:
    """The next frame of the first `batch` rows from their hidden states: codes [B, K].

    A row whose first K - 1 codes are all the end code has ended; its whole frame is then the end
    frame, as prompts write it.
    """
    hidden = state.hidden[:batch]
    sampler = Sampler(state.sampling, batch, weights.codebooks, candidates)
    first = sampler(hidden @ weights.lm_head, 0)
    codes = _depth_loop(weights, hidden, first, sampler)
    ended = (codes[:, :-1] == weights.eos_code).all(dim=1, keepdim=True)
    codes = torch.where(ended, weights.eos_code, codes)
    state.codes[:batch].copy_(codes)
    return codes


def _depth_loop(weights: PackedCsm, hidden: Tensor, first: Tensor, sampler: Sampler) -> Tensor:
    """hidden [B, C], first [B] -> codes [B, K]. Its keys and values live for one frame only."""
    batch, steps = hidden.shape[0], weights.codebooks
    layer = weights.depth_layers[0]
    shape = (len(weights.depth_layers), 2, batch, layer.kv_heads, steps, layer.head_dim)
    cache = hidden.new_empty(shape)
    start = hidden @ weights.depth_projector
    x = torch.stack([start, F.embedding(first, weights.depth_embedding)], dim=1)
    drawn = [first]
    for codebook in range(1, steps):
        begin = 0 if codebook == 1 else codebook
        y = _depth_step(weights, x, cache, begin)
        code = sampler(y @ weights.depth_heads[codebook - 1], codebook)
        drawn.append(code)
        if codebook + 1 < steps:
            x = F.embedding(code + codebook * weights.codes, weights.depth_embedding)[:, None]
    return torch.stack(drawn, dim=1)


def _depth_step(weights: PackedCsm, x: Tensor, cache: Tensor, begin: int) -> Tensor:
    """x [B, T, c] at depth positions begin.. -> the last position's output [B, c]"""
    end = begin + x.shape[1]
    cos, sin = weights.depth_cos[begin:end], weights.depth_sin[begin:end]
    mask = None
    if x.shape[1] > 1:
        mask = torch.ones(x.shape[1], end, dtype=torch.bool, device=x.device).tril(begin)[
            None, None
        ]
    for index, layer in enumerate(weights.depth_layers):
        q, k, v = layer.project(x, cos, sin)
        cache[index, 0, :, :, begin:end] = k
        cache[index, 1, :, :, begin:end] = v
        keys, values = cache[index, 0, :, :, :end], cache[index, 1, :, :, :end]
        x = layer.finish(x, layer.attend(q, keys, values, mask))
    return F.rms_norm(x[:, -1], weights.depth_norm.shape, weights.depth_norm, weights.depth_eps)


def read_frame(weights: PackedCsm, state: FrameState, batch: int, length: int) -> None:
    """The backbone reads the last frame of the first `batch` rows, seeing `length` positions."""
    position = state.position[:batch]
    x = weights.embed_frames(state.codes[:batch])[:, None]
    cos, sin = weights.cos[position][:, None, None], weights.sin[position][:, None, None]
    mask = (state.places[:length] <= position[:, None])[:, None, None]
    rows = torch.arange(batch, device=position.device)
    for index, layer in enumerate(weights.layers):
        keys, values = state.keys[index][:batch], state.values[index][:batch]
        q, k, v = layer.project(x, cos, sin)
        keys[rows, :, position] = k[:, :, 0]
        values[rows, :, position] = v[:, :, 0]
        y = layer.attend(q, keys[:, :, :length], values[:, :, :length], mask)
        x = layer.finish(x, y)
    x = F.rms_norm(x[:, 0], weights.norm.shape, weights.norm, weights.eps)
    state.hidden[:batch].copy_(x)
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
    state.hidden[row] = F.rms_norm(x[0, -1], weights.norm.shape, weights.norm, weights.eps)
    state.position[row] = end
