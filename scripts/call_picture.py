"""Draws a call: both waveforms, the turns as shaded spans, and the parts of each latency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from csm_tts_plugin.audio.files import WholeFile

from .call_turns import PARTS

if TYPE_CHECKING:
    from .call_turns import Report, Turn

CALLER, STOCK, CLONED, WAIT = "#2f6f9f", "#8a8a8a", "#c8641e", "#d9b310"
SHADES = {
    "turn_end": "#7a9cb8",
    "llm": "#b8a07a",
    "first_sentence": "#d9c8a0",
    "first_audio": "#c8641e",
    "playout": "#9fb58f",
    "way_back": "#d8d8d8",
}


def draw(report: Report, path: Path) -> None:
    figure, axes = plt.subplots(
        3, 1, figsize=(14, 6.6), height_ratios=(1, 1, 0.8), layout="constrained"
    )
    voices, parts = axes[:2], axes[2]
    voices[0].sharex(voices[1])
    _wave(voices[0], report, 0, lambda _: CALLER)
    _wave(voices[1], report, 1, lambda at: _colour_at(report, at))
    _shade(voices, report)
    voices[0].set_title(
        f"A call through LiveKit, {report.seconds:.0f} s: the model is {report.model or 'unknown'}"
        f" on {report.device or 'unknown'}",
        loc="left",
        fontsize=12,
    )
    voices[0].set_ylabel("caller")
    voices[1].set_ylabel("agent")
    voices[1].set_xlabel("seconds")
    voices[0].tick_params(labelbottom=False)
    _legend(voices[0], report)
    _latencies(parts, report)
    with WholeFile(path) as whole:
        figure.savefig(whole.file, dpi=110)
    plt.close(figure)


def _wave(axis: Any, report: Report, side: int, colour: Any) -> None:
    """Draws the peaks of 20 ms blocks, which is fast for a minute of audio."""
    step = report.rate // 50
    samples = report.sound[: len(report.sound) // step * step, side].reshape(-1, step)
    times = np.arange(len(samples)) / 50
    low, high = samples.min(axis=1), samples.max(axis=1)
    colours = np.array([colour(at) for at in times])
    for one in sorted(set(colours.tolist())):
        mine = colours == one
        axis.fill_between(times, np.where(mine, low, 0), np.where(mine, high, 0), color=one, lw=0)
    reach = max(0.1, float(np.abs(samples).max(initial=0.0))) * 1.35
    axis.set_ylim(-reach, reach)
    axis.set_xlim(0, report.seconds)
    axis.set_yticks([])
    for edge in ("top", "right", "left"):
        axis.spines[edge].set_visible(False)


def _colour_at(report: Report, at: float) -> str:
    for turn in report.turns:
        if turn.heard and turn.heard[0] - 0.1 <= at <= turn.heard[1] + 0.3:
            return _voice_colour(report, turn)
    return STOCK


def _voice_colour(report: Report, turn: Turn) -> str:
    return STOCK if report.voice_of(turn) in (None, "stock") else CLONED


def _shade(axes: Any, report: Report) -> None:
    for number, turn in enumerate(report.turns, 1):
        axes[0].axvspan(*turn.said, color=CALLER, alpha=0.10, lw=0)
        top = axes[0].get_ylim()[1]
        axes[0].text(turn.said[0], top, f" turn {number}", va="top", fontsize=9, color=CALLER)
        if turn.heard is None:
            continue
        axes[1].axvspan(*turn.heard, color=_voice_colour(report, turn), alpha=0.12, lw=0)
        for axis in axes:
            axis.axvspan(turn.said[1], turn.heard[0], color=WAIT, alpha=0.30, lw=0)
        low, high = axes[1].get_ylim()
        axes[1].text(turn.heard[0], low, f"{turn.e2e:.2f} s ", va="bottom", ha="right", fontsize=9)
        if turn.silent_after is not None:
            axes[1].text(turn.heard[0], high, " interrupted", va="top", fontsize=9)


def _legend(axis: Any, report: Report) -> None:
    entries = [Patch(color=CALLER, label="caller"), Patch(color=STOCK, label="agent, stock voice")]
    if report.clones or report.follows is not None:
        taken = "voice" if report.clones else report.follows
        entries.append(Patch(color=CLONED, label=f"agent, the caller's {taken}"))
    entries.append(Patch(color=WAIT, alpha=0.4, label="end of speech to first reply sample"))
    columns = len(entries)
    axis.legend(
        handles=entries, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, frameon=False
    )


def _latencies(axis: Any, report: Report) -> None:
    """Draws one bar per turn, divided into the parts of its latency."""
    turns = [(n, turn) for n, turn in enumerate(report.turns, 1) if turn.e2e is not None]
    for row, (_, turn) in enumerate(turns):
        left = 0.0
        for name, seconds in turn.parts.items():
            axis.barh(row, seconds, left=left, color=SHADES[name], height=0.55)
            if seconds >= 0.05:
                middle = left + seconds / 2
                axis.text(middle, row, f"{seconds:.2f}", va="center", ha="center", fontsize=8)
            left += seconds
        axis.text((turn.e2e or 0.0) + 0.01, row, f"{turn.e2e:.2f} s", va="center", fontsize=9)
    axis.set_yticks(range(len(turns)), [f"turn {n}" for n, _ in turns])
    axis.invert_yaxis()
    axis.set_xlabel("seconds from the end of the caller's speech until the caller hears the reply")
    for edge in ("top", "right", "left"):
        axis.spines[edge].set_visible(False)
    entries = [Patch(color=SHADES[name], label=label) for name, label in PARTS.items()]
    axis.set_xlim(0, max((turn.e2e or 0.0 for _, turn in turns), default=1.0) * 1.1)
    axis.legend(
        handles=entries, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=6, frameon=False
    )
