"""The Llama layer of backbone and depth decoder, with weights packed for single steps.

q, k and v are one matrix product, gate and up another. The modules of transformers keep working:
their weights become views of the packed ones, so that no weight is stored twice.
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


def rotation_matrices(cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` as a matrix product: cos and sin [positions, D] -> [positions, D, D]

    One small product replaces five operations.
    """
    half = cos.shape[-1] // 2
    turned = torch.zeros(*cos.shape, cos.shape[-1], dtype=cos.dtype, device=cos.device)
    here = torch.arange(half, device=cos.device)
    turned[:, here + half, here] = -sin[:, :half]
    turned[:, here, here + half] = sin[:, half:]
    return turned + torch.diag_embed(cos)


class RmsNorm:
    """Root mean square normalisation over the last dimension."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps
        self._written_out = weight.device.type == "cpu" and weight.dtype == torch.float32
        width = weight.shape[0]
        self._scaled = weight * math.sqrt(width)
        self._floor = torch.full((), math.sqrt(width * eps), device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., C] -> [..., C]"""
        if not self._written_out:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        # PyTorch has no fused kernel for this on a CPU; this takes half as many operations.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self._floor)
        return (x * self._scaled).div_(length)


def matrix(weight: Tensor) -> Tensor:
    """[out, in] -> [in, out], for `x @ matrix`.

    On a CPU it is a contiguous copy, with which small batches multiply up to twice as fast;
    elsewhere a view.
    """
    return weight.T.contiguous() if weight.device.type == "cpu" else weight.T


def fuse(*linears: Any) -> tuple[Tensor, Tensor | None]:
    """One matrix [in, out] (and bias) for several linear layers with the same input.

    The layers' own weights become views of it.
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
    """A matrix [in, out] in int8 with one scale for each output, symmetric around zero.

    `exact`: the original matrix, which the model's own layers hold anyway. On CUDA only our own
    kernels use the 8 bits, because PyTorch's are several times slower than the product in bfloat16;
    where there is no own kernel, the exact matrix is used.
    """

    def __init__(self, weight: Tensor) -> None:
        rows = weight.T.float()
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127.0
        self.weight = (rows / scale).round().to(torch.int8).contiguous()
        self.scale = scale[:, 0].to(weight.dtype)
        self.exact = weight

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]"""
        if x.device.type != "cpu":
            return x @ self.exact
        flat = x.reshape(-1, x.shape[-1])
        y = torch._weight_int8pack_mm(flat, self.weight, self.scale)
        return y.view(*x.shape[:-1], -1)

    def rounded(self) -> Tensor:
        """The dequantised matrix [in, out], float32"""
        return (self.weight.float() * self.scale.float()[:, None]).T


def apply(x: Tensor, weight: Tensor | EightBit, bias: Tensor | None) -> Tensor:
    """x [..., in] times weight [in, out], plus bias [out] if given -> [..., out]"""
    y = weight(x) if isinstance(weight, EightBit) else x @ weight
    return y if bias is None else y + bias


def add(x: Tensor, y: Tensor, weight: Tensor | EightBit, bias: Tensor | None) -> Tensor:
    """Adds `apply(y, weight, bias)` to x [..., C] in place, in one operation where that is
    possible. x is contiguous. Out of place, the product would first copy x.
    """
    if isinstance(weight, EightBit) and x.device.type != "cpu":
        weight = weight.exact
    if bias is None and isinstance(weight, Tensor):
        x.view(-1, x.shape[-1]).addmm_(y.reshape(-1, y.shape[-1]), weight)
        return x
    return x.add_(apply(y, weight, bias))


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


class PackedLayer:
    """One Llama layer; its keys and values are stored elsewhere and passed in."""

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

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """q [B, heads, T, D] over k and v [B, kv_heads, L, D] -> [B, T, heads * D].

        The query heads of one key head are treated as further queries, so that keys are not
        repeated; `bias` is added to the scores and broadcasts to [B, 1, heads / kv_heads * T, L].
        """
        batch, _, length, dim = q.shape
        group = self.heads // self.kv_heads
        q = q.reshape(batch, self.kv_heads, group * length, dim)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scaling)
        # Not a view: the result of some of PyTorch's kernels has positions before heads in memory.
        y = y.reshape(batch, self.heads, length, dim)
        return y.transpose(1, 2).reshape(batch, length, -1)

    def project_one(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`project` for one position per row, without rotation: x [B, C] -> q and k concatenated
        [B, heads + kv_heads, D], and v [B, kv_heads, D]
        """
        qkv = apply(self.norm1(x), self.qkv, self.qkv_bias).view(x.shape[0], -1, self.head_dim)
        rotated = self.heads + self.kv_heads
        return qkv[:, :rotated], qkv[:, rotated:]

    def attend_one(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """q [B, heads, D] over k and v [B, kv_heads, L, D]; bias [B, 1, 1, L] -> [B, heads * D]"""
        batch = q.shape[0]
        q = q.reshape(batch, self.kv_heads, -1, self.head_dim)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scaling)
        return y.reshape(batch, -1)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer after attention: x [..., C], changed in place, and attended
        [..., heads * D] -> [..., C]
        """
        return self.add_feed_forward(self.add_attended(x, attended))

    def add_attended(self, x: Tensor, attended: Tensor) -> Tensor:
        """Adds the output projection of attended [..., heads * D] to x [..., C] in place."""
        return add(x, attended, self.out, self.out_bias)

    def add_feed_forward(self, x: Tensor) -> Tensor:
        """Adds the feed-forward part to x [..., C] in place."""
        return self.add_down(x, self.gated(x))

    def gated(self, x: Tensor) -> Tensor:
        """The feed-forward part up to the gate: x [..., C] -> [..., I]"""
        y = self.gate_and_up(x)
        half = y.shape[-1] // 2
        return F.silu(y[..., :half]).mul_(y[..., half:])

    def gate_and_up(self, x: Tensor) -> Tensor:
        """x [..., C] -> [..., 2 * I]"""
        return apply(self.norm2(x), self.gate_up, self.gate_up_bias)

    def add_down(self, x: Tensor, inner: Tensor) -> Tensor:
        """Adds the down projection of inner [..., I] to x [..., C] in place."""
        return add(x, inner, self.down, self.down_bias)
