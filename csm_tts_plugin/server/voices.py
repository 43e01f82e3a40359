"""The voice that a message names, as the engine takes it."""

from __future__ import annotations

from dataclasses import replace

from ..config import ServerConfig
from ..engine.api import EngineInfo, VoicePrompt
from ..errors import VoiceError
from ..protocol import STOCK_VOICE, InlineVoice
from ..voices.stock import stock_voice
from ..voices.store import VoiceStore
from ..voices.voice import Voice


def resolve(
    voice: str | InlineVoice, config: ServerConfig, info: EngineInfo | None
) -> VoicePrompt | None:
    """None: the model speaks without a reference. Reads files and audio: call it in a thread.

    A voice that was sent is forgotten with the last conversation that speaks in it; a stored one is
    kept for the next.

    Raises VoiceError, ConsentError, AudioError, TextError.
    """
    if isinstance(voice, InlineVoice):
        return replace(Voice.from_inline(voice, limits=config.limits).prompt(), private=True)
    if voice == STOCK_VOICE:
        return stock_voice(info.model) if info else None
    if config.voices_dir is None:
        raise VoiceError(
            "This engine keeps no voices; start it with CSM_VOICES_DIR, or send the voice inline."
        )
    return VoiceStore(config.voices_dir, limits=config.limits).load(voice).prompt()
