"""Measures a call's audio: which side spoke when, and gaps inside replies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]
    Bools = npt.NDArray[np.bool_]

STEP_S = 0.01
LOUD_DB = -50.0
"""RMS of 10 ms in dB of full scale; a louder step counts as speech."""

_CUT_STEP_S = 0.005
_FADE_STEPS = 4
_FADE_DB = 3.0
_EVEN_DB = 1.0
_BACK_DB = 6.0
_ONSET_DB = 10.0
_ONSET_STEPS = 4
_LONGEST_S = 0.8
_RISE_DB = 2.0
_BEFORE_STEPS = 8
_DEPTH_DB = 10.0
_SILENT_DB = -65.0


def loud(side: Samples, rate: int) -> Bools:
    """One value every 10 ms."""
    return _levels(side, rate, STEP_S) > LOUD_DB


def first_loud(activity: Bools, start: float, end: float) -> float | None:
    """Seconds at which the first loud step between two times begins."""
    found = np.flatnonzero(_between(activity, start, end))
    return None if not len(found) else (int(start / STEP_S) + int(found[0])) * STEP_S


def last_loud(activity: Bools, start: float, end: float) -> float | None:
    """Seconds at which the last loud step between two times ends."""
    found = np.flatnonzero(_between(activity, start, end))
    return None if not len(found) else (int(start / STEP_S) + int(found[-1]) + 1) * STEP_S


def _between(activity: Bools, start: float, end: float) -> Bools:
    return activity[max(0, int(start / STEP_S)) : max(0, int(end / STEP_S))]


def cuts(speech: Samples, rate: int) -> list[tuple[float, float]]:
    """Gaps that late audio left in speech: begin and end of each, in seconds.

    Late audio is replaced by silence before Opus encodes it. Opus then fades the previous sound by
    nearly the same step every 5 ms, until the sound returns abruptly. A voice may fade evenly too,
    but less far, or its level rises before the next sound. Detects 36 of 45 gaps of 50 to 350 ms
    cut into human speech; none in 34 s of it without gaps, and none in 18 s of `tiny`.
    """
    levels = _levels(speech, rate, _CUT_STEP_S)
    steps = np.diff(levels)
    even = (steps > -_FADE_DB) & (steps < 0.1)
    even[1:] &= np.abs(np.diff(steps)) < _EVEN_DB
    found: list[tuple[float, float]] = []
    for begin, faded in _runs(even):
        back = np.flatnonzero(levels[faded + 1 :] > levels[faded] + _BACK_DB)
        end = faded + 1 + int(back[0]) if len(back) else len(levels)
        again = levels[end : end + _ONSET_STEPS]
        abrupt = len(again) > 0 and again.max() > max(LOUD_DB, levels[faded] + _ONSET_DB)
        short = (end - begin) * _CUT_STEP_S <= _LONGEST_S
        falls = _falls(levels[max(0, begin - _BEFORE_STEPS) : begin], levels[begin:end])
        if faded - begin >= _FADE_STEPS and abrupt and short and falls:
            found.append((begin * _CUT_STEP_S, end * _CUT_STEP_S))
    return _merged(found)


def _falls(before: Samples, levels: Samples) -> bool:
    """Whether the level falls well below that of just before, and rises nowhere but in silence."""
    heard = np.maximum(levels, _SILENT_DB)
    rises = heard - np.minimum.accumulate(heard)
    depth = max(before.max(initial=-np.inf), levels[0]) - heard.min()
    return bool(rises.max() <= _RISE_DB and depth >= _DEPTH_DB)


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Joins overlapping spans: an uneven fade is found as several."""
    merged: list[tuple[float, float]] = []
    for begin, end in spans:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _runs(mask: Bools) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _levels(side: Samples, rate: int, step_s: float) -> Samples:
    """RMS in dB of full scale, one value per step; -120 for digital silence."""
    step = int(step_s * rate)
    blocks = side[: len(side) // step * step].reshape(-1, step)
    rms = np.sqrt(np.mean(blocks.astype(np.float64) ** 2, axis=1)) if len(blocks) else np.zeros(0)
    return np.asarray(20 * np.log10(np.maximum(rms, 1e-6)), np.float32)
