"""A frame in PyTorch: passes of the depth decoder and layers of the backbone.

`Steps.draw_frame`, `Steps.read_frame` and `depth.py` define their order. `Steps` is for a CPU,
`CudaSteps` for a CUDA device, where the number of kernel launches matters. Our own kernels for CUDA
(`kernels/`) replace single methods, those for a CPU (`native/`) whole frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .depth import draw_depth
from .layers import EightBit, PackedLayer, rotate, rotation_matrices
from .sampling import Sampler
from .weights import PackedCsm

if TYPE_CHECKING:
    from .frame import Batch, FrameState


@dataclass(slots=True)
class Reading:
    """Inputs that all layers of the backbone share for one frame of B rows."""

    batch: Batch
    position: Tensor
    """[B]: number of positions read before."""
    place: Tensor
    """[B]: where this position is written. Padding rows may have any position; they write to one
    that is never attended to."""
    rows: Tensor
    """[B]: numbers of the rows."""
    length: int
    """Number of attended positions."""
    bias: Tensor | None = None
    """[B, 1, 1, length], added to the scores."""
    rotation: tuple[Tensor, ...] = ()


class DepthCache:
    """Keys and values of one frame for B rows: [layers, 2, B, kv_heads, K, D], and its views."""

    def __init__(self, weights: PackedCsm, batch: int) -> None:
        layer, steps = weights.depth_layers[0], weights.codebooks
        shape = (len(weights.depth_layers), 2, batch, layer.kv_heads, steps, layer.head_dim)
        memory = torch.zeros(shape, dtype=weights.dtype, device=weights.lm_head.device)
        self.pairs = [(memory[index, 0], memory[index, 1]) for index in range(shape[0])]
        """(keys, values) of each layer, [B, kv_heads, K, D]."""
        self.places = [
            [(keys[:, :, step], values[:, :, step]) for keys, values in self.pairs]
            for step in range(steps)
        ]
        """Views to which position `step` of each layer is written: [B, kv_heads, D]."""
        self.seen = [
            [(keys[:, :, : step + 1], values[:, :, : step + 1]) for keys, values in self.pairs]
            for step in range(steps)
        ]
        """Views of the keys and values that position `step` of each layer attends to."""


class Drawing:
    """Draws the codes of one frame, one codebook after the other."""

    def __init__(
        self, weights: PackedCsm, state: FrameState, batch: Batch, candidates: int
    ) -> None:
        self._weights = weights
        rows = state.sampling.of(batch)
        self._sampler = Sampler(rows, batch.count, weights.codebooks, weights.codes, candidates)
        self._drawn: list[Tensor] = []

    def choose(self, logits: Tensor, codebook: int) -> Tensor | None:
        """logits [B, codes] -> the depth decoder's next input [B, c]; None
        after the last codebook.
        """
        code = self._sampler(logits, codebook)
        self._drawn.append(code)
        embeddings = self._weights.depth_embeddings
        return F.embedding(code, embeddings[codebook]) if codebook < len(embeddings) else None

    def codes(self) -> Tensor:
        """[B, K]. A row whose first K - 1 codes are all the end code has ended; its whole frame is
        then the end frame.
        """
        codes, end = torch.stack(self._drawn, dim=1), self._weights.eos_code
        return codes.masked_fill((codes[:, :-1] == end).all(dim=1, keepdim=True), end)

    def first_codes(self) -> Tensor:
        """[B]: the codes of codebook 0"""
        return self._drawn[0]

    def sound(self) -> Tensor:
        """bool [B]: whether a row's logits were all finite; if not, its codes are meaningless."""
        return self._sampler.sound()


class Steps:
    """Operations of one layer or one pass. The residual stream x is changed in place."""

    by_index = False
    """Whether a step may work on any rows; otherwise on the first ones."""

    def __init__(self, weights: PackedCsm) -> None:
        self.weights = weights

    def at(self, batch: int) -> Steps:
        """The implementation to use for this batch size."""
        return self

    def drawing(self, state: FrameState, batch: Batch, candidates: int) -> Drawing:
        return Drawing(self.weights, state, batch, candidates)

    # Whole frames ---------------------------------------------------------------------------------

    def draw_frame(
        self,
        state: FrameState,
        batch: Batch,
        candidates: int,
        shape_logits: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `frame.draw_frame`."""
        hidden = batch.take(state.hidden)
        draw = self.drawing(state, batch, candidates)
        logits = self.first_head(hidden)
        first = draw.choose(logits if shape_logits is None else shape_logits(logits), 0)
        assert first is not None
        draw_depth(self, state.depth(self, batch.count), hidden, first, draw)
        codes = draw.codes()
        batch.put(state.codes, codes)
        return codes, draw.sound()

    def read_frame(self, state: FrameState, batch: Batch, length: int) -> None:
        """See `frame.read_frame`."""
        weights, reading = self.weights, self.reading(state, batch, length)
        self.prepare(state, reading)
        x = weights.embed_frames(batch.take(state.codes))
        for number, layer in enumerate(weights.layers):
            x = self.backbone_layer(state, number, layer, x, reading)
        batch.put(state.hidden, weights.norm(x))
        batch.add_one(state.position)
        batch.add_one(state.sampling.frame)

    # The depth decoder ----------------------------------------------------------------------------

    def depth_cache(self, batch: int) -> DepthCache:
        return DepthCache(self.weights, batch)

    def first_pass(self, cache: DepthCache, start: Tensor, first: Tensor) -> Tensor:
        """Positions 0 and 1 in one pass: their inputs, each [B, c] -> position 1's output [B, c].

        Position 0 attends to itself alone: its attention output is its own value, for each query
        head.
        """
        weights, x = self.weights, torch.stack([start, first], dim=1)
        cos, sin = weights.depth_cos[:2], weights.depth_sin[:2]
        for layer, (keys, values) in zip(weights.depth_layers, cache.pairs, strict=True):
            q, k, v = layer.project(x, cos, sin)
            keys[:, :, :2], values[:, :, :2] = k, v
            alone = v[:, :, :1].expand(-1, -1, layer.heads // layer.kv_heads, -1)
            both = layer.attend_one(q[:, :, 1], k, v)
            x = layer.finish(x, torch.stack([alone.flatten(1), both], dim=1))
        return x[:, 1]

    def depth_pass(self, cache: DepthCache, x: Tensor, step: int) -> Tensor:
        """Position `step`: x [B, c] -> [B, c]"""
        weights = self.weights
        rotation, places, seen = weights.depth_rotations[step], cache.places[step], cache.seen[step]
        for layer, (key, value), (keys, values) in zip(
            weights.depth_layers, places, seen, strict=True
        ):
            qk, v = layer.project_one(x)
            qk = (qk.reshape(-1, layer.head_dim) @ rotation).view(qk.shape)
            key.copy_(qk[:, layer.heads :])
            value.copy_(v)
            x = layer.finish(x, layer.attend_one(qk[:, : layer.heads], keys, values))
        return x

    def depth_head(self, x: Tensor, codebook: int) -> Tensor:
        """x [B, c] -> the logits of `codebook`, [B, codes]"""
        return self.weights.depth_norm(x) @ self.weights.depth_heads[codebook - 1]

    def first_head(self, hidden: Tensor) -> Tensor:
        """The backbone's output [B, C] -> the logits of codebook 0, [B, codes]"""
        return hidden @ self.weights.lm_head

    # The backbone ---------------------------------------------------------------------------------

    def reading(self, state: FrameState, batch: Batch, length: int) -> Reading:
        position = batch.take(state.position)
        place = position.clamp(max=state.context)
        rows = state.places[: batch.count] if batch.index is None else batch.index
        return Reading(batch, position, place, rows, length)

    def prepare(self, state: FrameState, reading: Reading) -> None:
        """Compute the parts of `reading` that are the same for all layers."""
        weights, place = self.weights, reading.place
        reading.rotation = weights.cos[place][:, None], weights.sin[place][:, None]
        reading.bias = self.bias(state, reading)

    def bias(self, state: FrameState, reading: Reading) -> Tensor:
        seen = state.places[: reading.length] <= reading.position[:, None]
        return bias_of(seen, self.weights.dtype)[:, None, None]

    def backbone_layer(
        self, state: FrameState, number: int, layer: PackedLayer, x: Tensor, reading: Reading
    ) -> Tensor:
        """x [B, C] -> [B, C]; writes one position of keys and values."""
        q = self.backbone_qkv(state, number, layer, x, reading)
        y = self.backbone_attend(state, number, layer, q, reading)
        return layer.finish(x, y)

    def backbone_qkv(
        self, state: FrameState, number: int, layer: PackedLayer, x: Tensor, reading: Reading
    ) -> Tensor:
        """x [B, C] -> q [B, heads, D]; writes k and v to the rows."""
        qk, v = layer.project_one(x)
        qk = self.turned(qk, reading)
        state.keys[number][reading.rows, :, reading.place] = qk[:, layer.heads :]
        state.values[number][reading.rows, :, reading.place] = v
        return qk[:, : layer.heads]

    def turned(self, qk: Tensor, reading: Reading) -> Tensor:
        """Queries and keys [B, heads, D] rotated by their rows' positions."""
        return rotate(qk, *reading.rotation)

    def backbone_attend(
        self, state: FrameState, number: int, layer: PackedLayer, q: Tensor, reading: Reading
    ) -> Tensor:
        """q [B, heads, D] -> [B, heads * D]"""
        count, length = reading.batch.count, reading.length
        keys, values = state.keys[number][:count], state.values[number][:count]
        return layer.attend_one(q, keys[:, :, :length], values[:, :, :length], reading.bias)


class WideCache(DepthCache):
    """Queries, keys and values of one frame in the qkv product's layout: [layers, K, B, width].

    The product writes directly to the memory that attention reads, without a copy.
    """

    def __init__(self, weights: PackedCsm, batch: int) -> None:
        layer, steps = weights.depth_layers[0], weights.codebooks
        heads, kv_heads, dim = layer.heads, layer.kv_heads, layer.head_dim
        shape = (len(weights.depth_layers), steps, batch, heads + 2 * kv_heads, dim)
        memory = torch.zeros(shape, dtype=weights.dtype, device=weights.lm_head.device)
        self.layers = list(memory)
        self.written = [list(one.flatten(2)) for one in self.layers]
        """By layer and step: [B, width]."""
        self.queries = [list(one[:, :, :heads]) for one in self.layers]
        """By layer and step: [B, heads, D]."""
        by_row = memory.permute(0, 2, 3, 1, 4)
        self.keys = list(by_row[:, :, heads : heads + kv_heads])
        self.values = list(by_row[:, :, heads + kv_heads :])
        """[B, kv_heads, K, D] of each layer."""


class CudaSteps(Steps):
    """`Steps` with fewer kernel launches: 9 per layer of the depth decoder."""

    def __init__(self, weights: PackedCsm) -> None:
        super().__init__(weights)
        layers, steps = weights.depth_layers, range(weights.codebooks)
        self._rotations = rotation_matrices(weights.cos, weights.sin)
        # The rotation of a position is a matrix too and is merged into the qkv matrix.
        self._qkv = [
            [rotated(layer, weights.depth_rotations[n]) for n in steps] for layer in layers
        ]

    def depth_cache(self, batch: int) -> WideCache:
        return WideCache(self.weights, batch)

    def first_pass(self, cache: DepthCache, start: Tensor, first: Tensor) -> Tensor:
        self.depth_pass(cache, start, 0)
        return self.depth_pass(cache, first, 1)

    def depth_pass(self, cache: DepthCache, x: Tensor, step: int) -> Tensor:
        assert isinstance(cache, WideCache)
        layers = self.weights.depth_layers
        for number, layer in enumerate(layers):
            self.depth_qkv(cache, number, layer, x, step)
            if step or number + 1 < len(layers):
                # Only keys and values of position 0 are needed.
                self.depth_attend(cache, number, layer, x, step)
                self.feed_forward(layer, x)
        return x

    def depth_qkv(
        self, cache: WideCache, number: int, layer: PackedLayer, x: Tensor, step: int
    ) -> None:
        """x [B, c] -> q, k and v of position `step`, written to the cache."""
        torch.mm(layer.norm1(x), self._qkv[number][step], out=cache.written[number][step])

    def depth_attend(
        self, cache: WideCache, number: int, layer: PackedLayer, x: Tensor, step: int
    ) -> None:
        """Adds attention of position `step` with its output projection to x [B, c] in place."""
        layer.add_attended(x, self.depth_attended(cache, number, layer, step))

    def depth_attended(
        self, cache: WideCache, number: int, layer: PackedLayer, step: int
    ) -> Tensor:
        """[B, heads * D]"""
        keys, values = cache.keys[number], cache.values[number]
        q, seen = cache.queries[number][step], slice(step + 1)
        return layer.attend_one(q, keys[:, :, seen], values[:, :, seen])

    def feed_forward(self, layer: PackedLayer, x: Tensor) -> None:
        """Adds the feed-forward part to x [B, C] in place."""
        layer.add_feed_forward(x)

    def prepare(self, state: FrameState, reading: Reading) -> None:
        reading.rotation = (self._rotations[reading.place],)
        reading.bias = self.bias(state, reading)

    def turned(self, qk: Tensor, reading: Reading) -> Tensor:
        return torch.bmm(qk, *reading.rotation)

    def backbone_layer(
        self, state: FrameState, number: int, layer: PackedLayer, x: Tensor, reading: Reading
    ) -> Tensor:
        q = self.backbone_qkv(state, number, layer, x, reading)
        self.add_attended(layer, x, self.backbone_attend(state, number, layer, q, reading))
        self.feed_forward(layer, x)
        return x

    def add_attended(self, layer: PackedLayer, x: Tensor, y: Tensor) -> None:
        """Adds the backbone's output projection of y [B, heads * D] to x [B, C] in place."""
        layer.add_attended(x, y)


def rotated(layer: PackedLayer, rotation: Tensor) -> Tensor:
    """The layer's qkv matrix with the rotation of one position merged into it."""
    qkv = layer.qkv.exact if isinstance(layer.qkv, EightBit) else layer.qkv
    width, turned = qkv.shape[0], (layer.heads + layer.kv_heads) * layer.head_dim
    qk = qkv[:, :turned].float().reshape(width, -1, layer.head_dim) @ rotation.float()
    both = torch.cat([qk.reshape(width, turned).to(qkv.dtype), qkv[:, turned:]], dim=1)
    return both.T.contiguous().T


def bias_of(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query may attend, -Inf elsewhere. Computed once per step; PyTorch would convert a
    boolean mask to this in every layer.
    """
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return bias.masked_fill_(~seen, float("-inf"))
