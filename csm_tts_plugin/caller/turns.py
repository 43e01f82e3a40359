"""Records the last minute of the caller's audio and cuts each turn out of it.

Independent of LiveKit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..audio.resample import from_pcm16

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

_QUIET = 0.003
"""RMS of 10 ms below which there is no speech."""
_BACK_S = 15.0
"""How far before the present a turn may begin if voice activity detection reports it late."""
_APART_S = 0.3
"""Silence before a turn."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A turn's audio: float32 mono [n]; `begin`: seconds since the call's first sample."""

    samples: Samples = field(repr=False)
    rate: int
    begin: float

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


class TurnRecorder:
    """The caller's last `keep_s` of audio; a turn is cut out when its transcript arrives."""

    def __init__(self, keep_s: float = 60.0, before_s: float = 0.8) -> None:
        self._keep = keep_s
        self._before = before_s
        self._rate = 0
        self._pcm = bytearray()
        self._gone = 0
        """Number of bytes received and dropped."""
        self._mark: int | None = None
        """Byte in `_pcm` at which the turn begins; None: no speech since the last cut."""
        self._end = 0
        """Byte of all received audio at which the last turn ended."""

    def push(self, pcm: bytes, rate: int) -> None:
        """Adds 16-bit mono PCM as it arrives. The first call sets the rate."""
        self._rate = self._rate or rate
        self._pcm += pcm
        surplus = len(self._pcm) - int(self._keep * self._rate) * 2
        if surplus > 0:
            del self._pcm[:surplus]
            self._gone += surplus
            self._mark = None if self._mark is None else max(0, self._mark - surplus)

    def speech_began(self) -> None:
        """Marks the beginning of a turn.

        Voice activity detection reports speech late, and later still on a busy machine. The turn
        begins `before_s` earlier, or after the silence before that.
        """
        if self._mark is None:
            self._mark = max(0, len(self._pcm) - int(self._before * self._rate) * 2)

    def cut(self, *, said: bool = False) -> Cut | None:
        """The turn so far, without the silence around it; None: there was no speech.

        `said`: there is a transcript, so there was speech even if none was reported.
        """
        mark, self._mark = self._mark, None
        least = max(0, self._end - self._gone, len(self._pcm) - int(_BACK_S * self._rate) * 2)
        self._end = self._gone + len(self._pcm)
        if mark is None and said and self._rate:
            mark = least
        if mark is None:
            return None
        mark = self._silence_before(mark, least)
        begin, end = spoken(from_pcm16(bytes(self._pcm[mark:])), self._rate)
        if begin == end:
            return None
        samples = from_pcm16(bytes(self._pcm[mark + 2 * begin : mark + 2 * end]))
        return Cut(samples, self._rate, ((self._gone + mark) / 2 + begin) / self._rate)

    def _silence_before(self, mark: int, least: int) -> int:
        """Moves `mark` back to the silence before the speech, but not before `least`."""
        apart = int(_APART_S * self._rate) * 2
        loudness = _loudness(from_pcm16(bytes(self._pcm[mark:])), self._rate)
        if not len(loudness):
            return mark
        # Noise of the line does not count as speech: a turn with that noise makes no reference.
        quiet = max(_QUIET, 0.2 * float(np.percentile(loudness, 95)))
        while mark > least:
            window = from_pcm16(bytes(self._pcm[mark : mark + apart]))
            if float(np.sqrt(np.mean(window**2))) <= quiet:
                break
            mark = max(least, mark - apart // 4 * 2)
        return mark

    def forget(self) -> None:
        """Drops all audio received so far."""
        self._gone += len(self._pcm)
        self._pcm.clear()
        self._mark = None


def _loudness(samples: Samples, rate: int) -> Samples:
    """RMS of each 10 ms, [n // 10 ms]."""
    window = rate // 100
    blocks = samples[: len(samples) // window * window].reshape(-1, window)
    loudness: Samples = np.sqrt(np.mean(blocks**2, axis=1))
    return loudness


def spoken(samples: Samples, rate: int, around_s: float = 0.1) -> tuple[int, int]:
    """First and last sample of speech, with `around_s` of silence; equal if there is no speech."""
    window = rate // 100
    loudness = _loudness(samples, rate)
    loud = np.flatnonzero(loudness > max(_QUIET, 0.03 * float(loudness.max(initial=0.0))))
    if not len(loud):
        return 0, 0
    around = int(around_s * rate)
    begin = max(0, int(loud[0]) * window - around)
    return begin, min(len(samples), (int(loud[-1]) + 1) * window + around)
