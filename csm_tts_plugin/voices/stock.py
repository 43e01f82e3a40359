"""The stock voice: a synthetic one, used if no consented voice is given."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from ..audio.reference import load_reference
from ..config import SAMPLE_RATE
from ..engine.api import EngineInfo, Turn, VoicePrompt
from ..errors import VoiceError
from ..wire.protocol import STOCK_VOICE

TINY = "tiny"
_FOLDER = Path(__file__).resolve().parent.parent / "assets" / TINY


def stock_voice(model_name: str) -> VoicePrompt | None:
    """The synthetic reference that ships with `tiny`; None: other models speak without one.

    Raises VoiceError if the shipped files are damaged.
    """
    return _read(_FOLDER) if model_name == TINY else None


def usable(voice: VoicePrompt | None, info: EngineInfo | None) -> VoicePrompt | None:
    """The voice, limited to the reference length that the model supports
    (`EngineInfo.reference_seconds`).

    Keeps as many of its first turns as fit. No turn is cut: a transcript that is longer than its
    audio makes a model stammer. If none fits, returns the model's stock voice.
    """
    bound = info.reference_seconds if info else None
    if info is None or bound is None or voice is None or voice.key == STOCK_VOICE:
        return voice
    kept, seconds = list[Turn](), 0.0
    for turn in voice.turns:
        seconds += 0.0 if turn.audio is None else len(turn.audio) / SAMPLE_RATE
        if seconds > bound:
            break
        kept.append(turn)
    if not kept:
        return stock_voice(info.model)
    return replace(voice, turns=tuple(kept))


@cache
def _read(folder: Path) -> VoicePrompt | None:
    audio, record = folder / "stock.wav", folder / "stock.json"
    if not audio.is_file():
        return None
    try:
        transcript = json.loads(record.read_text(encoding="utf-8"))["transcript"]
    except (OSError, ValueError, KeyError, TypeError):
        transcript = None
    if not isinstance(transcript, str) or not transcript.strip():
        raise VoiceError("The stock voice has no transcript in stock.json; install again.")
    turn = Turn(STOCK_VOICE, transcript.strip(), load_reference(audio))
    return VoicePrompt(key=STOCK_VOICE, speaker=STOCK_VOICE, turns=(turn,))
