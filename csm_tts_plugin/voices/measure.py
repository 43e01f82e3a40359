"""Measures the quality of recorded speech. Pure numpy; takes about 0.3 % of real time.

Not measured, because it needs a model: who speaks, whether the transcript is right, and whether a
living person speaks. Two people of similar pitch who take turns count as one. Of people who speak
at the same time, only a man and a woman of equal loudness lower the quality. This refuses no
recording, because one lively speaker may give the same figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]
    Values = npt.NDArray[np.float64]
    Flags = npt.NDArray[np.bool_]

HOP_S = 0.02
"""Distance between two frames, each with level, pitch and voicing."""
PAUSE_S = 0.14
"""Silence shorter than this may be the closure of a stop consonant."""
NARROW_HZ = 5_000.0
"""Bandwidth below which a recording counts as telephone audio."""

_WINDOW_S = 0.04
_PITCH_BAND_HZ = 4_000.0
_PITCH_HZ = (65.0, 420.0)
_VOICED = 0.5
"""Autocorrelation at the period above which a frame is voiced; 1 is perfectly periodic."""
_SILENCE_DB = -90.0
_ABOVE_NOISE_DB = 6.0
_BELOW_SPEECH_DB = 28.0
_NOISE_PERCENTILE, _LOUD_PERCENTILE = 5.0, 95.0
_BAND_DB = 60.0
"""Level below the strongest band under which a band does not count for the bandwidth."""
_FFT_S = 0.06
"""Window plus longest period: a longer lag would wrap around in the circular autocorrelation."""
_BATCH = 64
"""Frames processed at once, so that they fit into the cache."""


@dataclass(frozen=True, slots=True)
class Track:
    """Figures of each frame of a recording, `HOP_S` apart; arrays are [n]."""

    level_db: Values
    harmonicity: Values
    """0 is noise, 1 a perfect period."""
    pitch_hz: Values
    """Valid where `voiced`."""
    active: Flags
    """Frames with speech."""
    voiced: Flags
    """Frames of speech with vibrating vocal folds."""
    noise_db: float
    speech_db: float
    bandwidth_hz: float

    def pauses(self) -> list[tuple[int, int]]:
        """Frames [begin, end) of each silence of at least `PAUSE_S`, in order."""
        least = round(PAUSE_S / HOP_S)
        return [(a, b) for a, b in _runs(~self.active) if b - a >= least]


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures that decide whether a recording makes a reference."""

    seconds: float
    speech_seconds: float
    """Duration without the pauses."""
    level_db: float
    """RMS of the speech without its pauses, relative to full scale."""
    peak_db: float
    noise_db: float
    """RMS in the pauses."""
    clipped: float
    """Share of clipped samples."""
    bandwidth_hz: float
    voiced: float
    """Voiced share of the speech: 0.4 to 0.9; near 0 in a whisper."""
    harmonicity: float
    """Mean of the voiced frames, 0 to 1; noise, echo and other voices lower it."""
    pitch_hz: float
    """Median; 0 if nothing is voiced."""
    pitch_jump: float
    """Semitones between the medians of the highest and lowest phrase; detects a second speaker."""
    pitch_flips: float
    """Share of adjacent voiced frames (20 ms) between which the pitch leaps: lively speech up to
    0.1, a man and a woman at the same time, equally loud, from 0.16."""
    cut: tuple[bool, bool]
    """Whether it begins, and whether it ends, within a sound. A cut in the silent part of a p, t or
    k is not detected."""

    @property
    def snr_db(self) -> float:
        return self.level_db - self.noise_db

    @property
    def narrow(self) -> bool:
        return self.bandwidth_hz < NARROW_HZ

    def __str__(self) -> str:
        """One line for logs."""
        return (
            f"{self.seconds:.1f} s, speech {self.level_db:.0f} dBFS and {self.snr_db:.0f} dB above"
            f" the noise, {'narrow' if self.narrow else 'wide'} band to {self.bandwidth_hz:.0f} Hz,"
            f" {100 * self.voiced:.0f} % voiced, {100 * self.clipped:.2f} % clipped"
        )


def measure(samples: Samples, rate: int) -> tuple[Figures, Track]:
    """Measures float32 mono [n] in [-1, 1]: finite, at least 40 ms, at least 8 kHz."""
    track = _track(samples, rate)
    spoken = float(np.count_nonzero(track.active)) * HOP_S
    voiced = np.count_nonzero(track.voiced) * HOP_S
    pitches = track.pitch_hz[track.voiced]
    figures = Figures(
        seconds=len(samples) / rate,
        speech_seconds=spoken,
        level_db=track.speech_db,
        peak_db=_db(float(np.max(np.abs(samples), initial=0.0)) ** 2),
        noise_db=track.noise_db,
        clipped=clipped_share(samples),
        bandwidth_hz=track.bandwidth_hz,
        voiced=voiced / spoken if spoken else 0.0,
        harmonicity=float(np.mean(track.harmonicity[track.voiced])) if len(pitches) else 0.0,
        pitch_hz=float(np.median(pitches)) if len(pitches) else 0.0,
        pitch_jump=_pitch_jump(track),
        pitch_flips=_pitch_flips(track),
        cut=(bool(np.any(track.active[:1])), bool(np.any(track.active[-1:]))),
    )
    return figures, track


def clipped_share(samples: Samples) -> float:
    """Share of samples that stay at the highest or lowest value. Also finds clipping in audio that
    was made quieter afterwards."""
    if len(samples) < 3:
        return 0.0
    low, high = float(samples.min()), float(samples.max())
    reach = 0.002 * max(high - low, 1e-9)
    at_edge = (samples > high - reach) | (samples < low + reach)
    together = at_edge[1:] & at_edge[:-1] & (np.abs(np.diff(samples)) < reach)
    return float(np.count_nonzero(together)) / len(samples)


def loudness_gain(figures: Figures, target_db: float, peak_db: float) -> float:
    """Factor that scales the speech to `target_db` with no sample above `peak_db`."""
    return float(10.0 ** (min(target_db - figures.level_db, peak_db - figures.peak_db) / 20.0))


def _track(samples: Samples, rate: int) -> Track:
    energy, harmonicity, pitch, spectra = _frames(samples, rate)
    level = _db_each(energy)
    noise = float(np.percentile(level, _NOISE_PERCENTILE))
    loud = float(np.percentile(level, _LOUD_PERCENTILE))
    active = _closed(level > max(noise + _ABOVE_NOISE_DB, loud - _BELOW_SPEECH_DB))
    if loud <= _SILENCE_DB + _ABOVE_NOISE_DB:
        active[:] = False
    speech = _db(float(np.mean(energy[active]))) if active.any() else _SILENCE_DB
    quiet = energy[~active]
    if len(quiet) >= 3:
        noise = _db(float(np.median(quiet)))
    return Track(
        level_db=level,
        harmonicity=harmonicity,
        pitch_hz=pitch,
        active=active,
        voiced=active & (harmonicity > _VOICED),
        noise_db=noise,
        speech_db=speech,
        bandwidth_hz=_bandwidth(spectra, active, rate),
    )


def _frames(samples: Samples, rate: int) -> tuple[Values, Values, Values, Values]:
    """Energy, harmonicity and pitch [n] of each frame, and coarse power spectra [n, bands]."""
    width, hop = round(_WINDOW_S * rate), round(HOP_S * rate)
    windows = np.lib.stride_tricks.sliding_window_view(samples, width)[::hop]
    taper = np.hanning(width).astype(np.float32)
    parts = [_some(windows[i : i + _BATCH], taper, rate) for i in range(0, len(windows), _BATCH)]
    energy, harmonicity, pitch, spectra = (
        np.concatenate(part) for part in zip(*parts, strict=True)
    )
    return energy, harmonicity, pitch, spectra


def _some(windows: Samples, taper: Samples, rate: int) -> tuple[Values, Values, Values, Values]:
    """The autocorrelation of the band below 4 kHz. Cutting off the power spectrum is enough: its
    inverse is then low-passed and decimated (Boersma 1993, without the fine search of the
    maximum)."""
    width, size = windows.shape[1], round(_FFT_S * rate)
    centred = (windows - windows.mean(axis=1, keepdims=True)) * taper
    power = _power(np.fft.rfft(centred, size))
    energy: Values = np.sum(centred**2, axis=1, dtype=np.float64)
    energy /= float(np.sum(taper**2))
    kept = int(_PITCH_BAND_HZ / rate * size)
    lag_rate = 2.0 * _PITCH_BAND_HZ
    lags = np.arange(int(lag_rate / _PITCH_HZ[1]), int(lag_rate / _PITCH_HZ[0]) + 1)
    shape = _autocorrelation(_power(np.fft.rfft(taper[None], size)[:, :kept]), lags)
    # A little white noise keeps digital silence from looking periodic.
    seen = _autocorrelation(power[:, :kept], lags, floor=1e-9 * width) / np.maximum(shape, 0.05)
    # Of periods that fit equally well, the shortest is the pitch; the others are its multiples.
    best = np.argmax(seen - 0.02 * np.log2(lags / lags[0]), axis=1)
    strength = np.clip(seen[np.arange(len(seen)), best], 0.0, 1.0)
    # A maximum at the edge is not a pitch: hiss peaks at the shortest lag, hum at the longest.
    strength[(best == 0) | (best == len(lags) - 1)] = 0.0
    return energy, strength, lag_rate / lags[best], _bands(power, rate, size)


def _power(spectrum: npt.NDArray[np.complexfloating[Any, Any]]) -> Values:
    result: Values = spectrum.real**2 + spectrum.imag**2
    return result


def _autocorrelation(power: Values, lags: npt.NDArray[np.int64], floor: float = 0.0) -> Values:
    """Normalised to lag 0, at `lags` of a sample rate of 2 * bins of `power`."""
    full = np.fft.irfft(power, 2 * power.shape[1])
    result: Values = full[:, lags] / np.maximum(full[:, :1] + floor, 1e-20)
    return result


def _bands(power: Values, rate: int, size: int, width_hz: float = 250.0) -> Values:
    step = max(1, round(width_hz / rate * size))
    count = power.shape[1] // step
    result: Values = power[:, : count * step].reshape(len(power), count, step).mean(axis=2)
    return result


def _bandwidth(spectra: Values, active: Flags, rate: int) -> float:
    """Upper edge in Hz of the highest band within `_BAND_DB` of the strongest one.

    A band has what it exceeds in a tenth of the speech: the clicks of lost packets have all bands,
    and would make a telephone's recording wide in a mean.
    """
    if not active.any():
        return 0.0
    levels = 10.0 * np.log10(np.percentile(spectra[active], 90, axis=0) + 1e-20)
    strong = np.flatnonzero(levels > levels.max() - _BAND_DB)
    return float((strong[-1] + 1) / spectra.shape[1] * rate / 2)


def _closed(active: Flags) -> Flags:
    """Marks a single quiet frame inside speech as speech."""
    closed = active.copy()
    closed[1:-1] |= active[:-2] & active[2:]
    return closed


def _pitch_jump(track: Track, least: int = 12) -> float:
    """Compares phrases (speech between two pauses) of at least `least` voiced frames."""
    medians = []
    begin = 0
    for a, b in [*track.pauses(), (len(track.active), 0)]:
        mine = track.pitch_hz[begin:a][track.voiced[begin:a]]
        if len(mine) >= least:
            medians.append(float(np.median(mine)))
        begin = b
    return 12.0 * float(np.log2(max(medians) / min(medians))) if len(medians) > 1 else 0.0


def _pitch_flips(track: Track, semitones: float = 3.0) -> float:
    both = track.voiced[1:] & track.voiced[:-1]
    steps = np.abs(12.0 * np.log2(track.pitch_hz[1:] / track.pitch_hz[:-1]))[both]
    return float(np.mean(steps > semitones)) if len(steps) else 0.0


def _runs(flags: Flags) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _db(power: float) -> float:
    return float(max(_SILENCE_DB, 10.0 * np.log10(power + 1e-20)))


def _db_each(power: Values) -> Values:
    result: Values = np.maximum(_SILENCE_DB, 10.0 * np.log10(power + 1e-20))
    return result
