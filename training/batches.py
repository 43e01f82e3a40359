"""Batches for the language model: turns of the corpus as sequences in CSM's prompt format."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch

from .common import batch_random
from .corpus import STOCK
from .spec import AUDIO, AUDIO_END, BOS, CODEBOOKS, EOS, SPECIAL, VOCAB, WIDTH

ROWS = 16
"""Sequences in a batch."""
SHARES = (0.1, 0.3, 0.6)
"""Shares of sequences in the stock voice without a reference, in the stock voice after a reference
of its own, and in another speaker's voice after a reference of theirs."""
TWO = 0.3
"""Share of references with two turns: a caller's has one or more."""
HIDDEN = VOCAB - 1
"""The padding id, used for masked frames."""
SPEAKERS = ("0", "0", "0", "0", "1", "1", "2", "agent", "caller", "stock")


@dataclass
class Sequences:
    """A padded batch. Tensors are (rows, length); `shown` and `codes` also have codebooks."""

    text: torch.Tensor
    """Token ids; AUDIO for frames, AUDIO_END for end frames."""
    shown: torch.Tensor
    """The codes that the model gets, with masked and replaced ones."""
    codes: torch.Tensor
    """The true codes of frames and end frames."""
    position: torch.Tensor
    weight: torch.Tensor
    """Weight of this position in the loss; 0 if it is not a frame."""

    def to(self, device: str) -> Sequences:
        """The batch on a device."""
        return Sequences(*(value.to(device) for value in vars(self).values()))


def token(character: str) -> int:
    return len(SPECIAL) + ord(character) - 0x20


def hide(codes: np.ndarray, random_: random.Random, share: float) -> np.ndarray:
    """Masks a share of the frames, and gives up to a tenth the codes of another frame."""
    shown, count = codes.copy(), len(codes)
    lots = np.array([random_.random() for _ in range(count)])
    wrong = lots > 1 - 0.1 * min(share * 2, 1)
    shown[wrong] = codes[[random_.randrange(count) for _ in range(int(wrong.sum()))]]
    shown[lots < share] = HIDDEN
    return shown


def build_turn(
    row: dict, symbols: str, speaker: str, random_: random.Random, share: float, pads: int
) -> tuple[list[int], list[int], np.ndarray, np.ndarray, int]:
    """One turn: token ids, positions within the turn, shown codes, true codes, its length."""
    head = [BOS, *map(token, f"[{speaker}]")]
    places = list(range(len(symbols)))
    places += sorted(random_.sample(range(len(symbols), WIDTH), min(pads, WIDTH - len(symbols))))
    text = [*head, *(token(symbols[i] if i < len(symbols) else " ") for i in places), EOS]
    position = [*range(len(head)), *(len(head) + i for i in places), len(head) + WIDTH]
    frames = len(row["codes"])
    ids = [*text, *[AUDIO] * frames, AUDIO_END]
    position += range(position[-1] + 1, position[-1] + 2 + frames)
    codes = np.zeros((len(ids), CODEBOOKS), np.int64)
    codes[len(text) : -1] = row["codes"]
    shown = codes.copy()
    shown[len(text) : -1] = hide(codes[len(text) : -1], random_, share)
    return ids, position, shown, codes, position[-1] + 1


def share_hidden(random_: random.Random) -> float:
    """The share of a turn's own frames to mask: none, half, or nearly all."""
    return random_.choices((0.0, 0.5, 0.95), (0.2, 0.3, 0.5))[0]


def build(
    turns: list[dict], random_: random.Random, full: bool, hidden: float | None = None
) -> dict[str, np.ndarray]:
    """A sequence of turns. Only the last counts in the loss: this is what the model speaks; the
    codes of a reference it only gets to hear. hidden: the share of the last turn's frames to mask;
    a random one without it."""
    speaker = random_.choice(SPEAKERS)
    ids, position, shown, codes, weight, start = [], [], [], [], [], 0
    for number, row in enumerate(turns, 1):
        learnt = number == len(turns)
        share = 0.0 if not learnt else share_hidden(random_) if hidden is None else hidden
        turn = build_turn(row, row["symbols"], speaker, random_, share, WIDTH if full else 6)
        ids += turn[0]
        position += [start + p for p in turn[1]]
        shown.append(turn[2])
        codes.append(turn[3])
        weight += [float(learnt and token in (AUDIO, AUDIO_END)) for token in turn[0]]
        start += turn[4]
    return {
        "text": np.array(ids),
        "position": np.array(position),
        "shown": np.concatenate(shown),
        "codes": np.concatenate(codes),
        "weight": np.array(weight, np.float32),
    }


def collate(items: list[dict[str, np.ndarray]]) -> Sequences:
    """Pads on the right; attention is causal, so padding has no effect."""
    length = max(len(item["text"]) for item in items)

    def stack(key: str) -> torch.Tensor:
        first = items[0][key]
        out = np.zeros((len(items), length, *first.shape[1:]), first.dtype)
        for line, item in enumerate(items):
            out[line, : len(item[key])] = item[key]
        return torch.from_numpy(out)

    return Sequences(*(stack(k) for k in ("text", "shown", "codes", "position", "weight")))


def reference(row: dict) -> dict:
    """An utterance as the model hears it in a reference: in the encoder's codes."""
    return {**row, "codes": row["encoded"]}


class Corpus:
    """Draws batches with rows of similar length: an utterance alone in the stock voice, or after a
    reference of the same speaker."""

    def __init__(self, rows: list[dict], shares: tuple[float, ...] = SHARES) -> None:
        self.shares = shares
        self.stock = [row for row in rows if row["voice"] == STOCK]
        self.groups: list[tuple[list[dict], list[dict]]] = speakers(rows)

    def draw(self, random_: random.Random) -> list[dict]:
        """Turns of a sequence."""
        kind = random_.choices(("alone", "stock", "other"), self.shares)[0]
        if kind == "other" and self.groups:
            heard, said = random_.choice(self.groups)
            last = random_.choice(said)
            others = [row for row in heard if row is not last]
            count = 2 if random_.random() < TWO else 1
            return [*map(reference, random_.sample(others, min(count, len(others)))), last]
        if kind == "alone":
            return [random_.choice(self.stock)]
        one, other = random_.sample(self.stock, 2)
        return [reference(one), other] if "encoded" in one else [other]

    def batch(self, seed: int, step: int) -> Sequences:
        """The batch of a step, determined by seed, step and corpus."""
        random_ = batch_random(seed, step)
        pool = sorted((self.draw(random_) for _ in range(ROWS * 4)), key=_frames)
        start = random_.randrange(len(pool) - ROWS + 1)
        full = random_.random() < 0.06
        return collate([build(turns, random_, full) for turns in pool[start : start + ROWS]])


def speakers(rows: list[dict]) -> list[tuple[list[dict], list[dict]]]:
    """References and aligned utterances of every synthetic speaker."""
    groups: dict[object, list[dict]] = {}
    for row in rows:
        if row["voice"] != STOCK:
            groups.setdefault(row["group"], []).append(row)
    parted = [
        (
            [row for row in some if "encoded" in row],
            [row for row in some if row["frames"] == row["symbols"]],
        )
        for some in groups.values()
    ]
    return [(heard, said) for heard, said in parted if heard and len(said) > 1]


def _frames(turns: list[dict]) -> int:
    return sum(len(turn["codes"]) for turn in turns)
