"""A model's weights and state as the C structures of `frame.c`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_float, c_int64, c_void_p
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..layers import EightBit, PackedLayer, RmsNorm
from ..weights import PackedCsm
from .memory import address, panels

if TYPE_CHECKING:
    from ..frame import FrameState


class CLayer(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("norm1", "qkv", "out", "norm2", "gate_up", "down")]


class CStack(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("layers", "width", "inner", "heads", "kv_heads", "dim")),
        ("eps", c_float),
        ("scale", c_float),
        ("layer", POINTER(CLayer)),
        ("norm", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
    ]


class CDepth(ctypes.Structure):
    _fields_ = [
        ("stack", CStack),
        *((name, c_int64) for name in ("codebooks", "codes", "end_code", "backbone_width")),
        ("projector", c_void_p),
        ("embeddings", POINTER(c_void_p)),
        ("heads", POINTER(c_void_p)),
    ]


class CBackbone(ctypes.Structure):
    _fields_ = [
        ("stack", CStack),
        *((name, c_int64) for name in ("codebooks", "vocab", "context", "codes")),
        ("embedding", c_void_p),
        ("head", c_void_p),
    ]


class CState(ctypes.Structure):
    _fields_ = [
        ("keys", c_void_p),
        ("all_rows", c_int64),
        ("length", c_int64),
        *((name, c_void_p) for name in ("hidden", "position", "codes", "temperature", "top_k")),
        ("seed", c_void_p),
        ("frame", c_void_p),
    ]


def unsuited(weights: PackedCsm, panel: int, has_head: Callable[[int], bool]) -> str | None:
    """Why the kernels cannot compute this model; None if they can. `has_head`: whether they have
    heads of a size.
    """
    if weights.dtype != torch.float32:
        return f"the weights are {str(weights.dtype).removeprefix('torch.')}"
    widths = [weights.lm_head.shape[0], weights.depth_projector.shape[1]]
    for layer in (*weights.layers, *weights.depth_layers):
        if isinstance(layer.qkv, EightBit) or isinstance(layer.down, EightBit):
            return "the depth decoder has 8 bits"
        biases = layer.qkv_bias, layer.out_bias, layer.gate_up_bias, layer.down_bias
        if any(bias is not None for bias in biases):
            return "its layers have biases"
        if not has_head(layer.head_dim):
            return f"heads of {layer.head_dim} numbers are not supported"
        widths += [layer.down.shape[0], layer.heads * layer.head_dim]
    odd = next((width for width in widths if width % panel), None)
    return None if odd is None else f"a width of {odd} is not a multiple of {panel}"


def packed_bytes(weights: PackedCsm) -> int:
    """Bytes of the copies of the weights that the kernels need."""
    count = weights.lm_head.numel() + sum(head.numel() for head in weights.depth_heads)
    for layer in (*weights.layers, *weights.depth_layers):
        for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down):
            count += 0 if isinstance(matrix, EightBit) else matrix.numel()
    return 4 * count


class Layout:
    """The structures, and the tensors whose memory they point to."""

    def __init__(self, weights: PackedCsm, state: FrameState, panel: int) -> None:
        self._kept: list[Any] = []
        self._panel = panel
        width = weights.lm_head.shape[0]
        self.depth = CDepth(
            stack=self._stack(
                weights.depth_layers, weights.depth_norm, weights.depth_cos, weights.depth_sin
            ),
            codebooks=weights.codebooks,
            codes=weights.codes,
            end_code=weights.eos_code,
            backbone_width=width,
            projector=self._panels(weights.depth_projector),
            embeddings=self._pointers([self._at(one) for one in weights.depth_embeddings]),
            heads=self._pointers([self._panels(head) for head in weights.depth_heads]),
        )
        self.backbone = CBackbone(
            stack=self._stack(weights.layers, weights.norm, weights.cos, weights.sin),
            codebooks=weights.codebooks,
            vocab=weights.vocab,
            context=state.context,
            codes=weights.codes,
            embedding=self._at(weights.audio_embedding),
            head=self._panels(weights.lm_head),
        )
        sampling = state.sampling
        self.state = CState(
            keys=self._at(state.memory),
            all_rows=state.rows,
            length=state.length,
            hidden=self._at(state.hidden),
            position=self._at(state.position),
            codes=self._at(state.codes),
            temperature=self._at(sampling.temperature),
            top_k=self._at(sampling.top_k),
            seed=self._at(sampling.seed),
            frame=self._at(sampling.frame),
        )

    def _stack(
        self, layers: Sequence[PackedLayer], norm: RmsNorm, cos: Tensor, sin: Tensor
    ) -> CStack:
        first = layers[0]
        array = (CLayer * len(layers))(*map(self._layer, layers))
        self._kept.append(array)
        assert isinstance(first.down, Tensor)
        return CStack(
            layers=len(layers),
            width=first.down.shape[1],
            inner=first.down.shape[0],
            heads=first.heads,
            kv_heads=first.kv_heads,
            dim=first.head_dim,
            eps=norm.eps,
            scale=first.scaling,
            layer=array,
            norm=self._at(norm.weight),
            cos=self._at(cos),
            sin=self._at(sin),
        )

    def _layer(self, layer: PackedLayer) -> CLayer:
        matrices = (layer.qkv, layer.out, layer.gate_up, layer.down)
        qkv, out, gate_up, down = (self._panels(matrix) for matrix in matrices)
        norm1, norm2 = self._at(layer.norm1.weight), self._at(layer.norm2.weight)
        return CLayer(norm1, qkv, out, norm2, gate_up, down)

    def _panels(self, matrix: Tensor | EightBit) -> int:
        """[in, out] as [out / panel, in, panel], the last panel filled up with zeros."""
        assert isinstance(matrix, Tensor)
        return self._at(panels(matrix, self._panel, self._panel))

    def _at(self, tensor: Tensor) -> int:
        """The address of a tensor, which is kept."""
        found = address(tensor)
        self._kept.append(tensor)
        return found.value or 0

    def _pointers(self, addresses: list[int]) -> Any:
        array = (c_void_p * len(addresses))(*addresses)
        self._kept.append(array)
        return array
