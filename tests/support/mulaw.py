"""G.711 mu-law, the codec of telephone lines: 8 kHz, 8 bits per sample, 64 kbit/s."""

from __future__ import annotations

import numpy as np
import soxr

RATE = 8_000
_BIAS, _CLIP = 132, 32_635


def encode(pcm: np.ndarray) -> np.ndarray:
    """int16 [n] to uint8 [n]: sign, exponent and four bits of mantissa, all inverted."""
    wide = pcm.astype(np.int32)
    magnitude = np.minimum(np.abs(wide), _CLIP) + _BIAS
    exponent = np.floor(np.log2(magnitude)).astype(np.int32) - 7
    mantissa = (magnitude >> (exponent + 3)) & 0x0F
    sign = np.where(wide < 0, 0x80, 0)
    return (~(sign | (exponent << 4) | mantissa) & 0xFF).astype(np.uint8)


def decode(coded: np.ndarray) -> np.ndarray:
    """uint8 [n] to int16 [n]."""
    bits = ~coded.astype(np.int32) & 0xFF
    magnitude = ((((bits & 0x0F) << 3) + _BIAS) << ((bits & 0x70) >> 4)) - _BIAS
    return np.where(bits & 0x80, -magnitude, magnitude).astype(np.int16)


def line(pcm: np.ndarray, rate: int) -> np.ndarray:
    """What comes out at the other end of a telephone line: int16 [n] at 8 kHz."""
    narrow = soxr.resample(pcm.astype(np.float32), rate, RATE)
    return decode(encode(np.clip(np.rint(narrow), -32_768, 32_767).astype(np.int16)))


def spoken_into(pcm: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The same resampled to `wanted` Hz, as a SIP bridge does for the room: int16 [m]."""
    raised = soxr.resample(line(pcm, rate).astype(np.float32), RATE, wanted)
    return np.clip(np.rint(raised), -32_768, 32_767).astype(np.int16)
