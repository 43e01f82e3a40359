"""Mimi's decoder with memory: codes of any number of frames in, exactly their samples out.

transformers decodes every call from silence, so chunks of one utterance do not fit together. Here
each layer keeps what it needs of the past in one batch-shaped state, row by row, so that any split
of an utterance into chunks gives the samples of one decode of the whole. Rows are independent: a
batch of B works on the first B rows of every state, in place, so that a CUDA graph can replay it.

Knows nothing of text, streams or devices' names.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codec_parts import decoder_parts
from .layers import rotate


class CausalConv(nn.Module):
    """A causal convolution of stride 1 that remembers its last inputs."""

    past: Tensor

    def __init__(self, source: Any, rows: int) -> None:
        super().__init__()
        conv: nn.Conv1d = source.conv
        self.conv = conv
        self.memory = (conv.kernel_size[0] - 1) * conv.dilation[0]
        weight = conv.weight
        past = torch.zeros(
            rows, conv.in_channels, self.memory, dtype=weight.dtype, device=weight.device
        )
        self.register_buffer("past", past, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, T] -> [B, out, T]"""
        if self.memory:
            past = self.past[: x.shape[0]]
            x = torch.cat([past, x], dim=-1)
            past.copy_(x[..., x.shape[-1] - self.memory :])
        return self.conv(x)  # type: ignore[no-any-return]


class CausalUpsample(nn.Module):
    """A transposed convolution whose overlap with the next input is kept until that comes."""

    tail: Tensor

    def __init__(self, source: Any, rows: int) -> None:
        super().__init__()
        conv: nn.ConvTranspose1d = source.conv
        self.weight, self.bias, self.groups = conv.weight, conv.bias, conv.groups
        self.stride = conv.stride[0]
        self.overlap = conv.kernel_size[0] - self.stride
        tail = torch.zeros(
            rows,
            conv.out_channels,
            self.overlap,
            dtype=conv.weight.dtype,
            device=conv.weight.device,
        )
        self.register_buffer("tail", tail, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, T] -> [B, out, T * stride]"""
        y = F.conv_transpose1d(x, self.weight, None, stride=self.stride, groups=self.groups)
        tail = self.tail[: x.shape[0]]
        y = y + F.pad(tail, (0, y.shape[-1] - self.overlap))
        length = x.shape[-1] * self.stride
        tail.copy_(y[..., length:])
        y = y[..., :length]
        return y if self.bias is None else y + self.bias[:, None]


class ResnetBlock(nn.Module):
    def __init__(self, source: Any, rows: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(_streaming(layer, rows) for layer in source.block)
        shortcut = source.shortcut
        self.shortcut = _streaming(shortcut, rows) if hasattr(shortcut, "conv") else shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.block:
            y = layer(y)
        return self.shortcut(x) + y  # type: ignore[no-any-return]


def _streaming(layer: Any, rows: int) -> nn.Module:
    """The streaming twin of one layer of the SEANet decoder; it shares the weights."""
    if hasattr(layer, "block"):
        return ResnetBlock(layer, rows)
    conv = getattr(layer, "conv", None)
    if isinstance(conv, nn.ConvTranspose1d):
        return CausalUpsample(layer, rows)
    if isinstance(conv, nn.Conv1d):
        return CausalConv(layer, rows)
    return layer  # type: ignore[no-any-return]


class WindowAttention(nn.Module):
    """Attention over the last `window` positions, kept in a ring of keys and values per row."""

    keys: Tensor
    values: Tensor

    def __init__(self, source: Any, rows: int, ring: int) -> None:
        super().__init__()
        self.qkv = nn.Parameter(
            torch.cat([source.q_proj.weight, source.k_proj.weight, source.v_proj.weight]),
            requires_grad=False,
        )
        self.out = source.o_proj
        self.heads, self.head_dim = source.num_heads, source.head_dim
        self.groups = source.num_heads // source.num_key_value_heads
        shape = (rows, source.num_key_value_heads, ring, source.head_dim)
        for name in ("keys", "values"):
            empty = torch.zeros(shape, dtype=self.qkv.dtype, device=self.qkv.device)
            self.register_buffer(name, empty, persistent=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, C]; cos and sin [B, 1, T, D]; slots [B, T] places in the ring; mask [B, 1, T,
        ring]
        """
        batch, length, _ = x.shape
        kv_heads = self.heads // self.groups
        qkv = F.linear(x, self.qkv).view(batch, length, -1, self.head_dim).transpose(1, 2)
        q, k, v = torch.split(qkv, [self.heads, kv_heads, kv_heads], dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        index = slots[:, None, :, None].expand(-1, kv_heads, -1, self.head_dim)
        keys = self.keys[:batch].scatter_(2, index, k)
        values = self.values[:batch].scatter_(2, index, v)
        if self.groups > 1:
            keys = keys.repeat_interleave(self.groups, dim=1)
            values = values.repeat_interleave(self.groups, dim=1)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class WindowLayer(nn.Module):
    def __init__(self, source: Any, rows: int, ring: int) -> None:
        super().__init__()
        self.attention = WindowAttention(source.self_attn, rows, ring)
        self.norm1, self.norm2 = source.input_layernorm, source.post_attention_layernorm
        self.scale1, self.scale2 = source.self_attn_layer_scale, source.mlp_layer_scale
        self.mlp = source.mlp

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
        x = x + self.scale1(self.attention(self.norm1(x), cos, sin, slots, mask))
        return x + self.scale2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class WindowTransformer(nn.Module):
    """Mimi's decoder transformer. Positions count from each row's own beginning."""

    inv_freq: Tensor
    position: Tensor
    places: Tensor

    def __init__(self, source: Any, config: Any, rows: int, max_length: int) -> None:
        super().__init__()
        self.window = config.sliding_window
        self.ring = math.ceil((self.window + max_length - 1) / 8) * 8
        self.layers = nn.ModuleList(WindowLayer(layer, rows, self.ring) for layer in source.layers)
        inv_freq = source.rotary_emb.inv_freq.float()
        self.register_buffer("inv_freq", inv_freq.clone(), persistent=False)
        position = torch.zeros(rows, dtype=torch.int64, device=inv_freq.device)
        self.register_buffer("position", position, persistent=False)
        places = torch.arange(self.ring, device=inv_freq.device)
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]; T at most the `max_length` of construction"""
        batch, length, _ = x.shape
        start = self.position[:batch]
        steps = start[:, None] + self.places[:length]
        angles = steps[..., None].float() * self.inv_freq
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        mask = self._mask(steps)
        slots = steps % self.ring
        for layer in self.layers:
            x = layer(x, cos, sin, slots, mask)
        start += length
        out: Tensor = x
        return out

    def _mask(self, steps: Tensor) -> Tensor:
        """[B, T] positions about to be written -> [B, 1, T, ring], True where they may look"""
        newest = steps[:, -1:]
        held = newest - (newest - self.places) % self.ring
        age = steps[:, :, None] - held[:, None, :]
        seen: Tensor = (age >= 0) & (age < self.window) & (held[:, None, :] >= 0)
        return seen[:, None]


class MimiDecoder(nn.Module):
    """Codes to sound for up to `rows` utterances at once; shares its weights with `codec`."""

    table: Tensor
    offsets: Tensor

    def __init__(self, codec: Any, rows: int, max_frames: int = 1) -> None:
        """
        `codec`: a MimiModel, in the dtype and on the device to decode with. `max_frames`: the
        longest chunk one call may decode.
        """
        super().__init__()
        parts = decoder_parts(codec)
        config = codec.config
        self.max_frames = max_frames
        self.codebooks = config.num_quantizers
        self.codebook_size = config.codebook_size
        self.register_buffer("table", _codebook_table(parts.quantizer), persistent=False)
        offsets = torch.arange(self.codebooks, device=codec.device) * self.codebook_size
        self.register_buffer("offsets", offsets, persistent=False)
        self.upsample = None if parts.upsample is None else CausalUpsample(parts.upsample, rows)
        factor = 1 if self.upsample is None else self.upsample.stride
        self.transformer = WindowTransformer(parts.transformer, config, rows, max_frames * factor)
        self.seanet = nn.ModuleList(_streaming(layer, rows) for layer in parts.seanet)
        self.samples_per_frame = factor * math.prod(config.upsampling_ratios)
        self._state = [
            buffer
            for name, buffer in self.named_buffers()
            if name.rpartition(".")[2] in {"past", "tail", "keys", "values", "position"}
        ]

    @torch.no_grad()
    def forward(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] of the first B rows -> samples [B, T * samples_per_frame], in [-1, 1] or
        so
        """
        index = codes + self.offsets[: codes.shape[1], None]
        x = F.embedding(index, self.table).sum(dim=1).transpose(1, 2)
        if self.upsample is not None:
            x = self.upsample(x)
        x = self.transformer(x.transpose(1, 2)).transpose(1, 2)
        for layer in self.seanet:
            x = layer(x)
        sound: Tensor = x[:, 0]
        return sound

    @torch.no_grad()
    def reset(self, row: int) -> None:
        """A new utterance begins in `row`."""
        for state in self._state:
            state[row].zero_()

    @torch.no_grad()
    def swap(self, a: int, b: int) -> None:
        for state in self._state:
            kept = state[a].clone()
            state[a].copy_(state[b])
            state[b].copy_(kept)


@torch.no_grad()
def _codebook_table(quantizer: Any) -> Tensor:
    """[K * size, hidden]: every codebook entry behind its output projection, so that one look-up
    and one sum replace K look-ups and two projections."""
    tables = []
    for group in (
        quantizer.semantic_residual_vector_quantizer,
        quantizer.acoustic_residual_vector_quantizer,
    ):
        for layer in group.layers:
            entries = layer.codebook.embed
            if group.output_proj is not None:
                entries = group.output_proj(entries.T[None])[0].T
            tables.append(entries)
    return torch.cat(tables).clone()
