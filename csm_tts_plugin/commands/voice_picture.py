"""Draws the result of `voices check`: waveform with its pauses, level and noise, spectrum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..audio.files import WholeFile
from ..config import SAMPLE_RATE
from ..voices.measure import HOP_S
from .voice_check import Examined

_SPEECH, _NOISE, _PITCH = "#c8641e", "#8a8a8a", "#2f6f9f"
_ABOVE: dict[str, Any] = {
    "loc": "lower right", "bbox_to_anchor": (1.0, 0.98), "borderaxespad": 0.0, "frameon": False,
}  # fmt: skip
"""Position of a legend that hides no curve."""


def draw(examined: Examined, name: str, path: Path) -> None:
    """Writes the picture. Raises OSError, or ValueError for an unknown kind of file."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    wave, level, spectrum = figure.subplots(3, 1, sharex=True)
    _wave(wave, examined)
    _level(level, examined)
    _spectrum(spectrum, examined)
    title = f"{name}: {examined.score:.2f} of 1\n{examined.figures}"
    wave.set_title(title, loc="left", fontsize=10)
    spectrum.set_xlabel("seconds")
    spectrum.set_xlim(0, examined.figures.seconds)
    with WholeFile(path) as whole:
        figure.savefig(whole.file, dpi=110, format=path.suffix.lower().removeprefix(".") or "png")


def _wave(axis: Any, examined: Examined) -> None:
    step = SAMPLE_RATE // 100
    blocks = examined.samples[: len(examined.samples) // step * step].reshape(-1, step)
    times = np.arange(len(blocks)) / 100
    axis.fill_between(times, blocks.min(axis=1), blocks.max(axis=1), color=_SPEECH, lw=0)
    for begin, end in examined.track.pauses():
        axis.axvspan(begin * HOP_S, end * HOP_S, color=_NOISE, alpha=0.2, lw=0)
    axis.set_ylim(-1, 1)
    axis.set_ylabel("waveform, pauses grey")


def _level(axis: Any, examined: Examined) -> None:
    track, figures = examined.track, examined.figures
    times = (np.arange(len(track.level_db)) + 1) * HOP_S
    axis.plot(times, track.level_db, color=_SPEECH, lw=1)
    axis.axhline(figures.level_db, color=_SPEECH, ls="--", lw=1, label="speech")
    axis.axhline(figures.noise_db, color=_NOISE, ls="--", lw=1, label="noise")
    axis.set_ylabel("dBFS")
    pitch = axis.twinx()
    voiced = np.where(track.voiced, track.pitch_hz, np.nan)
    pitch.plot(times, voiced, ".", ms=3, color=_PITCH)
    pitch.set_ylabel("pitch, Hz", color=_PITCH)
    axis.legend(**_ABOVE, ncols=2)


def _spectrum(axis: Any, examined: Examined) -> None:
    axis.specgram(examined.samples + 1e-7, NFFT=512, noverlap=384, Fs=SAMPLE_RATE, vmin=-140)
    axis.axhline(examined.figures.bandwidth_hz, color=_SPEECH, lw=1.5, label="bandwidth")
    axis.set_ylabel("Hz")
    axis.legend(**_ABOVE)
