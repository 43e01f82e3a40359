"""What can be told from the sound of a call alone: who spoke when, and where a reply was cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]
    Bools = npt.NDArray[np.bool_]

STEP_S = 0.01
LOUD_DB = -50.0
"""RMS of 10 ms, against full scale, above which somebody speaks."""

_CUT_STEP_S = 0.005
_FADE_STEPS = 4
_FADE_DB = 3.0
_EVEN_DB = 1.0
_BACK_DB = 6.0
_ONSET_DB = 10.0
_ONSET_STEPS = 4
_LONGEST_S = 0.8


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
    """Gaps in speech that no speaker makes: begin and end of each, in seconds.

    Where sound does not come in time, silence is encoded instead, and Opus lets what was before
    fade evenly: by nearly the same step every 5 ms, which no voice does, until sound is back at
    once. Of 60 gaps of 50 to 350 ms made in human speech it finds 53; in 34 s without any, none.
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
        if faded - begin >= _FADE_STEPS and abrupt and short:
            found.append((begin * _CUT_STEP_S, end * _CUT_STEP_S))
    return _merged(found)


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A gap whose fade has a kink is one gap."""
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
    """RMS in dB against full scale, one value a step; -120 for digital silence."""
    step = int(step_s * rate)
    blocks = side[: len(side) // step * step].reshape(-1, step)
    rms = np.sqrt(np.mean(blocks.astype(np.float64) ** 2, axis=1)) if len(blocks) else np.zeros(0)
    return np.asarray(20 * np.log10(np.maximum(rms, 1e-6)), np.float32)
