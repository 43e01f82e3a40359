"""Guards that end an utterance whose end frame does not come, each with a `Reason`."""

from __future__ import annotations

import math
from collections import deque

from ..config import FRAME_SECONDS
from ..text.weight import weight
from .api import Codes, Reason

_SECONDS_PER_CHARACTER = 0.16
"""Allows 6 characters a second, while CSM speaks about 14; see `text.weight` for how digits and
symbols are counted."""

_SECONDS_AROUND = 3.0
"""Seconds added for pauses."""

_SILENCE_LEVEL = 10 ** (-60 / 20)
_SILENCE_SECONDS = 3.0
_LOOP_PERIOD = 8
"""The longest period of a loop that is detected, in frames."""

_LOOP_SECONDS = 3.0


def frames_for(text: str, max_seconds: float | None) -> int:
    """The most frames that `text` may take, at most `max_seconds` if given."""
    seconds = _SECONDS_AROUND + _SECONDS_PER_CHARACTER * weight(text)
    if max_seconds is not None:
        seconds = min(seconds, max_seconds)
    return max(1, math.ceil(seconds / FRAME_SECONDS))


class Guard:
    """Watches one utterance frame by frame: its codes when they are drawn, its level when it is
    decoded, which may be some frames later.
    """

    def __init__(self, max_frames: int) -> None:
        self.max_frames = max_frames
        self._frames = 0
        self._silent = 0
        self._repeats = [0] * (_LOOP_PERIOD + 1)
        self._recent: deque[bytes] = deque(maxlen=_LOOP_PERIOD)

    def drawn(self, codes: Codes) -> Reason | None:
        """The reason to draw no further frame after this one, or None."""
        self._frames += 1
        if self._frames >= self.max_frames:
            return Reason.LENGTH
        return Reason.LOOP if self._is_looping(codes) else None

    def is_silent(self, level: float) -> bool:
        """Whether the utterance ends with this frame after too long a silence. `level`: the root
        mean square of the frame's samples.
        """
        self._silent = 0 if level > _SILENCE_LEVEL else self._silent + 1
        return self._silent * FRAME_SECONDS >= _SILENCE_SECONDS

    def _is_looping(self, codes: Codes) -> bool:
        """Whether the last frames repeat themselves with a period of up to `_LOOP_PERIOD`."""
        frame = codes.tobytes()
        for period, earlier in enumerate(reversed(self._recent), start=1):
            self._repeats[period] = self._repeats[period] + 1 if earlier == frame else 0
        self._recent.append(frame)
        return max(self._repeats) * FRAME_SECONDS >= _LOOP_SECONDS
