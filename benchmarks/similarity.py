"""Speaker similarity by resemblyzer's embeddings, with all audio at one bandwidth.

The cosine is near 0.9 between two recordings of a person and near 0.5 between different people, and
lower for short recordings. A narrower band alone makes recordings less similar, so all audio is
resampled to the same rate first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soxr

MEASURING = Path(__file__).resolve().parent.parent / ".tools" / "measuring"
_RATE = 16_000
"""The encoder's rate in Hz."""


class SpeakerEncoder:
    """Speaker embeddings. Raises SystemExit, with what to do, if resemblyzer is not installed."""

    def __init__(self, band_rate: int = _RATE) -> None:
        """`band_rate` in Hz: all audio is limited to half of it; 8000 for a telephone's band."""
        measuring()
        try:
            from resemblyzer import VoiceEncoder, preprocess_wav
        except ImportError as error:
            raise SystemExit(
                f"Comparing voices takes resemblyzer ({error}): `make bench` installs it, as does"
                " `python3 -m scripts.setup measuring`."
            ) from None
        self._band = band_rate
        self._encoder = VoiceEncoder("cpu", verbose=False)
        self._without_pauses = preprocess_wav

    def embed(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """The speaker's unit vector [256] for mono float32 samples [n] at `rate` Hz."""
        narrow = soxr.resample(samples, rate, self._band)
        speech = self._without_pauses(soxr.resample(narrow, self._band, _RATE).astype(np.float32))
        return self._encoder.embed_utterance(speech)


def median_pitch(samples: np.ndarray, rate: int) -> float:
    """Median F0 in Hz over the voiced 40 ms frames of mono float32 samples; nan without any.

    A frame is voiced if it is not silent and its autocorrelation exceeds 0.5 at a lag of 60 to
    400 Hz.
    """
    sound = soxr.resample(samples, rate, 8_000).astype(np.float64)
    size, low, high = 320, 8_000 // 400, 8_000 // 60
    loud = 0.1 * float(np.sqrt((sound**2).mean()))
    found = []
    for start in range(0, len(sound) - size - high, size // 2):
        piece, field = sound[start : start + size], sound[start : start + size + high]
        if np.sqrt((piece**2).mean()) < loud:
            continue
        energy = np.cumsum(np.concatenate(([0.0], field**2)))
        size_of = np.sqrt((energy[size:] - energy[:-size]) * (piece**2).sum() + 1e-12)
        score = np.correlate(field, piece) / size_of
        best = float(score[low : high + 1].max())
        if best > 0.5:
            # Twice the period fits as well: the first lag that is nearly the best one is taken.
            near = low + int(np.argmax(score[low : high + 1] > 0.9 * best))
            lag = near + int(np.argmax(score[near : near + 4]))
            found.append(8_000 / lag)
    return float(np.median(found)) if found else float("nan")


def alike(some: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Mean similarity, -1 to 1, of each of `some` to each of `others`."""
    return float(np.mean(np.array(some) @ np.array(others).T))


def measuring() -> None:
    """Adds the packages that set-up installs apart from the environment to `sys.path`."""
    if str(MEASURING) not in sys.path:
        sys.path.append(str(MEASURING))
