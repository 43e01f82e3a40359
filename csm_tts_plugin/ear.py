"""An ear for the caller: their sound of late, from which each turn is cut. Knows nothing of
LiveKit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .audio.resample import from_pcm16

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

_QUIET = 0.003
"""RMS of 10 ms below which nobody speaks."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A turn's sound: float32, mono; `begin`: seconds since the call's first sample."""

    samples: Samples = field(repr=False)
    rate: int
    begin: float

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


class CallerEar:
    """The caller's sound of late, from which each turn is cut when its words are known."""

    def __init__(self, keep_s: float = 60.0, before_s: float = 0.8) -> None:
        self._keep = keep_s
        self._before = before_s
        self._rate = 0
        self._pcm = bytearray()
        self._gone = 0
        """Bytes heard and let go."""
        self._mark: int | None = None
        """Byte at which the turn begins; None: nobody has spoken since the last cut."""

    def push(self, pcm: bytes, rate: int) -> None:
        """16-bit mono PCM as it arrives; the rate is that of the first."""
        self._rate = self._rate or rate
        self._pcm += pcm
        surplus = len(self._pcm) - int(self._keep * self._rate) * 2
        if surplus > 0:
            del self._pcm[:surplus]
            self._gone += surplus
            self._mark = None if self._mark is None else max(0, self._mark - surplus)

    def speech_began(self) -> None:
        """Voice activity says so, and is always late: the turn begins a moment before."""
        if self._mark is None:
            self._mark = max(0, len(self._pcm) - int(self._before * self._rate) * 2)

    def cut(self) -> Cut | None:
        """The turn until now without the silence around it."""
        mark, self._mark = self._mark, None
        if mark is None:
            return None
        begin, end = spoken(from_pcm16(bytes(self._pcm[mark:])), self._rate)
        if begin == end:
            return None
        samples = from_pcm16(bytes(self._pcm[mark + 2 * begin : mark + 2 * end]))
        return Cut(samples, self._rate, ((self._gone + mark) / 2 + begin) / self._rate)

    def forget(self) -> None:
        """All that was heard until now."""
        self._gone += len(self._pcm)
        self._pcm.clear()
        self._mark = None


def spoken(samples: Samples, rate: int, around_s: float = 0.1) -> tuple[int, int]:
    """From where to where somebody speaks, with `around_s` of silence; equal: all is silence."""
    window = rate // 100
    blocks = samples[: len(samples) // window * window].reshape(-1, window)
    loudness = np.sqrt(np.mean(blocks**2, axis=1))
    loud = np.flatnonzero(loudness > max(_QUIET, 0.03 * float(loudness.max(initial=0.0))))
    if not len(loud):
        return 0, 0
    around = int(around_s * rate)
    begin = max(0, int(loud[0]) * window - around)
    return begin, min(len(samples), (int(loud[-1]) + 1) * window + around)
