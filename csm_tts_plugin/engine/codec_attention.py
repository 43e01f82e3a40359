"""Mimi's decoder transformer, with a ring buffer of keys and values for each utterance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codec_layers import Rows
from .layers import apply, fuse


@dataclass(frozen=True, slots=True)
class Step:
    """Inputs that all layers of one call share.

    `slots` [B, T]: places in the ring; `cos` and `sin` [B, 1, T, D], the first half of the sines
    negative (what `rotate` in layers.py negates in every layer); `mask` [B, 1, T, ring], 0
    where a position may look and -inf elsewhere; `begins`: the first position of each item of the
    batch, where the host knows it.
    """

    rows: Rows
    slots: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor
    begins: tuple[int, ...] | None


class WindowAttention(nn.Module):
    """Attention over the last `window` positions."""

    keys: Tensor
    values: Tensor

    def __init__(self, source: Any, rows: int, ring: int) -> None:
        super().__init__()
        self.qkv, self.qkv_bias = fuse(source.q_proj, source.k_proj, source.v_proj)
        self.out, self.out_bias = fuse(source.o_proj)
        self.heads, self.kv_heads = source.num_heads, source.num_key_value_heads
        self.head_dim, self.ring = source.head_dim, ring
        shape = (rows, self.kv_heads, ring, self.head_dim)
        for name in ("keys", "values"):
            empty = torch.zeros(shape, dtype=self.qkv.dtype, device=self.qkv.device)
            self.register_buffer(name, empty, persistent=False)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        batch, length, width = x.shape
        qkv = apply(x.view(-1, width), self.qkv, self.qkv_bias)
        qkv = qkv.view(batch, length, -1, self.head_dim).transpose(1, 2)
        qk, v = torch.split(qkv, [self.heads + self.kv_heads, self.kv_heads], dim=1)
        qk = torch.addcmul(qk * step.cos, qk.roll(self.head_dim // 2, dims=-1), step.sin)
        q, k = torch.split(qk, [self.heads, self.kv_heads], dim=1)
        look = self._look if step.begins is None else self._look_by_row
        y = look(q, k, v, step).transpose(1, 2).reshape(batch * length, -1)
        return apply(y, self.out, self.out_bias).view(batch, length, -1)

    def _look(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """Attention of all rows at once over the whole ring; can be captured in a CUDA graph."""
        index, slots = step.rows.index[:, None], step.slots
        self.keys[index, :, slots] = k.transpose(1, 2)
        self.values[index, :, slots] = v.transpose(1, 2)
        keys, values = self.keys[step.rows.index], self.values[step.rows.index]
        return self._attend(q, keys, values, step.mask)

    def _look_by_row(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """Attention row by row over the positions each row holds: no copy of the keys, and little
        work for short utterances.
        """
        assert step.rows.numbers is not None
        assert step.begins is not None
        parts = []
        for item, (row, begin) in enumerate(zip(step.rows.numbers, step.begins, strict=True)):
            one = slice(item, item + 1)
            keys, values = self.keys[row : row + 1], self.values[row : row + 1]
            self._keep(keys, k[one], begin)
            self._keep(values, v[one], begin)
            seen = min(begin + k.shape[2], self.ring)
            mask = step.mask[one, :, :, :seen]
            parts.append(self._attend(q[one], keys[:, :, :seen], values[:, :, :seen], mask))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _keep(self, ring: Tensor, new: Tensor, begin: int) -> None:
        """Writes `new` [1, heads, T, D] into the ring from position `begin` on."""
        length, at = new.shape[2], begin % self.ring
        fits = min(length, self.ring - at)
        ring[:, :, at : at + fits] = new[:, :, :fits]
        if fits < length:
            ring[:, :, : length - fits] = new[:, :, fits:]

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        if self.heads > self.kv_heads:
            keys = keys.repeat_interleave(self.heads // self.kv_heads, dim=1)
            values = values.repeat_interleave(self.heads // self.kv_heads, dim=1)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


class WindowLayer(nn.Module):
    def __init__(self, source: Any, rows: int, ring: int) -> None:
        super().__init__()
        self.attention = WindowAttention(source.self_attn, rows, ring)
        self.norm1, self.norm2 = source.input_layernorm, source.post_attention_layernorm
        self.scale1 = source.self_attn_layer_scale.scale
        self.scale2 = source.mlp_layer_scale.scale
        self.up, self.up_bias = fuse(source.mlp.fc1)
        self.down, self.down_bias = fuse(source.mlp.fc2)
        self.activation = source.mlp.activation_fn

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = torch.addcmul(x, self.attention(self.norm1(x), step), self.scale1)
        y = self.norm2(x).view(-1, x.shape[-1])
        y = apply(self.activation(apply(y, self.up, self.up_bias)), self.down, self.down_bias)
        return torch.addcmul(x, y.view(x.shape), self.scale2)


class WindowTransformer(nn.Module):
    """A stack of `WindowAttention` layers. Positions count from each utterance's beginning."""

    inv_freq: Tensor
    places: Tensor

    def __init__(self, source: Any, config: Any, rows: int, max_length: int) -> None:
        super().__init__()
        self.window = config.sliding_window
        self.ring = math.ceil((self.window + max_length - 1) / 8) * 8
        self.layers = nn.ModuleList(WindowLayer(layer, rows, self.ring) for layer in source.layers)
        inv_freq = source.rotary_emb.inv_freq.float()
        inv_freq = torch.cat([-inv_freq, inv_freq])
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        places = torch.arange(self.ring, device=inv_freq.device)
        self.register_buffer("places", places, persistent=False)

    def forward(
        self, x: Tensor, rows: Rows, starts: Tensor, begins: tuple[int, ...] | None
    ) -> Tensor:
        """[B, T, C] -> [B, T, C], T at most the `max_length` of construction.

        `starts` [B]: number of positions each row has processed, on the device; `begins`: the same
        on the host, if known there.
        """
        steps = starts[:, None] + self.places[: x.shape[1]]
        angles = (steps[..., None].float() * self.inv_freq)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        step = Step(rows, steps % self.ring, cos, sin, self._mask(steps, x.dtype), begins)
        for layer in self.layers:
            x = layer(x, step)
        return x

    def _mask(self, steps: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, T] positions about to be written -> [B, 1, T, ring], 0 where they may look"""
        newest = steps[:, -1:]
        held = newest - (newest - self.places) % self.ring
        age = steps[:, :, None] - held[:, None, :]
        hidden = (age < 0) | (age >= self.window) | (held[:, None, :] < 0)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill_(hidden, float("-inf"))[:, None]
