"""Reasons why a recording makes no good reference, with advice on what to record instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .measure import Figures

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

SHORTEST_S, BEST_S, LONGEST_S = 3.0, 10.0, 15.0
"""Durations of a reference. Above the best one the voice improves no more, and each reply costs
more."""

_LOOKED_AT_S = 120.0
_MIN_RATE = 8_000
_SNR_DB = 15.0
_QUIET_DB = -50.0
_CLIPPED = 0.001
_WHISPERED = 0.3
"""Voiced share below which speech counts as whispered; measured: speech from 0.54, whisper 0.13."""
_JUMP_SEMITONES = 8.0
"""Measured: one reader up to 4.8, a man followed by a woman from 11.5."""
_LETTERS_A_SECOND = (1.5, 40.0)
"""Limits for speech in any language; outside, the transcript is of other audio."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`name` is for logs, `words` for people: what is wrong and what to do."""

    name: str
    words: str


def unusable(samples: Samples, rate: int, *, shortest_s: float = 0.1) -> Fault | None:
    """Returns the reason if the recording cannot be measured, else None."""
    if rate < _MIN_RATE:
        return Fault("rate", f"it has {rate} Hz; record with 16000 Hz or more")
    seconds = len(samples) / rate
    if seconds < shortest_s:
        return Fault("short", f"it lasts {seconds:.1f} s; record {_range()} of speech")
    if seconds > _LOOKED_AT_S:
        return Fault("long", f"it lasts {seconds:.0f} s; record or cut out {_range()}")
    if samples.ndim > 2 or not np.isfinite(samples).all():
        return Fault("broken", "it has samples that are not finite numbers; record it again")
    return None


def faults_of(figures: Figures, text: str | None) -> tuple[Fault, ...]:
    """All faults of a recording; `text` None: its transcript is unknown and not judged."""
    if not figures.speech_seconds:
        return (Fault("silent", "no speech is heard in it; check the microphone"),)
    words = () if text is None else _of_words(figures, text)
    return (*_of_length(figures), *_of_sound(figures), *_of_speaker(figures), *words)


def _of_length(figures: Figures) -> Iterator[Fault]:
    if figures.seconds < SHORTEST_S:
        yield Fault("short", f"it lasts {figures.seconds:.2f} s; record {_range()} of speech")
    if figures.seconds > LONGEST_S:
        yield Fault("long", f"it lasts {figures.seconds:.0f} s; cut it in a pause to {_range()}")


def _of_sound(figures: Figures) -> Iterator[Fault]:
    if figures.level_db < _QUIET_DB:
        yield Fault("quiet", f"its speech is at {figures.level_db:.0f} dBFS; speak closer")
    if figures.snr_db < _SNR_DB:
        yield Fault(
            "noisy",
            f"its speech is only {figures.snr_db:.0f} dB above the noise ({_SNR_DB:.0f} at least);"
            " record in a quiet room",
        )
    if figures.clipped > _CLIPPED:
        yield Fault(
            "clipped",
            f"{100 * figures.clipped:.1f} % of it is clipped; turn the input level down",
        )


def _of_speaker(figures: Figures) -> Iterator[Fault]:
    if figures.voiced < _WHISPERED:
        yield Fault(
            "whispered",
            f"only {100 * figures.voiced:.0f} % of its speech is voiced; speak, do not whisper",
        )
        return
    if figures.pitch_jump > _JUMP_SEMITONES:
        yield Fault(
            "speakers",
            f"its pitch jumps by {figures.pitch_jump:.0f} semitones between phrases, as if two"
            " people spoke; record one person alone",
        )
    if any(figures.cut):
        where = " and ".join(n for n, c in zip(("begins", "ends"), figures.cut, strict=True) if c)
        yield Fault("cut", f"it {where} within a word; leave a moment of silence around the speech")


def _of_words(figures: Figures, text: str) -> Iterator[Fault]:
    letters = sum(character.isalnum() for character in text)
    if not letters:
        yield Fault("wordless", "its transcript is empty; write down its words")
        return
    low, high = _LETTERS_A_SECOND
    if not low <= letters / figures.speech_seconds <= high:
        yield Fault(
            "words", "its transcript does not match the audio: it is far too long or too short"
        )


def _range() -> str:
    return f"{SHORTEST_S:.0f} to {LONGEST_S:.0f} s"
