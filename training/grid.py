"""Speech on a grid: every phone of a synthetic utterance lasts a whole number of codec frames.

A codec frame is 80 ms, about a phone's length. Where each phone takes exactly as many frames as
the text has symbols for it, the symbol that a frame speaks stands a constant distance before it,
and the language model learns to read within minutes instead of days. Pitch and timbre stay the
synthesiser's own; only the clock is bent (waveform similarity overlap-add).
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from .spec import FRAME, SAMPLE_RATE

Samples = npt.NDArray[np.float32]
Phones = list[tuple[str, float]]
"""Phones with their end times in seconds."""

_HOP = SAMPLE_RATE * 15 // 1000
_WINDOW = 2 * _HOP
_REACH = SAMPLE_RATE * 12 // 1000
"""How far a window may move to meet its neighbour in phase: a period at 83 Hz."""
_COARSE = 4
"""The search runs on every fourth sample: speech pitch needs no more."""


def flite(text: str, voice: str, options: Sequence[str] = ()) -> tuple[Samples, int, Phones]:
    """Speak `text`: mono samples, their rate, and the phones with their end times."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice, "-psdur", *options, "-t", text, "-o", str(path)]
        printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        samples, rate = soundfile.read(path, dtype="float32")
    phones = [(p, float(e)) for p, _, e in (w.rpartition(":") for w in printed.stdout.split())]
    return np.asarray(samples, np.float32), rate, phones


def change_size(samples: Samples, rate: int, size: float) -> tuple[Samples, float]:
    """To 24 kHz, with pitch and formants multiplied by `size`; returns the change of clock too.

    A larger `size` is a smaller speaker. Times in the result are times in the source / `size`.
    """
    out = soxr.resample(samples, rate * size, SAMPLE_RATE).astype(np.float32)
    return out, 1.0 / size


def bend(samples: Samples, knots_in: Sequence[float], knots_out: Sequence[float]) -> Samples:
    """Resynthesise so that what was at `knots_in` seconds comes at `knots_out` seconds.

    Both are increasing and of equal length; the result ends at the last of `knots_out`.
    """
    length = round(knots_out[-1] * SAMPLE_RATE)
    clock = np.interp(
        np.arange(0, length + _WINDOW, _HOP),
        np.asarray(knots_out) * SAMPLE_RATE,
        np.asarray(knots_in) * SAMPLE_RATE,
    ).astype(int)
    pad = _WINDOW + _REACH
    source = np.pad(samples, (pad, pad + 2 * _WINDOW))
    window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
    out = np.zeros(length + 3 * _WINDOW, np.float32)
    place = clock[0] + pad - _HOP
    for number, wanted in enumerate(clock + pad - _HOP):
        place = _in_phase(source, place + _HOP, wanted) if number else wanted
        piece = source[place : place + _WINDOW]
        out[number * _HOP : number * _HOP + len(piece)] += piece * window[: len(piece)]
    return out[_HOP : _HOP + length]


def _in_phase(source: Samples, natural: int, wanted: int) -> int:
    """The start near `wanted` whose window looks most like the one at `natural`."""
    low = max(wanted - _REACH, 0)
    field = source[low : wanted + _REACH + _WINDOW : _COARSE]
    like = source[natural : natural + _WINDOW : _COARSE]
    if len(like) < _WINDOW // _COARSE or len(field) < len(like):
        return min(wanted, len(source) - _WINDOW)
    score = np.correlate(field, like)
    energy = np.cumsum(np.concatenate(([0.0], field.astype(np.float64) ** 2)))
    norm = np.sqrt(energy[len(like) :] - energy[: -len(like)] + 1e-4)
    best = low + int(np.argmax(score / norm)) * _COARSE
    return min(best, len(source) - _WINDOW)


def to_grid(
    samples: Samples, clock: float, phones: Phones, frames: Sequence[int], evenness: float = 1.0
) -> Samples:
    """Give phone i exactly `frames[i]` codec frames; phones with 0 frames vanish.

    `evenness` below 1 leaves part of each phone's natural length, within the same total.
    """
    ends = np.array([0.0, *(end for _, end in phones)]) * clock
    natural = np.diff(ends)
    grid = np.asarray(frames, float) * FRAME / SAMPLE_RATE
    keep = grid > 0
    blend = np.where(keep, np.maximum(natural, 1e-3) ** (1 - evenness) * grid**evenness, 0.0)
    blend *= grid.sum() / blend.sum()
    knots_in, knots_out, now = [], [], 0.0
    for start, end, length, kept in zip(ends[:-1], ends[1:], blend, keep, strict=True):
        if not kept:
            continue
        knots_in += [start, end - 1e-6]
        knots_out += [now, now + length - 1e-6]
        now += length
    knots_out[-1] = grid.sum()
    return bend(samples, knots_in, knots_out)
