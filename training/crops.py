"""Short pieces of the corpus, cut between frames: what the codec and the ear learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from . import corpus, encode
from .common import batch_random
from .spec import FRAME

BATCH, FRAMES = 6, 12
HELD_SHARD = 0
"""Of the corpus; no training opens it."""


def batch(rows: list[dict], seed: int, step: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio (batch, 1, samples) and phone numbers (batch, frames), crops on frame boundaries."""
    random_ = batch_random(seed, step)
    audio, phones = [], []
    while len(audio) < BATCH:
        row = random_.choice(rows)
        frames = len(row["symbols"])
        if frames < FRAMES:
            continue
        start = random_.randint(0, frames - FRAMES)
        audio.append(row["audio"][start * FRAME : (start + FRAMES) * FRAME])
        phones.append([ord(c) - 0x20 for c in row["symbols"][start : start + FRAMES]])
    sound = torch.from_numpy(np.stack(audio).astype(np.float32) / 32768)[:, None]
    return sound.to(device), torch.tensor(phones, device=device)


def coded_batch(
    rows: list[dict], seed: int, step: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (batch, codebooks, frames) and audio (batch, 1, samples) of crops."""
    random_ = batch_random(seed, step)
    audio, codes = [], []
    while len(audio) < BATCH:
        row = random_.choice(rows)
        if len(row["codes"]) < FRAMES:
            continue
        start = random_.randint(0, len(row["codes"]) - FRAMES)
        audio.append(row["audio"][start * FRAME : (start + FRAMES) * FRAME])
        codes.append(row["codes"][start : start + FRAMES].T)
    sound = torch.from_numpy(np.stack(audio).astype(np.float32) / 32768)[:, None]
    return torch.from_numpy(np.stack(codes).astype(np.int64)).to(device), sound.to(device)


def coded_rows(work: Path, main_share: float) -> list[dict]:
    """Encoded utterances with their audio, but the held-out ones; the main voice to its share."""
    rows = [row for row in encode.load(work) if row["shard"] != HELD_SHARD]
    shards = sorted({row["shard"] for row in rows})
    audio = [row["audio"] for n in shards for row in corpus.load(work, range(n, n + 1))]
    rows = [{**row, "audio": sound} for row, sound in zip(rows, audio, strict=True)]
    main = [r for r in rows if (r["voice"], r["size"]) == corpus.MAIN]
    others = [r for r in rows if (r["voice"], r["size"]) != corpus.MAIN]
    wanted = round(len(main) * (1 - main_share) / main_share)
    return main + (others * (wanted // max(len(others), 1) + 1))[:wanted]
