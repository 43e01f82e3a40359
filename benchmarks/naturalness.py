"""Naturalness of speech as rated by distillmos (1 to 5), and its similarity to another by PESQ.

Both are optional: `python3 -m scripts.setup measuring` installs distillmos; PESQ takes a C compiler
(`pip install pesq==0.0.4`).
"""

from __future__ import annotations

import numpy as np
import soxr
import torch

from benchmarks.similarity import measuring

_RATE = 16_000
"""The rate of both measures in Hz."""


def ratings(sounds: list[np.ndarray], rate: int) -> list[float] | None:
    """The rating of each of mono float32 samples [n] at `rate` Hz; None without distillmos."""
    measuring()
    try:
        import distillmos
    except ImportError:
        return None
    model = distillmos.ConvTransformerSQAModel().eval()
    with torch.inference_mode():
        return [float(model(torch.from_numpy(_narrowed(sound, rate))[None])) for sound in sounds]


def likeness(plain: np.ndarray, changed: np.ndarray, rate: int) -> float | None:
    """Wide-band PESQ of changed samples [n], up to 4.64; None without the package."""
    measuring()
    try:
        import pesq
    except ImportError:
        return None
    return float(pesq.pesq(_RATE, _narrowed(plain, rate), _narrowed(changed, rate), "wb"))


def _narrowed(sound: np.ndarray, rate: int) -> np.ndarray:
    return np.asarray(soxr.resample(sound, rate, _RATE), np.float32)
