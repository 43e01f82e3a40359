"""The depth decoder's loop over the codebooks of one frame.

It dominates a frame: 31 dependent passes at CSM-1B's size. Its keys and values live for one frame,
in memory that is laid out (and cut into views) once per batch size, so that a pass is little more
than its products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .sampling import Sampler
from .weights import PackedCsm


class DepthCache:
    """Keys and values of one frame for B rows: [layers, 2, B, kv_heads, K, D], and its views."""

    def __init__(self, weights: PackedCsm, batch: int) -> None:
        layer, steps = weights.depth_layers[0], weights.codebooks
        shape = (len(weights.depth_layers), 2, batch, layer.kv_heads, steps, layer.head_dim)
        memory = torch.zeros(shape, dtype=weights.dtype, device=weights.lm_head.device)
        self.pairs = [(memory[index, 0], memory[index, 1]) for index in range(shape[0])]
        """(keys, values) [B, kv_heads, K, D] of each layer."""
        self.places = [
            [(keys[:, :, step], values[:, :, step]) for keys, values in self.pairs]
            for step in range(steps)
        ]
        """Where position `step` of each layer is written: [B, kv_heads, D]."""
        self.seen = [
            [(keys[:, :, : step + 1], values[:, :, : step + 1]) for keys, values in self.pairs]
            for step in range(steps)
        ]
        """What position `step` of each layer looks at."""
        self.first_mask = torch.ones(2, 2, dtype=torch.bool, device=memory.device).tril()[
            None, None
        ]


def draw_depth(
    weights: PackedCsm, cache: DepthCache, hidden: Tensor, first: Tensor, sampler: Sampler
) -> Tensor:
    """The backbone's output [B, C] and codebook 0 [B] -> the frame's codes [B, K]"""
    start = hidden @ weights.depth_projector
    pair = torch.stack([start, F.embedding(first, weights.depth_embedding)], dim=1)
    y = _first_pass(weights, cache, pair)
    drawn = [first]
    for codebook in range(1, weights.codebooks):
        code = sampler(y @ weights.depth_heads[codebook - 1], codebook)
        drawn.append(code)
        if codebook + 1 < weights.codebooks:
            x = F.embedding(code, weights.depth_embeddings[codebook])
            y = _pass(weights, cache, x, codebook + 1)
    return torch.stack(drawn, dim=1)


def _first_pass(weights: PackedCsm, cache: DepthCache, x: Tensor) -> Tensor:
    """Positions 0 and 1 in one pass: x [B, 2, c] -> the output of position 1, [B, c]"""
    cos, sin = weights.depth_cos[:2], weights.depth_sin[:2]
    for layer, (keys, values) in zip(weights.depth_layers, cache.pairs, strict=True):
        q, k, v = layer.project(x, cos, sin)
        keys[:, :, :2], values[:, :, :2] = k, v
        x = layer.finish(x, layer.attend(q, k, v, cache.first_mask))
    return weights.depth_norm(x[:, 1])


def _pass(weights: PackedCsm, cache: DepthCache, x: Tensor, step: int) -> Tensor:
    """Position `step`: x [B, c] -> [B, c]"""
    rotation, places, seen = weights.depth_rotations[step], cache.places[step], cache.seen[step]
    for layer, (key, value), (keys, values) in zip(weights.depth_layers, places, seen, strict=True):
        qk, v = layer.project_one(x)
        qk = (qk.reshape(-1, layer.head_dim) @ rotation).view(qk.shape)
        key.copy_(qk[:, layer.heads :])
        value.copy_(v)
        x = layer.finish(x, layer.attend_one(qk[:, : layer.heads], keys, values))
    return weights.depth_norm(x)
