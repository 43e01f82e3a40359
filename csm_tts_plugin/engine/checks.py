"""What the engine refuses before it takes anything up."""

from __future__ import annotations

import numpy as np

from ..config import SAMPLE_RATE, Limits
from ..errors import AudioError, TextError, VoiceError
from .api import Samples, Turn, VoicePrompt


def check_text(text: str, limits: Limits) -> str:
    """`text` without the space around it."""
    text = text.strip()
    if not text:
        raise TextError("There is nothing to say: the text is empty.")
    if len(text) > limits.text_chars:
        raise TextError(
            f"The text has {len(text)} characters, {limits.text_chars} at most: split it."
        )
    return text


def check_turn(turn: Turn, limits: Limits) -> None:
    check_text(turn.text, limits)
    if turn.audio is not None:
        check_audio(turn.audio, limits)


def check_voice(voice: VoicePrompt | None, limits: Limits) -> None:
    for turn in voice.turns if voice else ():
        if not turn.text.strip():
            raise VoiceError(
                "The reference has no transcript: give the words that are spoken in it."
            )
        check_turn(turn, limits)


def check_audio(samples: Samples, limits: Limits) -> None:
    if samples.ndim != 1 or samples.dtype != np.float32:
        raise AudioError("Audio for the engine must be mono float32 samples at 24 kHz.")
    seconds = len(samples) / SAMPLE_RATE
    if not limits.reference_seconds_min <= seconds <= limits.reference_seconds_max:
        raise AudioError(
            f"The audio lasts {seconds:.1f} s; between {limits.reference_seconds_min:g} and "
            f"{limits.reference_seconds_max:g} s are needed."
        )
    if not np.isfinite(samples).all():
        raise AudioError("The audio holds NaN or Inf: record or decode it again.")
