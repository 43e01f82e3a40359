"""Whisper base on a CPU, for turns of a call. Independent of LiveKit and of the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from faster_whisper import WhisperModel

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
"""Sample rate in Hz that Whisper takes."""

_WINDOW_S = 30.0
_FRAMES_PER_SECOND = 100
_MARGIN_S = 3.0
_SHORTEST_S = 10.0


class _ShortWindow(WhisperModel):  # type: ignore[misc, unused-ignore]
    """Encodes only the part of Whisper's 30 s window that holds speech.

    A turn of 5 s then takes a third of the time. The part is at least 10 s and has 3 s of silence
    after the speech: with less of either, the decoder begins to repeat itself.
    """

    window_s = _WINDOW_S

    def encode(self, features: Any) -> Any:
        frames = int(self.window_s * _FRAMES_PER_SECOND) // 2 * 2
        return super().encode(np.ascontiguousarray(features[..., :frames]))


class Transcriber:
    """Not thread-safe: call `transcribe` from one thread at a time."""

    def __init__(self, folder: Path, threads: int = 2) -> None:
        self._model = _ShortWindow(
            str(folder), device="cpu", compute_type="int8", cpu_threads=threads
        )

    def warm_up(self) -> None:
        """Runs the model once. The first run allocates memory and must not happen in a call."""
        self.transcribe(np.zeros(SAMPLE_RATE, np.float32))

    def transcribe(self, samples: Samples, language: str = "en") -> str:
        """Transcribes mono float32 [n] at 16 kHz in [-1, 1]; "" for silence."""
        seconds = len(samples) / SAMPLE_RATE
        short = min(_WINDOW_S, max(_SHORTEST_S, seconds + _MARGIN_S))
        text, plausible = self._attempt(samples, language, short)
        if not plausible and short < _WINDOW_S:
            text, _ = self._attempt(samples, language, _WINDOW_S)
        return text

    def _attempt(self, samples: Samples, language: str, window_s: float) -> tuple[str, bool]:
        self._model.window_s = window_s
        segments, _ = self._model.transcribe(
            samples,
            language=language,
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            max_new_tokens=24 + int(8 * len(samples) / SAMPLE_RATE),
        )
        found = list(segments)
        plausible = all(s.compression_ratio < 2.4 and s.avg_logprob > -1.0 for s in found)
        return " ".join(s.text.strip() for s in found).strip(), plausible
