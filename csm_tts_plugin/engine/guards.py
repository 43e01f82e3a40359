"""Ends for speech that does not end by itself, each with a reason the caller can act on."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from ..config import FRAME_SECONDS
from .api import Codes, Reason, Samples

_SECONDS_PER_CHARACTER = 0.16
"""Slow speech: CSM speaks some 14 characters a second, this allows 6."""

_SECONDS_AROUND = 3.0
"""Pauses before, after and between."""

_SILENCE_LEVEL = 10 ** (-60 / 20)
_SILENCE_SECONDS = 3.0
_LOOP_PERIOD = 8
"""The longest loop looked for, in frames."""

_LOOP_SECONDS = 3.0


def frames_for(text: str, max_seconds: float | None) -> int:
    """The most frames that `text` may take."""
    seconds = _SECONDS_AROUND + _SECONDS_PER_CHARACTER * len(text)
    if max_seconds is not None:
        seconds = min(seconds, max_seconds)
    return max(1, math.ceil(seconds / FRAME_SECONDS))


class Guard:
    """Watches one utterance frame by frame."""

    def __init__(self, max_frames: int) -> None:
        self.max_frames = max_frames
        self._frames = 0
        self._silent = 0
        self._repeats = [0] * (_LOOP_PERIOD + 1)
        self._recent: deque[bytes] = deque(maxlen=_LOOP_PERIOD)

    def check(self, codes: Codes, samples: Samples) -> Reason | None:
        """The reason to stop after this frame, if there is one."""
        self._frames += 1
        if self._frames >= self.max_frames:
            return Reason.LENGTH
        if self._is_silent(samples):
            return Reason.SILENCE
        return Reason.LOOP if self._is_looping(codes) else None

    def _is_silent(self, samples: Samples) -> bool:
        loud = float(np.sqrt(np.mean(np.square(samples)))) > _SILENCE_LEVEL
        self._silent = 0 if loud else self._silent + 1
        return self._silent * FRAME_SECONDS >= _SILENCE_SECONDS

    def _is_looping(self, codes: Codes) -> bool:
        """The same frames over and over, with any period up to `_LOOP_PERIOD`."""
        frame = codes.tobytes()
        for period, earlier in enumerate(reversed(self._recent), start=1):
            self._repeats[period] = self._repeats[period] + 1 if earlier == frame else 0
        self._recent.append(frame)
        return max(self._repeats) * FRAME_SECONDS >= _LOOP_SECONDS
