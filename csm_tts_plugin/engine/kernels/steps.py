"""The frame step with our own kernels instead of PyTorch's, each one optional.

`KernelSteps` uses the given kernels and `CudaSteps` for the rest. Both use the same memory layout,
so that any combination gives the same frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..frame import Batch, FrameState
from ..layers import EightBit, PackedLayer, RmsNorm
from ..steps import CudaSteps, Drawing, Reading, WideCache
from ..weights import PackedCsm
from . import attention, choosing, products

CLASSES = (1, 16, 64, 1 << 30)
"""Classes of batch sizes: batches up to each of these use the same kernels."""

SITES = (
    *("depth qkv", "depth attention", "depth out", "depth gate", "depth down", "depth head"),
    *("choose", "qkv", "attention", "out", "gate", "down", "head"),
)
"""Operations for which there is a kernel: in the depth decoder, in sampling, in the backbone."""

_SPLITS = {1: 16, 16: 4, 64: 1, 1 << 30: 1}
"""Number of programs that share a row's length, because few rows do not fill the device."""


def class_of(batch: int) -> int:
    return next(limit for limit in CLASSES if batch <= limit)


def sites(batch: int, eight_bits: bool = False) -> list[str]:
    """The sites that have a kernel for this class of batch sizes."""
    found = [site for site in SITES if site != "depth out" or class_of(batch) > 1]
    if class_of(batch) <= 64:
        return found
    # Large products are left to cuBLAS, which has none in 8 bits.
    eight = ["depth qkv", "depth out", "depth down"] if eight_bits else []
    own = ["choose", "attention", "depth attention", "gate", "depth gate", *eight]
    return [site for site in found if site in own]


@dataclass(slots=True)
class Rows:
    """A row-major matrix [N, K], in 8 bits with a scale for each row or in the model's dtype."""

    weight: Tensor
    scale: Tensor

    @property
    def eight(self) -> bool:
        return self.weight.dtype == torch.int8

    @classmethod
    def of(cls, matrix: Tensor | EightBit) -> Rows:
        if isinstance(matrix, EightBit):
            return cls(matrix.weight, matrix.scale.float())
        rows = matrix.T.contiguous()
        return cls(rows, rows)


@dataclass(slots=True)
class Packed:
    """Weights and settings that all `KernelSteps` of one model share."""

    weights: PackedCsm
    plain: CudaSteps
    launch_early: bool = False
    """Programmatic dependent launch: a kernel loads weights while the one before it ends."""
    layers: dict[int, dict[str, Rows]] = field(default_factory=dict)
    heads: list[Rows] = field(default_factory=list)

    @classmethod
    def of(cls, plain: CudaSteps, *, launch_early: bool = False) -> Packed:
        weights = plain.weights
        packed = cls(weights, plain, launch_early)
        for layer in (*weights.layers, *weights.depth_layers):
            names = ("qkv", "out", "gate_up", "down")
            packed.layers[id(layer)] = {name: Rows.of(getattr(layer, name)) for name in names}
        packed.heads = [Rows.of(head) for head in (weights.lm_head, *weights.depth_heads)]
        return packed


class KernelSteps(CudaSteps):
    """`own`: the sites whose kernels are used, for batches in the class of size `batch`."""

    def __init__(self, packed: Packed, batch: int, own: frozenset[str]) -> None:
        # The weights that `CudaSteps` packs are shared.
        self.__dict__.update(packed.plain.__dict__)
        self.own, self.limit = own, class_of(batch)
        self._packed = packed
        self._early: dict[str, Any] = {"PDL": packed.launch_early}
        if packed.launch_early:
            self._early["launch_pdl"] = True

    def depth_cache(self, batch: int) -> WideCache:
        return WideCache(self.weights, batch)

    def drawing(self, state: FrameState, batch: Batch, candidates: int) -> Drawing:
        if "choose" not in self.own:
            return super().drawing(state, batch, candidates)
        return KernelDrawing(self.weights, state, batch, self._early)

    # Products -------------------------------------------------------------------------------------

    def _product(
        self,
        x: Tensor,
        rows: Rows,
        norm: RmsNorm | None,
        *,
        gated: bool = False,
        onto: Tensor | None = None,
    ) -> Tensor:
        """x [B, K] -> [B, N]; see `products.gemv`"""
        batch, width = x.shape
        count = rows.weight.shape[0] // 2 if gated else rows.weight.shape[0]
        y = x.new_empty(batch, count) if onto is None else onto
        scale, eps = (norm.weight, norm.eps) if norm else (x, 0.0)
        flags: dict[str, Any] = {
            "NORM": norm is not None,
            "GATED": gated,
            "RESIDUAL": onto is not None,
        }
        flags |= {"EIGHT": rows.eight, "N": count, "K": width}
        arrays = (x.contiguous(), scale, rows.weight, rows.scale, y, eps)
        if self.limit == 1:
            sizes = _row_sizes(count, width)
            programs = -(-count // sizes["BN"])
            products.gemv[(programs,)](*arrays, **sizes, **flags, **self._early, num_warps=4)
        else:
            sizes = _tile_sizes(self.limit, count, width)
            grid = -(-count // sizes["BN"]), -(-batch // sizes["BM"])
            products.skinny[grid](*arrays, batch, **sizes, **flags, num_warps=4, num_stages=3)
        return y

    def _project(
        self,
        x: Tensor,
        layer: PackedLayer,
        q: Tensor,
        cos: Tensor,
        sin: Tensor,
        places: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        """See `products.gemv_qkv`; `places`: keys and values of the layer, rows and positions."""
        batch, width = x.shape
        rows, heads, dim = self._packed.layers[id(layer)]["qkv"], layer.heads, layer.head_dim
        k, v, row, place = places or (q, q, q, q)
        strides = (k.stride(0), k.stride(1)) if places else (0, 0)
        flags = {"HEADS": heads, "KV": layer.kv_heads, "D": dim, "K": width}
        flags |= {"PLACED": places is not None, "EIGHT": rows.eight}
        arrays = (x, layer.norm1.weight, rows.weight, rows.scale, q, k, v, cos, sin, row, place)
        scalars = (layer.norm1.eps, *strides)
        total = heads + 2 * layer.kv_heads
        if self.limit == 1:
            sizes = _row_sizes(dim // 2, width)
            programs = total * (dim // 2 // sizes["BN"])
            products.gemv_qkv[(programs,)](
                *arrays, *scalars, **sizes, **flags, **self._early, num_warps=4
            )
        else:
            sizes = _tile_sizes(self.limit, dim // 2, width)
            grid = (total * (dim // 2 // sizes["BN"]), -(-batch // sizes["BM"]))
            products.skinny_qkv[grid](
                *arrays, *scalars, batch, **sizes, **flags, num_warps=4, num_stages=3
            )

    def _gated(self, y: Tensor) -> Tensor:
        """[B, 2 N] -> [B, N]"""
        batch, width = y.shape[0], y.shape[1] // 2
        h = y.new_empty(batch, width)
        block = min(1024, _power(width))
        products.gate[(-(-width // block), batch)](y, h, N=width, BN=block, num_warps=4)
        return h

    def feed_forward(self, layer: PackedLayer, x: Tensor) -> None:
        part = "depth " if any(layer is one for one in self.weights.depth_layers) else ""
        rows = self._packed.layers[id(layer)]
        if f"{part}gate" not in self.own:
            h = layer.gated(x)
        elif self.limit <= 64 or rows["gate_up"].eight:
            h = self._product(x, rows["gate_up"], layer.norm2, gated=True)
        else:
            h = self._gated(layer.gate_and_up(x))
        if f"{part}down" in self.own:
            self._product(h, rows["down"], None, onto=x)
        else:
            layer.add_down(x, h)

    # The depth decoder ----------------------------------------------------------------------------

    def depth_qkv(
        self, cache: WideCache, number: int, layer: PackedLayer, x: Tensor, step: int
    ) -> None:
        if "depth qkv" not in self.own:
            return super().depth_qkv(cache, number, layer, x, step)
        cos, sin = self.weights.depth_cos[step], self.weights.depth_sin[step]
        return self._project(x, layer, cache.written[number][step], cos, sin)

    def depth_attend(
        self, cache: WideCache, number: int, layer: PackedLayer, x: Tensor, step: int
    ) -> None:
        if "depth attention" not in self.own:
            y = self.depth_attended(cache, number, layer, step)
        elif self.limit == 1:
            return self._attend_out(cache, number, layer, x, step)
        else:
            q = cache.queries[number][step]
            y = self._attend(layer, q, cache.keys[number], cache.values[number], length=step + 1)
        if "depth out" in self.own:
            self._product(y, self._packed.layers[id(layer)]["out"], None, onto=x)
        else:
            layer.add_attended(x, y)
        return None

    def _attend_out(
        self, cache: WideCache, number: int, layer: PackedLayer, x: Tensor, step: int
    ) -> None:
        rows, memory = self._packed.layers[id(layer)]["out"], cache.layers[number]
        count = rows.weight.shape[0]
        block = 8 if count % 8 == 0 else 1
        sizes = {"HEADS": layer.heads, "KV": layer.kv_heads, "D": layer.head_dim, "N": count}
        sizes |= {"L": _power(memory.shape[0]), "BN": block, "EIGHT": rows.eight}
        attention.attend_out[(count // block,)](
            *(memory, rows.weight, rows.scale, x, step, layer.scaling),
            **sizes,
            **self._early,
            num_warps=4,
        )

    def depth_head(self, x: Tensor, codebook: int) -> Tensor:
        if "depth head" not in self.own:
            return super().depth_head(x, codebook)
        return self._product(x, self._packed.heads[codebook], self.weights.depth_norm)

    def first_head(self, hidden: Tensor) -> Tensor:
        if "head" not in self.own:
            return super().first_head(hidden)
        return self._product(hidden, self._packed.heads[0], None)

    # The backbone ---------------------------------------------------------------------------------

    def prepare(self, state: FrameState, reading: Reading) -> None:
        if "qkv" not in self.own:
            reading.rotation = (self._rotations[reading.place],)
        if "attention" not in self.own:
            reading.bias = self.bias(state, reading)

    def backbone_qkv(
        self, state: FrameState, number: int, layer: PackedLayer, x: Tensor, reading: Reading
    ) -> Tensor:
        if "qkv" not in self.own:
            return super().backbone_qkv(state, number, layer, x, reading)
        q = x.new_empty(x.shape[0], layer.heads, layer.head_dim)
        places = (state.keys[number], state.values[number], reading.rows, reading.place)
        self._project(x, layer, q, self.weights.cos, self.weights.sin, places)
        return q

    def backbone_attend(
        self, state: FrameState, number: int, layer: PackedLayer, q: Tensor, reading: Reading
    ) -> Tensor:
        if "attention" not in self.own:
            return super().backbone_attend(state, number, layer, q, reading)
        keys, values = state.keys[number], state.values[number]
        return self._attend(layer, q, keys, values, places=(reading.rows, reading.place))

    def add_attended(self, layer: PackedLayer, x: Tensor, y: Tensor) -> None:
        if "out" not in self.own:
            return super().add_attended(layer, x, y)
        self._product(y, self._packed.layers[id(layer)]["out"], None, onto=x)
        return None

    def _attend(
        self,
        layer: PackedLayer,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        length: int = 0,
        places: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """q [B, heads, D] over keys and values [rows, kv_heads, positions, D] -> [B, heads * D]"""
        batch, heads, dim = q.shape
        splits = _SPLITS[self.limit] if places else 1
        y = q.new_empty(batch, heads * dim)
        part = y
        if splits > 1:
            part = q.new_empty(batch * heads, splits, dim + 8, dtype=torch.float32)
        group = heads // layer.kv_heads
        sizes = {"KV": layer.kv_heads, "GROUP": group, "PADDED": max(16, _power(group)), "D": dim}
        sizes |= {"BL": 64 if places else 32, "SPLITS": splits, "PLACED": places is not None}
        row, place = places or (keys, keys)
        attention.attend[(batch * layer.kv_heads, splits)](
            *(q, keys, values, y, part, row, place, length, layer.scaling, q.stride(0)),
            *keys.stride()[:3],
            **sizes,
            **self._early,
            num_warps=4,
        )
        if splits > 1:
            attention.combine[(batch * heads,)](
                part, y, D=dim, SPLITS=splits, **self._early, num_warps=4
            )
        return y


class KernelDrawing(Drawing):
    """Uses `choosing.choose`: a code and the next input in one kernel."""

    def __init__(
        self, weights: PackedCsm, state: FrameState, batch: Batch, early: dict[str, Any]
    ) -> None:
        self._weights, self._rows, self._early = weights, state.sampling, early
        count, device = batch.count, state.hidden.device
        self._index = state.places[:count] if batch.index is None else batch.index
        self._codes = torch.empty(count, weights.codebooks, dtype=torch.int64, device=device)
        self._sound = torch.empty(count, dtype=torch.int8, device=device)

    def choose(self, logits: Tensor, codebook: int) -> Tensor | None:
        weights, rows = self._weights, self._rows
        (batch, codes), books = logits.shape, weights.codebooks
        last = codebook == books - 1
        table = weights.depth_embeddings[min(codebook, books - 2)]
        width = table.shape[1]
        x = table.new_empty(batch, width)
        sizes = {"V": codes, "PV": _power(codes), "C": width, "PC": _power(width)}
        sizes |= {"BOOKS": books, "PBOOKS": _power(books), "LAST": last}
        sizes |= {"BITS": 16 if logits.dtype == torch.bfloat16 else 32}
        choosing.choose[(batch,)](
            *(logits.contiguous(), self._index, rows.temperature, rows.top_k, rows.seed),
            *(rows.frame, table, self._codes, x, self._sound, codebook, weights.eos_code),
            **sizes,
            **self._early,
            num_warps=8,
        )
        return None if last else x

    def codes(self) -> Tensor:
        return self._codes

    def first_codes(self) -> Tensor:
        return self._codes[:, 0]

    def sound(self) -> Tensor:
        return self._sound.bool()


class Chosen(CudaSteps):
    """Uses the kernels that `selection` found for each class of batch sizes."""

    def __init__(self, packed: Packed, own: dict[int, frozenset[str]]) -> None:
        self.__dict__.update(packed.plain.__dict__)
        self.own = own
        self.by_index = all("attention" in sites for sites in own.values())
        self._steps = {limit: KernelSteps(packed, limit, sites) for limit, sites in own.items()}

    def at(self, batch: int) -> KernelSteps:
        return self._steps[class_of(batch)]


def _power(count: int) -> int:
    """`count` rounded up to a power of two."""
    return 1 << (count - 1).bit_length()


def _row_sizes(count: int, width: int) -> dict[str, Any]:
    """Block sizes of `gemv`: rows of the weights per program, and columns loaded at once."""
    rows = 2 if width > 4096 else 4
    while count % rows and rows > 1:
        rows //= 2
    block = min(_power(width), 2048 if width > 4096 else 1024)
    return {"BN": rows, "BK": block, "WHOLE": width % block == 0}


def _tile_sizes(limit: int, count: int, width: int) -> dict[str, Any]:
    """Tile sizes of `skinny`."""
    block_m = 16 if limit <= 16 else 64
    block_n = min(32 if block_m == 16 else 64, _power(count))
    while count % block_n and block_n > 16:
        block_n //= 2
    block_k = min(128 if block_m == 16 else 64, _power(width))
    return {"BM": block_m, "BN": block_n, "BK": block_k}
