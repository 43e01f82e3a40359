"""Detects the agent's own speech in the caller's audio (acoustic echo).

The loudness over time of 12 bands within a telephone's bandwidth is compared, so that level, delay,
codec and room acoustics do not hide an echo, and no transcript is needed. Knows nothing of LiveKit.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..audio.resample import from_pcm16

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]
    Courses = npt.NDArray[np.float64]

_HOP_S, _WINDOW_S = 0.016, 0.032
_EDGES_HZ = np.geomspace(250.0, 3400.0, 13)
_FLOOR_DB = 50.0
"""Range below the loudest value; anything quieter is noise and is ignored."""
_SHORTEST_S = 0.25
_ALIKE, _ALIKE_SHORT, _SHORT_S = 0.68, 0.87, 1.2
"""Correlation from which a turn counts as an echo; short turns correlate more by chance. Measured:
speech of people at most 0.61 from 1.5 s on, echoes in a noisy room at least 0.75."""


class OwnSound:
    """The last `keep_s` of the agent's own speech."""

    def __init__(self, keep_s: float = 45.0) -> None:
        self._keep = keep_s
        self._rate = 0
        self._pcm = bytearray()

    def push(self, pcm: bytes, rate: int) -> None:
        """Adds 16-bit mono PCM that is being spoken. The first call sets the rate."""
        self._rate = self._rate or rate
        self._pcm += pcm
        surplus = len(self._pcm) - int(self._keep * self._rate) * 2
        if surplus > 0:
            del self._pcm[: surplus // 2 * 2]

    def echoes_in(self, samples: Samples, rate: int) -> bool:
        """Whether most of `samples`, float32 [n], is an echo of this speech. Takes about 20 ms."""
        seconds = len(samples) / rate
        spoken = len(self._pcm) / 2 / self._rate if self._rate else 0.0
        if min(seconds, spoken) < _SHORTEST_S or spoken < seconds / 2:
            return False
        own = from_pcm16(bytes(self._pcm))
        least = _ALIKE_SHORT if seconds < _SHORT_S else _ALIKE
        return likeness(samples, rate, own, self._rate) >= least


def likeness(piece: Samples, piece_rate: int, whole: Samples, whole_rate: int) -> float:
    """Best correlation, -1 to 1, of the shorter of both with any stretch of the longer one."""
    a, b = _courses(piece, piece_rate), _courses(whole, whole_rate)
    if a.shape[1] > b.shape[1]:
        a, b = b, a
    return _best_match(a, b)


def _courses(samples: Samples, rate: int) -> Courses:
    """Loudness in decibels, [bands, frames], limited below."""
    hop, window = round(_HOP_S * rate), round(_WINDOW_S * rate)
    frames = max(1, 1 + (len(samples) - window) // hop)
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    at = np.arange(frames)[:, None] * hop + np.arange(window)
    power = np.abs(np.fft.rfft(padded[at] * np.hanning(window))) ** 2
    edges = np.searchsorted(np.fft.rfftfreq(window, 1 / rate), _EDGES_HZ)
    bands = np.stack([power[:, a : max(b, a + 1)].mean(axis=1) for a, b in pairwise(edges)])
    decibels = 10.0 * np.log10(bands + 1e-12)
    return np.asarray(np.maximum(decibels, decibels.max() - _FLOOR_DB))


def _best_match(a: Courses, b: Courses) -> float:
    """Best Pearson correlation of `a` [bands, n] with any stretch of `b` [bands, m >= n].

    Each band's mean is subtracted, also within the stretch. Level and frequency response therefore
    have no influence.
    """
    n, m = a.shape[1], b.shape[1]
    a = a - a.mean(axis=1, keepdims=True)
    size = 1 << (n + m - 1).bit_length()
    spectrum = np.fft.rfft(b, size) * np.conj(np.fft.rfft(a, size))
    dots = np.fft.irfft(spectrum, size)[:, : m - n + 1].sum(axis=0)
    sums, squares = (np.cumsum(np.pad(x, ((0, 0), (1, 0))), axis=1) for x in (b, b**2))
    total, square = sums[:, n:] - sums[:, :-n], squares[:, n:] - squares[:, :-n]
    energy = (square - total**2 / n).sum(axis=0) * (a**2).sum()
    return float((dots / np.sqrt(np.maximum(energy, 1e-9))).max())
