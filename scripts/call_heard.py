"""Measures the recorded replies: their words and the similarity of their voice.

The offline speech-to-text, which `make call` always has, transcribes the words. The similarity
needs the measuring extra (`python3 -m scripts.setup measuring`); without it the fields stay None.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr

from .setup_tools import TOOLS

if TYPE_CHECKING:
    import numpy.typing as npt

    from .call_turns import Report, Turn

    Samples = npt.NDArray[np.float32]

RATE = 16_000
SHORTEST_S = 0.5
"""Shorter replies are not measured."""


def listen(report: Report) -> None:
    """Fills `reply_heard`, `reply_wer`, `like_caller` and `like_stock` of each turn."""
    hear, embed = _transcriber(), _encoder()
    caller = _speech(report, 0, [turn.said for turn in report.turns])
    greeting = _speech(report, 1, [report.greeting] if report.greeting else [])
    known = {"like_caller": caller, "like_stock": greeting}
    vectors = {name: embed(sound) for name, sound in known.items() if embed and len(sound)}
    for turn in report.turns:
        sound = _speech(report, 1, [turn.heard] if turn.heard else [])
        if len(sound) < SHORTEST_S * RATE:
            continue
        if hear is not None:
            turn.reply_heard = hear(sound)
            turn.reply_wer = _wer_of(turn)
        if embed is not None:
            mine = embed(sound)
            for name, vector in vectors.items():
                setattr(turn, name, round(float(mine @ vector), 3))


def _wer_of(turn: Turn) -> float | None:
    """None for an interrupted reply: its text is longer than the recorded part."""
    if turn.interrupted or not turn.reply_text:
        return None
    return round(word_errors(turn.reply_heard, turn.reply_text), 3)


def word_errors(heard: str, said: str) -> float:
    """Word error rate: substitutions, deletions and insertions divided by the words of `said`.

    Punctuation and case do not count; contractions stay as written.
    """
    one, other = _words(heard), _words(said)
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, wanted in enumerate(other, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (word != wanted))
    return row[-1] / max(1, len(other))


def _words(text: str) -> list[str]:
    plain = re.sub(r"\bmr\.?\s", "mister ", text.lower()).replace("-", " ").replace("’", "'")
    return re.findall(r"[a-z0-9']+", plain)


def _speech(report: Report, side: int, spans: Sequence[tuple[float, float]]) -> Samples:
    """The samples of one side in some spans of the call, concatenated, at 16 kHz."""
    parts = [
        report.sound[int(begin * report.rate) : int(end * report.rate), side]
        for begin, end in spans
    ]
    joined = np.concatenate([np.zeros(0, np.float32), *parts])
    return np.asarray(soxr.resample(joined, report.rate, RATE), np.float32)


def _transcriber() -> Callable[[Samples], str] | None:
    from csm_tts_plugin.errors import ConfigError

    try:
        from csm_tts_plugin.offline.models import whisper_folder
        from csm_tts_plugin.offline.whisper import Transcriber

        return Transcriber(whisper_folder()).transcribe
    except (ImportError, ConfigError):
        return None


def _encoder() -> Callable[[Samples], Any] | None:
    folder = str(TOOLS / "measuring")
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        from resemblyzer import VoiceEncoder, preprocess_wav
    except ImportError:
        return None
    encoder = VoiceEncoder("cpu", verbose=False)
    return lambda sound: encoder.embed_utterance(preprocess_wav(sound))
