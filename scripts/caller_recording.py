"""The stereo recording of `make call`: caller and agent on one clock."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from csm_tts_plugin.audio.files import WholeFile

Pcm = npt.NDArray[np.int16]

RATE = 24_000
TICK_S = 0.01
TICK = int(RATE * TICK_S)
_LATE = int(0.06 * RATE)


class Recording:
    """Both sides on one clock; time 0 is the first tick."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.epoch = time.time()
        self._said: list[tuple[int, Pcm]] = []
        self._heard: list[tuple[int, Pcm]] = []

    def now(self) -> float:
        return time.perf_counter() - self.started

    def said(self, tick: int, pcm: Pcm) -> None:
        self._said.append((tick * TICK, pcm))

    def heard(self, pcm: Pcm) -> None:
        """Adds a frame that was played just now, or earlier if this process was delayed."""
        self._heard.append((int(self.now() * RATE), pcm))

    def sides(self) -> npt.NDArray[np.int16]:
        """int16 [samples, 2] up to now; columns: caller, agent."""
        sound = np.zeros((int(self.now() * RATE), 2), np.int16)
        for side, frames in enumerate((self._said, placed(self._heard))):
            for at, pcm in frames:
                part = pcm[: max(0, len(sound) - at)]
                sound[at : at + len(part), side] = part
        return sound

    def write(self, path: Path) -> None:
        with WholeFile(path) as whole:
            soundfile.write(whole.file, self.sides(), RATE, subtype="PCM_16", format="WAV")


def placed(arrivals: list[tuple[int, Pcm]]) -> list[tuple[int, Pcm]]:
    """Converts arrival times of frames, in samples, to the times at which they were played.

    No frame was played after its arrival. A burst after a delay of this process holds frames that
    were played earlier, one after the other. A frame follows the previous one directly, unless the
    latest time at which it can have been played is more than 60 ms later: then there was a pause.
    """
    latest, following = [], None
    for came, pcm in reversed(arrivals):
        end = came if following is None else min(came, following)
        following = end - len(pcm)
        latest.append(following)
    frames, until = [], 0
    for (_, pcm), at in zip(arrivals, reversed(latest), strict=True):
        until = max(0, at) if at - until > _LATE else until
        frames.append((until, pcm))
        until += len(pcm)
    return frames
