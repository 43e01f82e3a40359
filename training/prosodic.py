"""The codes in which the model speaks: what a frame says, how high, how loud, and what comes next.

| codebook | code from `ENCODED` on |
|---|---|
| 0 | the frame's phone and the kind of sound after it (`phonetic.py`) |
| 1 | periods of the voice in the frame, and the size of the speaker (the factor on formants) |
| 2 | the frame's level |
| 3 | the next frame's phone and the kind of sound after that |

Codebooks 0 and 3 follow from the text. In codebook 1 the language model takes pitch and size from
the reference, whose codes are the encoder's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import phonetic
from .phones import LEAD
from .speakers import FEWEST, MOST
from .spec import CODEBOOKS, ENCODED, FRAME

SIZES, LEVELS = 12, 24
PITCHES = MOST - FEWEST + 1
"""Numbers of periods in a frame; a step is 12.5 Hz."""
SMALLEST, LARGEST = 0.8, 1.2
"""Factors on formants of the first and the last size."""
QUIETEST, STEP = -60.0, 2.5
"""Level in dB of full scale of the first level, and of one step."""
Codes = npt.NDArray[np.int16]


def _bins(values: npt.NDArray[Any], first: float, last: float, count: int) -> npt.NDArray[Any]:
    places = np.round((values - first) / (last - first) * (count - 1))
    return np.clip(places, 0, count - 1).astype(np.int16)


def levels(audio: npt.NDArray[np.int16], frames: int) -> npt.NDArray[np.float32]:
    """Level of each frame in dB of full scale."""
    cut = audio[: frames * FRAME].astype(np.float32).reshape(frames, FRAME) / 32768
    return np.asarray(10 * np.log10((cut**2).mean(1) + 1e-8), np.float32)


def codes_of(
    symbols: str, periods: npt.NDArray[Any], size: float, audio: npt.NDArray[np.int16]
) -> Codes:
    """Codes (frames, CODEBOOKS) of an utterance on the grid.

    symbols: one a frame; periods: of the voice in each; audio: its samples at 24 kHz.
    """
    codes = np.empty((len(symbols), CODEBOOKS), np.int16)
    high = np.clip(periods, FEWEST, MOST).astype(np.int16) - FEWEST
    wide = _bins(np.array(size), SMALLEST, LARGEST, SIZES)
    loudest = QUIETEST + STEP * (LEVELS - 1)
    codes[:, 0] = phonetic.codes_of(symbols)
    codes[:, 1] = ENCODED + high * SIZES + wide
    codes[:, 2] = ENCODED + _bins(levels(audio, len(symbols)), QUIETEST, loudest, LEVELS)
    codes[:, 3] = phonetic.codes_of(symbols[1:] + LEAD)
    return codes
