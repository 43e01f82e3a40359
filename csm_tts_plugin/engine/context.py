"""A conversation's context as the positions that the model reads. Plain numpy, no device.

A position is one row of K + 1 numbers: K codes and a text token, or -1 instead of the token for an
audio frame. The positions here are authoritative; a row of keys and values on the device is a cache
of the first `valid` of them.
"""

from __future__ import annotations

from collections import deque
from itertools import chain

import numpy as np
import numpy.typing as npt

from ..errors import RequestError

Positions = npt.NDArray[np.int64]


class Context:
    """The reference first, then the turns. At the limit the oldest turns are dropped, the reference
    never.

    `most_turns`: the most turns before the last one, for models that need such a limit.
    """

    def __init__(self, codebooks: int, limit: int, most_turns: int | None = None) -> None:
        self.limit, self.most_turns = limit, most_turns
        self.voice: Positions = np.empty((0, codebooks + 1), np.int64)
        self.turns: deque[list[Positions]] = deque()
        """The parts of each turn, in the order of their arrival."""
        self.valid = 0
        """Number of positions already in the device's row."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def pending(self) -> int:
        return self._length - self.valid

    def set_voice(self, voice: Positions, keep: list[list[Positions]]) -> None:
        """Replace the reference, which invalidates the row. `keep`: the turns that stay."""
        self.voice, self.turns, self.valid = voice, deque(keep), 0
        self._length = len(voice) + sum(map(_length, keep))

    def add_turn(self, positions: Positions) -> None:
        self.turns.append([positions])
        self._length += len(positions)

    def extend_turn(self, positions: Positions) -> None:
        """Append to the last turn: a generated frame, or the end frame."""
        self.turns[-1].append(positions)
        self._length += len(positions)

    def drop_turn(self) -> None:
        """Remove the last turn."""
        self._length -= _length(self.turns.pop())
        self.valid = min(self.valid, self._length)

    def cut_turn(self, at: int, frames: int, end: Positions) -> None:
        """Shorten a spoken turn (text, frames one by one, `end`) to its text
        and `frames` frames.
        """
        turn = self.turns[at]
        before = len(self.voice) + sum(map(_length, list(self.turns)[:at]))
        kept = turn[: 1 + frames]
        self.turns[at] = [*kept, end]
        self._length += _length(self.turns[at]) - _length(turn)
        self.valid = min(self.valid, before + _length(kept))

    def take_out(self, at: int) -> None:
        """Remove one turn; those after it move up and are prefilled again."""
        before = len(self.voice) + sum(map(_length, list(self.turns)[:at]))
        self._length -= _length(self.turns[at])
        del self.turns[at]
        self.valid = min(self.valid, before)

    def make_room(self, need: int) -> int:
        """Drop the oldest turns until `need` more positions fit and at most `most_turns` turns
        precede the last one. Returns the number of dropped turns.

        The last turn is the one about to be spoken and stays. Raises RequestError, with nothing
        dropped, if the reference and that turn alone leave too little room.
        """
        least = len(self.voice) + (_length(self.turns[-1]) if self.turns else 0)
        if least > self.limit - need:
            raise RequestError(
                f"Voice and text take {least} of the model's {self.limit} positions and leave no "
                "room to speak: use a shorter reference or a shorter text."
            )
        dropped = 0
        while len(self.turns) > 1 and (self._length > self.limit - need or self._too_many):
            self._length -= _length(self.turns.popleft())
            dropped += 1
        if dropped:
            self.valid = min(self.valid, len(self.voice))
        return dropped

    @property
    def _too_many(self) -> bool:
        return self.most_turns is not None and len(self.turns) - 1 > self.most_turns

    def unread(self, count: int) -> Positions:
        """The next `count` positions that are not in the row yet."""
        pieces: list[Positions] = []
        skip, left = self.valid, count
        for part in (self.voice, *chain.from_iterable(self.turns)):
            piece = part[skip : skip + left]
            skip = max(0, skip - len(part))
            if len(piece):
                pieces.append(piece)
                left -= len(piece)
            if not left:
                break
        return np.concatenate(pieces)


def _length(turn: list[Positions]) -> int:
    return sum(map(len, turn))


def text_positions(tokens: list[int], codebooks: int) -> Positions:
    """Text tokens as positions [n, K + 1]"""
    positions = np.zeros((len(tokens), codebooks + 1), np.int64)
    positions[:, -1] = tokens
    return positions


def frame_positions(codes: npt.NDArray[np.int64]) -> Positions:
    """Codes [n, K] as positions [n, K + 1]"""
    return np.concatenate([codes, np.full((len(codes), 1), -1, np.int64)], axis=1)


def end_frame(codebooks: int, eos_code: int) -> Positions:
    """The frame that closes a turn's audio, as one position."""
    return frame_positions(np.full((1, codebooks), eos_code, np.int64))
