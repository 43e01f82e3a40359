"""The Llama layer that backbone and depth decoder share, packed for single steps.

q, k and v come out of one matrix product, gate and up out of another. The modules of transformers
keep working: their weights become views of the packed ones, so nothing is held twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelLoadError


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [..., D]; cos and sin broadcast to it, in the half-split
    layout.
    """
    low, high = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([-high, low], dim=-1), sin)


def rope_tables(rotary: Any, positions: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [positions, D], from a rotary module of transformers (its scaling included).

    Angles are computed in float32 whatever the dtype, as transformers does.
    """
    inv_freq = rotary.inv_freq.float()
    angles = torch.arange(positions, device=inv_freq.device).float()[:, None] * inv_freq
    angles = torch.cat([angles, angles], dim=-1)
    scale = rotary.attention_scaling
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotation_matrices(cos: Tensor, sin: Tensor) -> list[Tensor]:
    """`rotate` as a product, one [D, D] for each position of cos and sin [positions, D].

    For a loop whose positions are known beforehand: one small product instead of five operations.
    """
    half = cos.shape[-1] // 2
    turned = torch.zeros(*cos.shape, cos.shape[-1], dtype=cos.dtype, device=cos.device)
    here = torch.arange(half, device=cos.device)
    turned[:, here + half, here] = -sin[:, :half]
    turned[:, here, here + half] = sin[:, half:]
    return list((turned + torch.diag_embed(cos)).unbind(0))


class RmsNorm:
    """Root mean square normalisation over the last dimension."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps
        self._written_out = weight.device.type == "cpu" and weight.dtype == torch.float32
        width = weight.shape[0]
        self._scaled = weight * math.sqrt(width)
        self._floor = torch.tensor(math.sqrt(width * eps), device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., C] -> [..., C]"""
        if not self._written_out:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        # PyTorch has no kernel for this on a CPU: the same in half the operations.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self._floor)
        return (x * self._scaled).div_(length)


def matrix(weight: Tensor) -> Tensor:
    """[out, in] -> [in, out], for `x @ matrix`.

    On a CPU the copy is laid out that way: small batches multiply up to twice as fast then.
    Elsewhere it stays a view.
    """
    return weight.T.contiguous() if weight.device.type == "cpu" else weight.T


def fuse(*linears: Any) -> tuple[Tensor, Tensor | None]:
    """One matrix [in, out] (and bias) out of linear layers over the same input.

    The layers' own weights become views of it, so that nothing is held twice.
    """
    fused = matrix(torch.cat([linear.weight.data for linear in linears]))
    start = 0
    for linear in linears:
        stop = start + linear.weight.shape[0]
        linear.weight.data = fused[:, start:stop].T
        start = stop
    if linears[0].bias is None:
        return fused, None
    return fused, torch.cat([linear.bias.data for linear in linears])


class EightBit:
    """A matrix [in, out] in 8 bits with one scale for each output, symmetric around zero."""

    def __init__(self, weight: Tensor) -> None:
        rows = weight.T.float()
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127.0
        self.weight = (rows / scale).round().to(torch.int8).contiguous()
        self.scale = scale[:, 0].to(weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]"""
        flat = x.reshape(-1, x.shape[-1])
        y = torch._weight_int8pack_mm(flat, self.weight, self.scale)
        return y.view(*x.shape[:-1], -1)


def apply(x: Tensor, weight: Tensor | EightBit, bias: Tensor | None) -> Tensor:
    """x [..., in] times [in, out], plus a bias where there is one"""
    y = weight(x) if isinstance(weight, EightBit) else x @ weight
    return y if bias is None else y + bias


def add(x: Tensor, y: Tensor, weight: Tensor | EightBit, bias: Tensor | None) -> Tensor:
    """`x + apply(y, weight, bias)`, in one operation where that is possible"""
    if y.dim() == 2 and bias is None and isinstance(weight, Tensor):
        return torch.addmm(x, y, weight)
    return x + apply(y, weight, bias)


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


class PackedLayer:
    """One Llama layer over keys and values that live outside of it."""

    def __init__(self, source: Any, *, eight_bits: bool = False) -> None:
        attention, mlp = source.self_attn, source.mlp
        config = attention.config
        if config.hidden_act not in {"silu", "swish"}:
            raise ModelLoadError(f"The model's activation is {config.hidden_act!r}; CSM has silu.")
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scaling = attention.scaling
        qkv, self.qkv_bias = fuse(attention.q_proj, attention.k_proj, attention.v_proj)
        gate_up, self.gate_up_bias = fuse(mlp.gate_proj, mlp.up_proj)
        out, self.out_bias = fuse(attention.o_proj)
        down, self.down_bias = fuse(mlp.down_proj)
        hold: Callable[[Tensor], Tensor | EightBit] = EightBit if eight_bits else _as_it_is
        self.qkv, self.gate_up = hold(qkv), hold(gate_up)
        self.out, self.down = hold(out), hold(down)
        self.norm1 = RmsNorm(source.input_layernorm.weight.data, config.rms_norm_eps)
        self.norm2 = RmsNorm(source.post_attention_layernorm.weight.data, config.rms_norm_eps)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, C] -> q [B, heads, T, D], k and v [B, kv_heads, T, D], rotated"""
        batch, length, _ = x.shape
        qkv = apply(self.norm1(x), self.qkv, self.qkv_bias).view(batch, length, -1, self.head_dim)
        qk, v = torch.split(qkv.transpose(1, 2), [self.heads + self.kv_heads, self.kv_heads], dim=1)
        q, k = torch.split(rotate(qk, cos, sin), [self.heads, self.kv_heads], dim=1)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q [B, heads, T, D] over k and v [B, kv_heads, L, D]; mask broadcasts to [B, 1, T, L].

        The query heads of one key head are taken as further queries, so that keys are never
        repeated.
        """
        batch, _, length, dim = q.shape
        group = self.heads // self.kv_heads
        q = q.reshape(batch, self.kv_heads, group * length, dim)
        if mask is not None and length > 1:
            mask = mask.repeat(1, 1, group, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scaling)
        return y.view(batch, self.heads, length, dim).transpose(1, 2).reshape(batch, length, -1)

    def project_one(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`project` for one position a row, not rotated yet: x [B, C] -> q with k [B, heads, D] and
        v [B, kv_heads, D]"""
        qkv = apply(self.norm1(x), self.qkv, self.qkv_bias).view(x.shape[0], -1, self.head_dim)
        rotated = self.heads + self.kv_heads
        return qkv[:, :rotated], qkv[:, rotated:]

    def attend_one(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q [B, heads, D] over k and v [B, kv_heads, L, D]; mask [B, 1, 1, L] -> [B, heads * D]"""
        batch = q.shape[0]
        q = q.reshape(batch, self.kv_heads, -1, self.head_dim)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scaling)
        return y.reshape(batch, -1)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer: x [..., C], attended [..., heads * D] -> [..., C]"""
        x = add(x, attended, self.out, self.out_bias)
        y = apply(self.norm2(x), self.gate_up, self.gate_up_bias)
        half = y.shape[-1] // 2
        y = F.silu(y[..., :half]).mul_(y[..., half:])
        return add(x, y, self.down, self.down_bias)
