"""`voices check`: figures of a recording in words, and what to record again."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import soxr

from ..config import SAMPLE_RATE
from ..engine.api import Samples
from ..errors import ConfigError
from ..voices.choose import score
from ..voices.faults import Fault, faults_of
from ..voices.measure import Figures, Track, measure
from .finding import Finding, Mark

_MATCH = 0.6
"""Least share of matching words; Whisper spells numbers and names differently."""


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    samples: Samples = field(repr=False)
    figures: Figures
    track: Track = field(repr=False)
    findings: tuple[Finding, ...]
    score: float
    """0 to 1."""


def examine(samples: Samples, transcript: str | None, language: str | None) -> Examined:
    """Measures float32 [n] at 24 kHz.

    `transcript` None: unknown; `language` None: do not transcribe.
    """
    figures, track = measure(samples, SAMPLE_RATE)
    findings = (*_of_sound(figures), *_of_words(samples, figures, transcript, language))
    return Examined(samples, figures, track, findings, score(figures))


def _of_sound(figures: Figures) -> Iterator[Finding]:
    faults = faults_of(figures, None)
    rows: Sequence[tuple[str, set[str]]] = (
        (
            f"duration: {figures.seconds:.1f} s, {figures.speech_seconds:.1f} s of it speech",
            {"short", "long", "silent"},
        ),
        (
            f"level: speech at {figures.level_db:.0f} dBFS, peak {figures.peak_db:.0f} dBFS",
            {"quiet"},
        ),
        (
            f"noise: {figures.noise_db:.0f} dBFS, {figures.snr_db:.0f} dB below the speech",
            {"noisy"},
        ),
        (f"clipping: {100 * figures.clipped:.2f} % of the samples", {"clipped"}),
        (
            f"speaker: {100 * figures.voiced:.0f} % of the speech is voiced, at"
            f" {figures.pitch_hz:.0f} Hz",
            {"whispered", "speakers"},
        ),
        ("edges: begins and ends in silence", {"cut"}),
    )
    for text, names in rows if figures.speech_seconds else rows[:1]:
        yield _row(text, [fault for fault in faults if fault.name in names])
    if figures.speech_seconds:
        yield _bandwidth(figures)


def _row(text: str, faults: Sequence[Fault]) -> Finding:
    if not faults:
        return Finding(Mark.OK, text)
    subject = text.split(":")[0]
    return Finding(Mark.BAD, f"{subject}: " + "; ".join(fault.words for fault in faults))


def _bandwidth(figures: Figures) -> Finding:
    text = f"bandwidth: to {figures.bandwidth_hz:.0f} Hz"
    if figures.narrow:
        advice = ", that of a telephone; a microphone makes a better voice"
        return Finding(Mark.NOTE, text + advice)
    return Finding(Mark.OK, text)


def _of_words(
    samples: Samples, figures: Figures, transcript: str | None, language: str | None
) -> Iterator[Finding]:
    if transcript is None:
        yield Finding(Mark.NOTE, "transcript: unknown; give it by --transcript")
        return
    faults = [f for f in faults_of(figures, transcript) if f.name in {"wordless", "words"}]
    if faults or language is None:
        yield _row(f"transcript: {len(transcript.split())} words, not compared", faults)
        return
    heard = _hear(samples, language)
    if heard is None:
        why = "offline speech-to-text is not installed; run `make setup`"
        yield Finding(Mark.NOTE, f"transcript: not compared: {why}")
        return
    share = match(transcript, heard)
    text = f"transcript: {100 * share:.0f} % of the words agree with Whisper's transcript"
    poor = Fault("words", text.split(": ")[1] + "; write down all that is said")
    yield _row(text, [] if share >= _MATCH else [poor])


def match(transcript: str, heard: str) -> float:
    """Share of words, 0 to 1, that two texts have in common in the same order."""
    said, found = (re.findall(r"\w+", text.lower()) for text in (transcript, heard))
    return difflib.SequenceMatcher(None, said, found, autojunk=False).ratio()


def _hear(samples: Samples, language: str) -> str | None:
    try:
        from ..offline.models import whisper_folder
        from ..offline.whisper import SAMPLE_RATE as WHISPER_RATE
        from ..offline.whisper import Transcriber

        transcriber = Transcriber(whisper_folder())
    except (ImportError, ConfigError):
        return None
    try:
        return transcriber.transcribe(soxr.resample(samples, SAMPLE_RATE, WHISPER_RATE), language)
    except ValueError:
        raise ConfigError(
            f"--language {language} is unknown to Whisper; take a code such as en or de."
        ) from None
