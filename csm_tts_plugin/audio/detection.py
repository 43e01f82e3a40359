"""Detects Perth's watermark: a confidence for each second of audio, and for the whole.

The network has three branches, for audio at normal speed and for audio played 25 % slower and
faster; each gives a confidence and a weight for each frame. Perth averages them over the whole;
here they are averaged for each second as well. Long audio is processed in overlapping pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import SAMPLE_RATE
from .perth import REACH, STEP, WINDOW, Convolutions, Spectrum, load_weights, part

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

_BRANCHES = {"slow": 1.25, "normal": 1.0, "fast": 0.75}
"""Factor by which each branch stretches the audio."""
_SECOND = SAMPLE_RATE // STEP
_PIECE = 10 * _SECOND
"""Frames processed together."""
_SIDE = 2 * REACH
"""Frames of context on each side: twice the reach of the slowest branch."""
_SILENCE = 0.03
"""Mean loudness below which a frame is digital silence and is not counted."""
WHOLE_MARKED, SECOND_MARKED, STRETCH_MARKED = 0.5, 0.7, 0.75
"""Thresholds of confidence from which audio counts as watermarked: for the whole, for the whole if
it is one second or less, and for a stretch of it. The highest values of the whole without a
watermark were 0.26 for people and 0.44 for synthetic speech, after Opus, mu-law, noise and changes
of speed; of a single second 0.61. With a watermark the lowest of 60 short sentences was 0.57 after
Opus at 16 kbit/s, also in a real room."""
_STRETCH = 3
"""Seconds. Without a watermark one single second in a thousand reaches 0.97."""


@dataclass(frozen=True, slots=True)
class Detection:
    """Confidences from 0 to 1: of the whole, and of each second; None for digital silence."""

    whole: float
    seconds: tuple[float | None, ...]

    @property
    def stretch(self) -> float:
        """The highest mean of three consecutive seconds, which finds one reply in a long call."""
        heard = [second for second in self.seconds if second is not None]
        starts = range(len(heard) - _STRETCH + 1)
        return max((sum(heard[at : at + _STRETCH]) / _STRETCH for at in starts), default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """The fields of the JSON answer, rounded to thousandths."""
        seconds = [None if second is None else round(second, 3) for second in self.seconds]
        return {"marked": self.marked, "confidence": round(self.whole, 3), "seconds": seconds}

    @property
    def marked(self) -> bool:
        heard = sum(second is not None for second in self.seconds)
        least = WHOLE_MARKED if heard > 1 else SECOND_MARKED
        return self.whole >= least or self.stretch >= STRETCH_MARKED


def detect(samples: Samples) -> Detection:
    """Detects the watermark in samples [n], float32, 24 kHz. Raises ModelLoadError if the weights
    are missing or damaged.
    """
    frames = max(1, len(samples) // STEP)
    sums = np.zeros((-(-frames // _SECOND), len(_BRANCHES), 3))
    detector = _detector()
    for first in range(0, frames, _PIECE):
        last = min(first + _PIECE, frames)
        begin, end = max(0, first - _SIDE), min(last + _SIDE, frames)
        said = detector(_windows(samples, begin, end))[first - begin : last - begin]
        for second in range(first // _SECOND, -(-last // _SECOND)):
            at = second * _SECOND - first
            sums[second] += said[max(0, at) : at + _SECOND].sum(axis=0)
    return Detection(_confidence(sums.sum(axis=0)) or 0.0, tuple(map(_confidence, sums)))


def _windows(samples: Samples, begin: int, end: int) -> Tensor:
    """Windows [end - begin, WINDOW]: frame k is centred on sample k * STEP; silence outside"""
    left = begin * STEP - WINDOW // 2
    right = (end - 1) * STEP + WINDOW // 2
    inside = samples[max(0, left) : right]
    padded = np.pad(inside, (max(0, -left), max(0, right - len(samples))))
    return torch.from_numpy(padded).unfold(0, WINDOW, STEP)


def _confidence(sums: npt.NDArray[np.float64]) -> float | None:
    """Sums [branches, (confidence, weight, frames)] -> the branches' mean, by their weights"""
    count = sums[:, 2:]
    if not count.all():
        return None
    confidence, weight = (sums[:, :2] / count).T
    share = np.exp(weight - weight.max())
    return float(np.clip((confidence * share).sum() / share.sum(), 0.0, 1.0))


class _Detector:
    def __init__(self) -> None:
        tensors, device = load_weights("detector.safetensors"), torch.device("cpu")
        self._spectrum = Spectrum(device)
        self._nets = {name: Convolutions(part(tensors, name), device) for name in _BRANCHES}

    @torch.inference_mode()
    def __call__(self, windows: Tensor) -> npt.NDArray[np.float64]:
        """[T, WINDOW] -> [T, branches, (confidence, weight, 1)], all zero for digital silence"""
        loudness = self._spectrum.loudness(self._spectrum.of(windows))
        sound = loudness.mean(dim=1) > _SILENCE
        said = [self._branch(net, loudness, _BRANCHES[name]) for name, net in self._nets.items()]
        counted = [F.pad(branch, (0, 1), value=1.0) * sound[:, None] for branch in said]
        return torch.stack(counted, dim=1).double().numpy()

    @staticmethod
    def _branch(net: Convolutions, loudness: Tensor, stretch: float) -> Tensor:
        """[T, BANDS] -> [T, (confidence, weight)]"""
        length = len(loudness)
        stretched = max(1, int(length * stretch))
        x = F.interpolate(loudness.T[None], size=stretched, mode="linear", align_corners=True)
        said = net(x.transpose(1, 2)).transpose(1, 2)
        # Perth's outputs for each frame are the weight, then the confidence.
        back = F.interpolate(said, size=length, mode="nearest")[0].T
        return back.flip(1)


@lru_cache(maxsize=1)
def _detector() -> _Detector:
    """The detector, loaded at the first detection: 28 MB of memory."""
    return _Detector()
