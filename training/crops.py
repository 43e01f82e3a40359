"""Short crops of the corpus, cut at frame borders: training data of the codec and of `ear.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import corpus, encode, prosodic
from .common import batch_random
from .spec import FRAME

BATCH, FRAMES = 4, 20
LEAD = 2
"""First frames of a crop of codes, which have no loss: their past in the utterance is missing."""
ONSET_SHARE = 0.2
"""Share of the batches of codes that begin where utterances begin, without a lead. Without them the
decoder does not learn first sounds: 0.73 of the first frames were told, of later ones 0.92."""
RARE_SHARE = 0.25
"""Share of crops with a symbol of which all kinds are equally likely. Without it the codec loses
rare sounds: the diphthong of `voice` is 0.08 % of the frames."""
ENCODED_SHARE = 0.4
"""Share of crops of encoded speech that keep the encoder's codebook 0, so that a recording still
passes through the codec; the others get codes for speaking."""
STOCK_SHARE = 0.8
"""Share of crops with the stock voice, if there are other voices."""


class Crops:
    """Draws random crops of utterances; `share` of them have the stock voice."""

    def __init__(self, rows: list[dict[str, Any]], share: float = STOCK_SHARE) -> None:
        long = [row for row in rows if len(row["frames"]) >= FRAMES]
        self.stock = [row for row in long if row["voice"] == corpus.STOCK]
        self.others = [row for row in long if row["voice"] != corpus.STOCK]
        self.share = share
        self.places = [_places(self.stock), _places(self.others)]

    def _draw(
        self, seed: int, step: int, onset: bool = False
    ) -> Iterator[tuple[dict[str, Any], slice]]:
        random_ = batch_random(seed, step)
        for _ in range(BATCH):
            stock = random_.random() < self.share or not self.others
            rows, places = (self.stock, self.others)[not stock], self.places[not stock]
            if random_.random() < RARE_SHARE:
                number, place = random_.choice(places[random_.choice(sorted(places))])
                row = rows[number]
                start = place - random_.randint(2, FRAMES - 2)
                start = min(max(start, 0), len(row["frames"]) - FRAMES)
            else:
                row = random_.choice(rows)
                start = random_.randint(0, len(row["frames"]) - FRAMES)
            start = 0 if onset else start
            yield row, slice(start, start + FRAMES)

    def batch(self, seed: int, step: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Audio (batch, 1, samples) and symbol numbers (batch, frames) of crops."""
        drawn = list(self._draw(seed, step))
        return _sound(drawn).to(device), _symbols(drawn).to(device)

    def coded_batch(
        self, seed: int, step: int, device: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Codes (batch, codebooks, frames), audio (batch, 1, samples) and symbol numbers (batch,
        frames) of crops, a share of them with codebook 0 of the encoder; and the number of first
        frames to leave out of the loss."""
        lots = batch_random(seed, -1 - step)
        onset = lots.random() < ONSET_SHARE
        drawn = list(self._draw(seed, step, onset))
        codes = np.stack(
            [
                row["encoded" if "encoded" in row and lots.random() < ENCODED_SHARE else "codes"][
                    part
                ].T
                for row, part in drawn
            ]
        )
        codes = torch.from_numpy(codes.astype(np.int64)).to(device)
        return codes, _sound(drawn).to(device), _symbols(drawn).to(device), 0 if onset else LEAD


def _places(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, int]]]:
    """Where every symbol occurs: numbers of the row and the frame."""
    places: dict[str, list[tuple[int, int]]] = {}
    for number, row in enumerate(rows):
        for place, symbol in enumerate(row["frames"]):
            places.setdefault(symbol, []).append((number, place))
    return places


def _symbols(drawn: list[tuple[dict[str, Any], slice]]) -> torch.Tensor:
    return torch.tensor([[ord(c) - 0x20 for c in row["frames"][part]] for row, part in drawn])


def _sound(drawn: list[tuple[dict[str, Any], slice]]) -> torch.Tensor:
    cut = [row["audio"][part.start * FRAME : part.stop * FRAME] for row, part in drawn]
    return torch.from_numpy(np.stack(cut).astype(np.float32) / 32768)[:, None]


def coded_rows(work: Path, shards: list[int]) -> list[dict[str, Any]]:
    """Aligned utterances of shards with their audio, the codes in which the model would speak them
    and, of the stock voice, those of the encoder (of others it heard another channel)."""
    rows = []
    for number in shards:
        coded = encode.load(work, [number])
        for index, row in enumerate(corpus.load(work, [number])):
            if row["frames"] == row["symbols"]:
                said = prosodic.codes_of(row["frames"], row["periods"], row["size"], row["audio"])
                stock = coded and row["voice"] == corpus.STOCK
                own = coded[index].get("encoded") if stock else None
                rows.append({**row, "codes": said} | ({} if own is None else {"encoded": own}))
    return rows
