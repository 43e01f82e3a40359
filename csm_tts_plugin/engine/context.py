"""What a conversation has said so far, as positions the model reads. Plain numpy, no device.

A position is one row of K + 1 numbers: K codes and then a text token, or -1 where it is a frame.
The log is the truth; a row of keys and values on the device is a cache of its first `valid`
positions.
"""

from __future__ import annotations

from collections import deque
from itertools import chain

import numpy as np
import numpy.typing as npt

from ..errors import RequestError

Positions = npt.NDArray[np.int64]


class Context:
    """Voice first, then turns. At the limit the oldest turns go, the voice never."""

    def __init__(self, codebooks: int, limit: int) -> None:
        self.limit = limit
        self.voice: Positions = np.empty((0, codebooks + 1), np.int64)
        self.turns: deque[list[Positions]] = deque()
        """Each turn in parts, as they came."""
        self.valid = 0
        """Positions that the device's row already holds."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def pending(self) -> int:
        return self._length - self.valid

    def set_voice(self, voice: Positions, keep: list[list[Positions]]) -> None:
        """Another voice: the row is worth nothing any more. `keep`: turns that stay."""
        self.voice, self.turns, self.valid = voice, deque(keep), 0
        self._length = len(voice) + sum(map(_length, keep))

    def add_turn(self, positions: Positions) -> None:
        self.turns.append([positions])
        self._length += len(positions)

    def extend_turn(self, positions: Positions) -> None:
        """More of the last turn: a frame just made, or the end frame after them."""
        self.turns[-1].append(positions)
        self._length += len(positions)

    def drop_turn(self) -> None:
        """Take the last turn out again."""
        self._length -= _length(self.turns.pop())
        self.valid = min(self.valid, self._length)

    def cut_turn(self, at: int, frames: int, end: Positions) -> None:
        """Of a turn just spoken (text, frames one by one, `end`) keep the text and `frames`."""
        turn = self.turns[at]
        before = len(self.voice) + sum(map(_length, list(self.turns)[:at]))
        kept = turn[: 1 + frames]
        self.turns[at] = [*kept, end]
        self._length += _length(self.turns[at]) - _length(turn)
        self.valid = min(self.valid, before + _length(kept))

    def take_out(self, at: int) -> None:
        """A turn never was; those after it move up and are read again."""
        before = len(self.voice) + sum(map(_length, list(self.turns)[:at]))
        self._length -= _length(self.turns[at])
        del self.turns[at]
        self.valid = min(self.valid, before)

    def make_room(self, need: int) -> int:
        """Drop the oldest turns until `need` more positions fit; how many turns went.

        The last turn is the one about to be spoken and stays. Raises RequestError, with nothing
        dropped, where even the voice and that turn alone leave too little.
        """
        least = len(self.voice) + (_length(self.turns[-1]) if self.turns else 0)
        if least > self.limit - need:
            raise RequestError(
                f"Voice and text take {least} of the model's {self.limit} positions and leave no "
                "room to speak: use a shorter reference or a shorter text."
            )
        dropped = 0
        while self._length > self.limit - need and len(self.turns) > 1:
            self._length -= _length(self.turns.popleft())
            dropped += 1
        if dropped:
            self.valid = min(self.valid, len(self.voice))
        return dropped

    def unread(self, count: int) -> Positions:
        """The next `count` positions that the row does not hold yet."""
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
