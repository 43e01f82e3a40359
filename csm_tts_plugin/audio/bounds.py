"""Limits for recordings, and the error messages for recordings that exceed them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..config import Limits
from ..errors import AudioError

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

MAX_CHANNELS = 8
_RATES = range(8_000, 192_001)
_FULL_SCALE = 4.0
"""Float files may exceed 1.0 a little and are clipped; above this they are not
scaled to [-1, 1].
"""
_SILENCE_PEAK = 10.0 ** (-50.0 / 20.0)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits for a recording. `advice` is the end of the message for one that is
    too short or long.
    """

    bytes: int
    shortest_s: float
    longest_s: float
    advice: str

    @classmethod
    def of_references(cls, limits: Limits) -> Bounds:
        return cls(
            limits.reference_bytes,
            limits.reference_seconds_min,
            limits.reference_seconds_max,
            "3 to 15 s of speech make a good reference",
        )

    @classmethod
    def of_detection(cls, limits: Limits) -> Bounds:
        """Limits for watermark detection: longer, such as a whole call."""
        return replace(
            cls.of_references(limits),
            longest_s=limits.detect_seconds_max,
            advice="a second of speech is enough to tell",
        )


def check_format(rate: int, channels: int) -> None:
    if rate not in _RATES:
        raise AudioError(f"The recording has {rate} Hz; 8000 to 192000 Hz can be used.")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"The recording has {channels} channels; 1 to {MAX_CHANNELS} can be used.")


def check_length(frames: int, rate: int, bounds: Bounds) -> None:
    check_longest(frames, rate, bounds)
    if not frames:
        raise AudioError("The recording holds no sound at all, only a header; record it again.")
    if frames < bounds.shortest_s * rate:
        raise AudioError(
            f"The recording lasts {frames / rate:.2f} s, less than "
            f"{bounds.shortest_s:g} s; {bounds.advice}."
        )


def check_longest(frames: int, rate: int, bounds: Bounds) -> None:
    if frames > bounds.longest_s * rate:
        raise AudioError(
            f"The recording lasts more than {bounds.longest_s:g} s; cut it: {bounds.advice}."
        )


def check_values(samples: Samples) -> None:
    peak = float(np.max(np.abs(samples), initial=0.0))
    if not np.isfinite(peak):
        raise AudioError(
            "The recording holds NaN or infinite samples; save it again as 16-bit WAV."
        )
    if peak > _FULL_SCALE:
        raise AudioError(
            f"The recording is not scaled to [-1, 1], its peak is {peak:.3g}; divide whole numbers"
            " by their range, or save it again as 16-bit WAV."
        )


def check_sound(samples: Samples) -> None:
    if float(np.max(np.abs(samples - samples.mean()), initial=0.0)) < _SILENCE_PEAK:
        raise AudioError("The recording is silent; check the microphone and record it again.")
