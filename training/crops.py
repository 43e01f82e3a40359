"""Short crops of the corpus, cut at frame borders: training data of the codec and of `ear.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import corpus, encode
from .common import batch_random
from .spec import FRAME

BATCH, FRAMES = 6, 12
STOCK_SHARE = 0.8
"""Share of crops with the stock voice, if there are other voices."""


class Crops:
    """Draws random crops of utterances; `share` of them have the stock voice."""

    def __init__(self, rows: list[dict[str, Any]], share: float = STOCK_SHARE) -> None:
        long = [row for row in rows if len(row["frames"]) >= FRAMES]
        self.stock = [row for row in long if row["voice"] == corpus.STOCK]
        self.others = [row for row in long if row["voice"] != corpus.STOCK]
        self.share = share

    def _draw(self, seed: int, step: int) -> Iterator[tuple[dict[str, Any], slice]]:
        random_ = batch_random(seed, step)
        for _ in range(BATCH):
            stock = random_.random() < self.share
            row = random_.choice((self.stock if stock else self.others) or self.stock)
            start = random_.randint(0, len(row["frames"]) - FRAMES)
            yield row, slice(start, start + FRAMES)

    def batch(self, seed: int, step: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Audio (batch, 1, samples) and symbol numbers (batch, frames) of crops."""
        drawn = list(self._draw(seed, step))
        phones = [[ord(c) - 0x20 for c in row["frames"][part]] for row, part in drawn]
        return _sound(drawn).to(device), torch.tensor(phones, device=device)

    def coded_batch(self, seed: int, step: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (batch, codebooks, frames) and audio (batch, 1, samples) of crops."""
        drawn = list(self._draw(seed, step))
        codes = np.stack([row["codes"][part].T for row, part in drawn]).astype(np.int64)
        return torch.from_numpy(codes).to(device), _sound(drawn).to(device)


def _sound(drawn: list[tuple[dict[str, Any], slice]]) -> torch.Tensor:
    cut = [row["audio"][part.start * FRAME : part.stop * FRAME] for row, part in drawn]
    return torch.from_numpy(np.stack(cut).astype(np.float32) / 32768)[:, None]


def coded_rows(work: Path, kind: str = "codes") -> list[dict[str, Any]]:
    """Utterances with their audio and the codes in folder `kind` of `work`, without held-out
    ones."""
    rows = []
    for number in corpus.present(work, kind):
        codes = encode.load(work, [number], kind)
        audio = corpus.load(work, [number])
        rows += [{**a, "codes": c["codes"]} for a, c in zip(audio, codes, strict=True)]
    return rows
