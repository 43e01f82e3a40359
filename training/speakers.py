"""Synthetic speakers: changes to the teacher's acoustic features before the vocoder."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from .spec import FRAME, SAMPLE_RATE
from .teacher import Parts

Samples = npt.NDArray[np.float32]
BINS = 601
_HZ = np.arange(BINS) * (SAMPLE_RATE / 2) / (BINS - 1)
_MEL = 2595 * np.log10(1 + _HZ / 700)
_VOICED, _LOWEST = 40.0, 55.0
"""Hz: a frame with a lower F0 is unvoiced, and the lowest F0 of any speaker."""
PEAK = 0.7
STEP = 300
"""Samples of one step of the teacher's F0."""
RATE = SAMPLE_RATE / FRAME
"""Codec frames in a second."""
STAYS = 0.7
"""Periods by which F0 must move before their number changes: it would flicker between two."""
FEWEST, MOST = 4, 32
"""Periods of the voice in a codec frame: 50 to 400 Hz."""


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
    """A random speaker of whom only pitch, range and size are special: what the model can follow.

    Pitch is 0.42 to 1.32 of the teacher's, formants are correlated with it, and the tilt follows
    from the size, as between the teacher's own voice and the stock voice.
    """
    pitch = 2 ** random_.uniform(-1.25, 0.4)
    with_it = 1.0 + (0.21 if pitch < 1 else 0.28) * float(np.log2(pitch))
    size = float(np.clip(with_it + random_.gauss(0.01, 0.04), 0.8, 1.2))
    return Speaker(
        pitch=pitch,
        spread=random_.uniform(0.7, 1.2),
        low=size,
        high=0.98 * size,
        tilt=float(np.interp(size, (0.85, 1.0, 1.2), (-0.9, 0.0, 0.3))),
        breath=0.0,
        bumps=(0.0,) * 9,
        pace=random_.uniform(0.85, 1.25),
    )


def coloured(speaker: Speaker, random_: random.Random) -> Speaker:
    """The speaker with a random colour, for references: real ones differ in more than the model
    follows, and it must find pitch and size regardless."""
    return replace(
        speaker,
        low=speaker.low * random_.uniform(0.97, 1.03),
        high=speaker.high * random_.uniform(0.95, 1.05),
        tilt=speaker.tilt + random_.uniform(-0.6, 0.6),
        breath=random_.uniform(-0.5, 0.5),
        bumps=tuple(random_.gauss(0, 0.3) for _ in range(9)),
    )


def _source_bins(speaker: Speaker) -> npt.NDArray[np.float64]:
    """The source bin of each bin."""
    knots = np.array([0, 1500, 3000, 12_000.0])
    low, high = 1500 * speaker.low, 1500 * speaker.high
    to = np.array([0, low, low + high, low + high + 6 * high])
    return np.clip(np.interp(_HZ, to, knots) / 20.0, 0, BINS - 1)


def change(parts: Parts, speaker: Speaker) -> Parts:
    """The vocoder's inputs for the speaker."""
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


def vocode(
    parts: Parts, rng: np.random.Generator, periods: npt.NDArray[np.int64] | None = None
) -> Samples:
    """Audio at 24 kHz with a peak of 0.7.

    periods: of the voice in each codec frame, a whole number, so that every frame begins with the
    same phase; without them F0 is the teacher's.
    """
    from hibari import dsp

    *envelopes, phase, f0 = parts
    spectra = [np.ascontiguousarray(x, np.float32) for x in envelopes]
    plain = dsp.pulses  # `synth` takes no pulses, so they are exchanged for this call
    try:
        if periods is not None:
            dsp.pulses = lambda curve: aligned_pulses(curve, periods)
        out = dsp.synth(*spectra, phase, f0, rng)
    finally:
        dsp.pulses = plain
    return (PEAK * out / max(float(np.abs(out).max()), 1e-3)).astype(np.float32)


def aligned_pulses(f0: Samples, periods: npt.NDArray[np.int64]) -> Samples:
    """A pulse train (len(f0) * STEP,) with a whole number of periods in each codec frame.

    All harmonics below 11 kHz have the amplitude 1; where `f0` has no voice it is 0.
    """
    count = len(f0) * STEP
    frames = -(-count // FRAME)
    known = np.pad(periods, (0, max(0, frames - len(periods))), mode="edge")[:frames]
    cycles = (np.arange(FRAME) / FRAME)[None] * known[:, None]
    angle = 2 * np.pi * (cycles.reshape(-1)[:count] % 1.0)
    highest = np.repeat(np.floor(11_000 / (known * RATE)), FRAME)[:count]
    below = 2 * np.sin(angle / 2)
    small = np.abs(below) < 2e-3
    above = np.sin((highest + 0.5) * angle)
    train = np.where(small, highest + 0.5, above / np.where(small, 1.0, below)) - 0.5
    voiced = np.repeat(f0 > _VOICED, STEP)
    return np.where(voiced, train, 0.0).astype(np.float32)


def periods(f0: Samples, frames: int) -> npt.NDArray[np.int64]:
    """How many periods of the voice each codec frame has (frames,): its F0, to 12.5 Hz.

    f0: the vocoder's, in steps of `STEP` samples; below `_VOICED` there is no voice, and F0 is
    interpolated. At the edges of voiced parts the teacher's F0 passes through values far below the
    voice; they are left out.
    """
    voiced = f0 > _VOICED
    if not voiced.any():
        return np.full(frames, FEWEST, np.int64)
    places = np.flatnonzero(f0 > 0.65 * np.median(f0[voiced]))
    middles = (np.arange(frames) + 0.5) * FRAME / STEP - 0.5
    hertz = np.exp(np.interp(middles, places, np.log(f0[places])))
    kept, out = 0.0, np.empty(frames, np.int64)
    for place, wanted in enumerate(hertz / RATE):
        kept = kept if abs(wanted - kept) < STAYS else np.round(wanted)
        out[place] = np.clip(kept, FEWEST, MOST)
    return out


def channel(sound: Samples, random_: random.Random) -> Samples:
    """Simulates the recording of a reference: a telephone's or another band, noise, loudness."""
    from scipy.signal import butter, sosfiltfilt

    def filtered(order: int, hertz: float, kind: str) -> Samples:
        sections = butter(order, hertz, kind, fs=SAMPLE_RATE, output="sos")
        return np.asarray(sosfiltfilt(sections, sound), np.float32)

    if random_.random() < 0.6:
        sound = filtered(6, random_.choice((3400, 3600, 5500, 7500, 7500)), "low")
    if random_.random() < 0.4:
        sound = filtered(2, random_.choice((80, 150, 300)), "high")
    if random_.random() < 0.4:
        noise = np.random.default_rng(random_.randrange(2**31)).normal(0, 1, len(sound))
        sound = sound + noise * 10 ** random_.uniform(-3.6, -2.4)
    return (sound * random_.uniform(0.5, 1.2)).astype(np.float32)


def room(sound: Samples, random_: random.Random) -> Samples:
    """Simulates a room around a third of the references: an exponentially decaying echo."""
    if random_.random() > 0.35:
        return sound
    count = int(SAMPLE_RATE * random_.uniform(0.05, 0.4))
    rng = np.random.default_rng(random_.randrange(2**31))
    echo = rng.normal(0, 1, count) * np.exp(-6 * np.arange(count) / count)
    echo *= random_.uniform(0.1, 0.7) / np.sqrt((echo**2).sum())
    echo[0] = 1.0
    size = 1 << (len(sound) + count).bit_length()
    out = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(echo, size), size)[: len(sound)]
    return (PEAK * out / max(float(np.abs(out).max()), 1e-3)).astype(np.float32)
