"""Who a voice is like: speaker embeddings by resemblyzer, everything at one bandwidth.

Its cosine is near 0.9 between two recordings of a person and near 0.5 between strangers, and lower
where recordings are short. A narrower band alone would make two recordings less alike, so all sound
is brought to the same rate first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soxr

MEASURING = Path(__file__).resolve().parent.parent / ".tools" / "measuring"
_RATE = 16_000
"""Hz; the encoder's own."""


class Ear:
    """Embeddings of speakers. Raises SystemExit, with the cure, where resemblyzer is missing."""

    def __init__(self, band_rate: int = _RATE) -> None:
        """`band_rate` in Hz: all sound is cut to half of it, 8000 for a telephone's band."""
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

    def hear(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """The unit vector [256] of who speaks in float32 mono samples."""
        narrow = soxr.resample(samples, rate, self._band)
        speech = self._without_pauses(soxr.resample(narrow, self._band, _RATE).astype(np.float32))
        return self._encoder.embed_utterance(speech)


def alike(some: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Mean similarity, -1 to 1, of each of `some` to each of `others`."""
    return float(np.mean(np.array(some) @ np.array(others).T))


def measuring() -> None:
    """Lets Python find what set-up keeps apart from the environment."""
    if str(MEASURING) not in sys.path:
        sys.path.append(str(MEASURING))
