"""Compares transcripts with texts, in words or in letters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soxr


def words(text: str) -> list[str]:
    plain = text.lower().replace("-", " ").replace("mr.", "mister")
    return re.findall(r"[a-z']+", plain)


def errors(heard: Sequence[str], said: Sequence[str]) -> int:
    """Levenshtein's distance: in words, or in letters of two texts."""
    row = list(range(len(said) + 1))
    for i, a in enumerate(heard, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(said, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def unlike(one: str, other: str) -> float:
    """Share of letters in which two texts differ: 0 the same, some 0.75 for unrelated ones.

    Better than words for a voice that is hard to understand: "ambitious" is near "ambiguous".
    """
    a, b = "".join(words(one)), "".join(words(other))
    return errors(a, b) / max(len(a), len(b), 1)


class Listener:
    """The offline Whisper of the agent."""

    def __init__(self) -> None:
        models = pytest.importorskip(
            "csm_tts_plugin.offline.models", reason="offline speech-to-text: run `make setup`"
        )
        whisper = pytest.importorskip(
            "csm_tts_plugin.offline.whisper", reason="offline speech-to-text: run `make setup`"
        )
        folder: Path = models.whisper_folder()
        self._rate = whisper.SAMPLE_RATE
        self._transcriber = whisper.Transcriber(folder, 1)

    def hear(self, samples: np.ndarray, rate: int) -> str:
        """Mono float32 samples as text."""
        sound = soxr.resample(samples, rate, self._rate).astype(np.float32)
        return str(self._transcriber.transcribe(sound))
