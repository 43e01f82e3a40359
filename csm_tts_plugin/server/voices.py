"""Resolves the voice in a request to the engine's `VoicePrompt`."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ..config import ServerConfig
from ..engine.api import EngineInfo, VoicePrompt
from ..errors import VoiceError
from ..voices.stock import stock_voice, usable
from ..voices.store import VoiceStore
from ..voices.voice import Voice
from ..wire.protocol import STOCK_VOICE, InlineVoice
from .state import ServerState


async def find(voice: str | InlineVoice, state: ServerState) -> VoicePrompt | None:
    """`resolve` without blocking. Remembers the engine's key of a stored voice, because another
    engine with the same folder may delete the voice's files.
    """
    prompt = await asyncio.to_thread(resolve, voice, state.config, state.engine.info())
    if isinstance(voice, str) and prompt is not None and prompt.key != STOCK_VOICE:
        state.voice_keys.setdefault(voice, set()).add(prompt.key)
    return prompt


OPENAI_VOICES = (
    *("alloy", "ash", "ballad", "coral", "echo", "fable", "onyx", "nova", "sage", "shimmer"),
    *("verse", "marin", "cedar"),
)
"""Names that OpenAI's clients send by default; developers.openai.com lists them."""


def as_openai(name: str, config: ServerConfig) -> str:
    """`name`, or the stock voice for a name of OpenAI's that is no stored voice. Reads the disk."""
    stored = config.voices_dir is not None and VoiceStore(config.voices_dir).has(name)
    return name if stored or name not in OPENAI_VOICES else STOCK_VOICE


def resolve(
    voice: str | InlineVoice, config: ServerConfig, info: EngineInfo | None
) -> VoicePrompt | None:
    """The prompt of a voice; None: without reference audio. Reads files: call it in a thread.

    If the model cannot use such a reference it is shortened, or replaced by the stock voice. The
    cached prefix of an inline voice is dropped with its last conversation; that of a stored voice
    stays.

    Raises VoiceError, ConsentError, AudioError, TextError.
    """
    if isinstance(voice, InlineVoice):
        sent = Voice.from_inline(voice, limits=config.limits).prompt()
        return usable(replace(sent, private=True), info)
    if voice == STOCK_VOICE:
        return stock_voice(info.model) if info else None
    if config.voices_dir is None:
        raise VoiceError(
            f"This engine keeps no voices and speaks as {STOCK_VOICE}; start it with"
            " CSM_VOICES_DIR, or send the voice inline."
        )
    stored = VoiceStore(config.voices_dir, limits=config.limits).load(voice)
    return usable(stored.prompt(), info)
