"""The stock voice: nobody's, spoken with where no consented voice is."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from ..audio.reference import load_reference
from ..engine.api import Turn, VoicePrompt
from ..errors import VoiceError
from ..protocol import STOCK_VOICE

TINY = "tiny"
_FOLDER = Path(__file__).resolve().parent.parent / "assets" / TINY


def stock_voice(model_name: str) -> VoicePrompt | None:
    """The synthetic reference that ships with `tiny`; None: the model speaks without one.

    Raises VoiceError when the shipped files are damaged.
    """
    return _read(_FOLDER) if model_name == TINY else None


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
