"""Synthetic speakers: changes to the teacher's acoustic features before the vocoder."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from .spec import SAMPLE_RATE
from .teacher import Parts

Samples = npt.NDArray[np.float32]
BINS = 601
_HZ = np.arange(BINS) * (SAMPLE_RATE / 2) / (BINS - 1)
_MEL = 2595 * np.log10(1 + _HZ / 700)
_VOICED, _LOWEST = 40.0, 55.0
"""Hz: a frame with a lower F0 is unvoiced, and the lowest F0 of any speaker."""
PEAK = 0.7


@dataclass(frozen=True)
class Speaker:
    """A change of the teacher's voice."""

    pitch: float
    spread: float
    """Range of intonation: an exponent on F0 relative to its mean."""
    low: float
    """Factor on formants below 1.5 kHz."""
    high: float
    """Factor on formants above 3 kHz."""
    tilt: float
    """Spectral tilt: natural logarithm of the gain at 12 kHz."""
    breath: float
    """Natural logarithm of the noise's gain."""
    bumps: tuple[float, ...]
    """An equaliser: natural logarithms of gains at knots spaced evenly in mel."""
    pace: float

    def asdict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def draw(random_: random.Random) -> Speaker:
    """A random speaker: pitch 0.42 to 1.4 of the teacher's, formants correlated with it."""
    pitch = 2 ** random_.uniform(-1.25, 0.5)
    with_it = 1.0 + (0.21 if pitch < 1 else 0.28) * float(np.log2(pitch))
    size = float(np.clip(with_it + random_.gauss(0.03, 0.055), 0.78, 1.24))
    return Speaker(
        pitch=pitch,
        spread=random_.uniform(0.65, 1.25),
        low=size * random_.uniform(0.97, 1.03),
        high=size * random_.uniform(0.96, 1.04),
        tilt=random_.uniform(-1.0, 0.6),
        breath=random_.uniform(-0.5, 0.5),
        bumps=tuple(random_.gauss(0, 0.3) for _ in range(9)),
        pace=random_.uniform(0.85, 1.25),
    )


def _source_bins(speaker: Speaker) -> npt.NDArray[np.float64]:
    """The source bin of each bin."""
    knots = np.array([0, 1500, 3000, 12_000.0])
    low, high = 1500 * speaker.low, 1500 * speaker.high
    to = np.array([0, low, low + high, low + high + 6 * high])
    return np.clip(np.interp(_HZ, to, knots) / 20.0, 0, BINS - 1)


def _change(parts: Parts, speaker: Speaker) -> Parts:
    harmonic, theta, noise, free, phase, f0 = parts
    source = _source_bins(speaker)
    below = np.floor(source).astype(int)
    above, part = np.minimum(below + 1, BINS - 1), (source - below).astype(np.float32)[:, None]
    harmonic, theta, noise, free = (
        x[below] * (1 - part) + x[above] * part for x in (harmonic, theta, noise, free)
    )
    knots = np.linspace(0, _MEL[-1], len(speaker.bumps))
    gain = speaker.tilt * _HZ / 12_000 + np.interp(_MEL, knots, speaker.bumps)
    gain = gain.astype(np.float32)[:, None]
    voiced, f0 = f0 > _VOICED, f0.copy()
    if voiced.any():
        middle = np.exp(np.log(f0[voiced]).mean())
        bent = middle * speaker.pitch * (f0[voiced] / middle) ** speaker.spread
        f0[voiced] = np.maximum(bent, _LOWEST)
    noise = noise + gain + np.float32(speaker.breath)
    return [harmonic + gain, theta, noise, free + gain, phase, f0]


def vocode(parts: Parts, speaker: Speaker | None, rng: np.random.Generator) -> Samples:
    """Audio at 24 kHz with a peak of 0.7; without a speaker in the teacher's own voice."""
    from hibari import dsp

    *envelopes, phase, f0 = parts if speaker is None else _change(parts, speaker)
    spectra = [np.ascontiguousarray(x, np.float32) for x in envelopes]
    out = dsp.synth(*spectra, phase, f0, rng)
    return (PEAK * out / max(float(np.abs(out).max()), 1e-3)).astype(np.float32)


def channel(sound: Samples, random_: random.Random) -> Samples:
    """Simulates the recording of a reference: band limits, noise, loudness."""
    from scipy.signal import butter, sosfiltfilt

    def filtered(order: int, hertz: float, kind: str) -> Samples:
        sections = butter(order, hertz, kind, fs=SAMPLE_RATE, output="sos")
        return np.asarray(sosfiltfilt(sections, sound), np.float32)

    if random_.random() < 0.5:
        sound = filtered(6, random_.choice((3600, 6500, 7500, 7500)), "low")
    if random_.random() < 0.3:
        sound = filtered(2, random_.choice((80, 150, 250)), "high")
    if random_.random() < 0.4:
        noise = np.random.default_rng(random_.randrange(2**31)).normal(0, 1, len(sound))
        sound = sound + noise * 10 ** random_.uniform(-3.6, -2.4)
    return (sound * random_.uniform(0.5, 1.2)).astype(np.float32)
