"""Reproducible sampling of codes, row by row.

The random number for a code depends only on the row's seed, the frame, the codebook and the code:
an utterance is the same alone, in a batch with others, and after a restart. Sampling is Gumbel-max
(argmax of logits / temperature + noise), so that nothing waits for the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .frame import Batch

_MASK = 0xFFFFFFFF
_BOOK, _CODE = 0x85EBCA77, 0xC2B2AE3D
"""Distances of the keys of neighbouring codebooks and codes."""

_TABLE = 1 << 18
"""Up to this many codes per frame the noise of all is computed at once, with fewer operations;
above it only the noise of the candidates."""


_Words = TypeVar("_Words", int, Tensor)


def _scramble(x: _Words) -> _Words:
    """A 32-bit finaliser (the one of MurmurHash3) on 32-bit values: int64 tensors, or one int."""
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & _MASK
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def mixed(seed: int) -> int:
    """The 32-bit number that stands for an utterance's seed of 64 bits in `SamplingRows`.

    It is computed once an utterance on the host: in each frame it would take 25 CUDA kernels.
    """
    return _scramble(_scramble(seed & _MASK) ^ (seed >> 32) ^ 0x9E3779B9)


def noise_keys(seed: Tensor, frame: Tensor, codebooks: int) -> Tensor:
    """One 32-bit key per row and codebook: mixed seed [B], frame [B] -> [B, codebooks], int64"""
    row = _scramble((seed + frame * 0x9E3779B1) & _MASK)
    books = torch.arange(0, codebooks * _BOOK, _BOOK, device=seed.device)
    return _scramble((row[:, None] + books) & _MASK)


def gumbel(key: Tensor, place: Tensor) -> Tensor:
    """Gumbel noise, float32, for candidates at `place` (their index times `_CODE`) [B, n] of rows
    with `key` [B, 1] -> [B, n]; or for all codebooks: place [n], key [B, K, 1] -> [B, K, n]"""
    bits = _scramble((key + place) & _MASK)
    # 23 bits plus a half are exact in float32; with 24 the largest number would round to 1 and its
    # noise would be infinite.
    uniform = (bits >> 9).float().add_(0.5).mul_(1.0 / 2**23)
    return -(-uniform.log_()).log_()


@dataclass(slots=True)
class SamplingRows:
    """The sampling options of each row. `temperature`, `top_k` [rows, 2]: for codebook 0 (of the
    backbone) and for the others (of the depth decoder); `seed` [rows]: `mixed`; `frame` [rows]:
    number of the utterance's frame.
    """

    temperature: Tensor
    top_k: Tensor
    seed: Tensor
    frame: Tensor

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> SamplingRows:
        return cls(
            temperature=torch.zeros(rows, 2, device=device),
            top_k=torch.ones(rows, 2, dtype=torch.int64, device=device),
            seed=torch.zeros(rows, dtype=torch.int64, device=device),
            frame=torch.zeros(rows, dtype=torch.int64, device=device),
        )

    def tensors(self) -> list[Tensor]:
        return [self.temperature, self.top_k, self.seed, self.frame]

    def of(self, batch: Batch) -> SamplingRows:
        """The options of a step's rows, in the step's order."""
        return SamplingRows(*map(batch.take, self.tensors()))


class Sampler:
    """Draws one code per row and codebook; made for one frame of B rows.

    `candidates`: the largest top-k among the rows; 0 when every row is greedy.
    """

    def __init__(
        self, rows: SamplingRows, batch: int, codebooks: int, codes: int, candidates: int
    ) -> None:
        self.candidates = candidates
        self._best: list[Tensor] = []
        if not candidates:
            return
        temperature = rows.temperature[:batch]
        rank = torch.arange(candidates, device=rows.seed.device)
        self._cool = temperature.clamp(min=1e-5).reciprocal_().unsqueeze(-1).unbind(1)
        # A greedy row has one candidate, like top-k 1.
        kept = rows.top_k[:batch].masked_fill(temperature <= 0, 1)
        dropped = torch.zeros(batch, 2, candidates, device=rows.seed.device)
        dropped.masked_fill_(rank >= kept[..., None], float("-inf"))
        self._dropped = dropped.unbind(1)
        keys = noise_keys(rows.seed[:batch], rows.frame[:batch], codebooks)
        self._keys = keys.unsqueeze(-1).unbind(1)
        self._table: tuple[Tensor, ...] | None = None
        if batch * codebooks * codes <= _TABLE:
            every = torch.arange(0, codes * _CODE, _CODE, device=rows.seed.device)
            self._table = gumbel(keys[..., None], every).unbind(1)

    def __call__(self, logits: Tensor, codebook: int) -> Tensor:
        """logits [B, V] -> codes [B], int64"""
        if not self.candidates:
            best, code = logits.max(dim=-1)
            self._best.append(best)
            return code
        # topk sorts, so that a candidate's index is its rank; addcmul converts to float32.
        values, index = logits.topk(self.candidates, dim=-1)
        self._best.append(values[:, 0])
        part = min(codebook, 1)
        score = torch.addcmul(self._dropped[part], values, self._cool[part])
        choice = score.add_(self._noise(codebook, index)).argmax(dim=-1, keepdim=True)
        return index.gather(1, choice)[:, 0]

    def sound(self) -> Tensor:
        """bool [B]: whether all draws had finite logits. The largest logit shows it: NaN counts as
        the largest, and the maximum is -Inf only if no logit is finite. A finite number less itself
        is 0; `isfinite` takes twice as many kernels.
        """
        best = torch.stack(self._best)
        return (best - best == 0).all(dim=0)

    def _noise(self, codebook: int, index: Tensor) -> Tensor:
        if self._table is None:
            return gumbel(self._keys[codebook], index * _CODE)
        return self._table[codebook].gather(1, index)
