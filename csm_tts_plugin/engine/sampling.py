"""Drawing codes, row by row, reproducibly.

The random number behind a code depends on the row's seed, the frame, the codebook and the code
alone: the same utterance comes out alone, among 63 others, and after a restart. It is the Gumbel-
max form of sampling (argmax of logits / temperature + noise), so nothing waits for the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF

_TABLE = 1 << 18
"""Noise for so many codes of a frame is made at once, which takes fewer operations; for more, only
for those that are looked at."""


def _scramble(x: Tensor) -> Tensor:
    """A 32-bit finaliser (the one of MurmurHash3) on int64 tensors holding 32-bit values."""
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & _MASK
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def noise_keys(seed: Tensor, frame: Tensor, codebooks: int) -> Tensor:
    """One 32-bit key per row and codebook: seed [B], frame [B] -> [B, codebooks], int64"""
    low = _scramble(seed & _MASK)
    row = _scramble(low ^ ((seed >> 32) & _MASK) ^ 0x9E3779B9)
    row = _scramble((row + frame * 0x9E3779B1) & _MASK)
    books = torch.arange(codebooks, device=seed.device)
    return _scramble((row[:, None] + books * 0x85EBCA77) & _MASK)


def gumbel(key: Tensor, index: Tensor) -> Tensor:
    """Gumbel noise, float32, for candidates `index` [B, n] of rows with `key` [B, 1] -> [B, n]; or
    for all codebooks: index [n], key [B, K, 1] -> [B, K, n]"""
    bits = _scramble((key + index * 0xC2B2AE3D) & _MASK)
    # 23 bits and a half fit a float32 exactly; with 24 the largest would round to 1, and its noise
    # to infinity.
    uniform = (bits >> 9).float().add_(0.5).mul_(1.0 / 2**23)
    return -(-uniform.log_()).log_()


@dataclass(slots=True)
class SamplingRows:
    """How each row draws. `temperature`, `top_k` [rows, 2]: for codebook 0 (the backbone's) and for
    the others (the depth decoder's); `seed`, `frame` [rows]: `frame` counts the utterance's
    frames."""

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


class Sampler:
    """Draws one code per row; built for one frame of B rows.

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
        self._cool = (1.0 / temperature.clamp(min=1e-5)).unsqueeze(-1).unbind(1)
        # A greedy row keeps one candidate, like top-k 1.
        kept = rows.top_k[:batch].masked_fill(temperature <= 0, 1)
        dropped = torch.zeros(batch, 2, candidates, device=rows.seed.device)
        dropped.masked_fill_(rank >= kept[..., None], float("-inf"))
        self._dropped = dropped.unbind(1)
        keys = noise_keys(rows.seed[:batch], rows.frame[:batch], codebooks)
        self._keys = keys.unsqueeze(-1).unbind(1)
        self._table: tuple[Tensor, ...] | None = None
        if batch * codebooks * codes <= _TABLE:
            every = torch.arange(codes, device=rows.seed.device)
            self._table = gumbel(keys[..., None], every).unbind(1)

    def __call__(self, logits: Tensor, codebook: int) -> Tensor:
        """logits [B, V] -> codes [B], int64"""
        if not self.candidates:
            best, code = logits.max(dim=-1)
            self._best.append(best)
            return code
        # topk sorts, so that the place of a candidate is its rank.
        values, index = logits.float().topk(self.candidates, dim=-1)
        self._best.append(values[:, 0])
        part = min(codebook, 1)
        score = torch.addcmul(self._dropped[part], values, self._cool[part])
        choice = score.add_(self._noise(codebook, index)).argmax(dim=-1, keepdim=True)
        return index.gather(1, choice)[:, 0]

    def sound(self) -> Tensor:
        """[B]: whether all that was drawn came from numbers. The largest logit tells: NaN counts as
        larger than everything, and it is -Inf only where no logit is a number."""
        return torch.stack(self._best).isfinite().all(dim=0)

    def _noise(self, codebook: int, index: Tensor) -> Tensor:
        if self._table is None:
            return gumbel(self._keys[codebook], index)
        return self._table[codebook].gather(1, index)
