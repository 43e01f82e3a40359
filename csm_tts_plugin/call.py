"""One call's conversation: opened when it is needed, kept over replies, opened again when lost.

Knows nothing of LiveKit, nor of how the engine came to run.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .audio.reference import encode_wav, to_reference
from .client import Conversation, EngineClient, Utterance
from .config import FRAME_SECONDS, Limits
from .errors import AudioError, ConfigError, CsmError, RequestError, TextError, VoiceError
from .protocol import STOCK_VOICE, VOICE_ID, InlineVoice
from .voices.voice import Voice

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

logger = logging.getLogger("csm_tts_plugin")

_TURNS_KEPT = 8
"""Turns told again to a conversation that takes the place of a lost one."""

Connect = Callable[[], Awaitable[EngineClient]]


@dataclass(frozen=True, slots=True)
class Manner:
    """How a call speaks. Raises ConfigError for what no engine would take."""

    voice: str | InlineVoice = field(default=STOCK_VOICE, repr=False)
    temperature: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        limits = Limits()
        if self.temperature is not None and not 0.0 <= self.temperature <= limits.temperature_max:
            raise ConfigError(f"temperature must be from 0 to {limits.temperature_max:g}.")
        if self.top_k is not None and not 1 <= self.top_k <= limits.top_k_max:
            raise ConfigError(f"top_k must be from 1 to {limits.top_k_max}.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError("seed must be from 0 to 2**63 - 1.")


def check_seconds(value: float | None) -> float | None:
    """The longest that a sentence may last. Raises ConfigError."""
    most = Limits().speech_seconds_max
    if value is not None and not FRAME_SECONDS <= value <= most:
        raise ConfigError(f"max_seconds must be from {FRAME_SECONDS:g} to {most:g}.")
    return value


def wire_voice(voice: Voice | str | None) -> str | InlineVoice:
    """A voice as `open` takes it; None is the stock voice. Raises VoiceError."""
    if voice is None:
        return STOCK_VOICE
    if isinstance(voice, Voice):
        return voice.inline()
    if isinstance(voice, str) and VOICE_ID.fullmatch(voice):
        return voice
    raise VoiceError(
        "voice must be a Voice, or the id of a stored one (a-z, 0-9, _ and -, at most 64)."
    )


@dataclass(eq=False, slots=True)
class _Turn:
    who: str
    text: str = field(repr=False)
    samples: Samples | None = field(repr=False)
    rate: int
    encoded: bytes | None = field(default=None, repr=False)

    def encode(self) -> None:
        """Into a file that the wire takes; sound that cannot be used is left out. Takes time."""
        if self.samples is None:
            return
        try:
            self.encoded = encode_wav(to_reference(self.samples, self.rate))
        except AudioError as error:
            logger.info("the sound of a turn is left out: %s", error)
        self.samples = None


class Call:
    """`connect` gives the client of a running engine, each time the same one."""

    def __init__(self, connect: Connect, manner: Manner) -> None:
        self._wanted = manner
        """How the next sentence is to be spoken; `_manner` is how the engine speaks."""
        self.acquired = 0.0
        """Seconds that the last `say` waited for its conversation."""
        self.reused = False
        """Whether that conversation was open already."""
        self.engines = 1
        """How many there were to choose from for the last conversation."""
        self._client: EngineClient | None = None
        self._connect = connect
        self._lock = asyncio.Lock()
        self._conversation: Conversation | None = None
        self._manner: Manner | None = None
        self._person = _person(manner)
        """Whose private voice it speaks in."""
        self._turns: deque[_Turn] = deque()
        self._told: deque[_Turn] = deque(maxlen=_TURNS_KEPT)
        self._ahead: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def manner(self) -> Manner:
        """How the next sentence is spoken."""
        return self._wanted

    def change(self, manner: Manner) -> None:
        """Speak so from the next sentence on, also in the middle of a reply. Returns at once.

        The engine is told now, so that it reads a new voice while nobody waits for it, and forgets
        one that is given up: no reply need follow.
        """
        self._wanted = manner
        self._forget(manner)
        if self._conversation is not None:
            self.open_ahead()

    async def say(
        self,
        text: str,
        *,
        more: bool,
        max_seconds: float | None = None,
        timeout: float | None = None,
    ) -> Utterance:
        """Speak a sentence after those already said, and after all turns added until now.

        `timeout` bounds the wait for each of its chunks, not for the conversation. Raises CsmError.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with self._lock:
            self.reused = self._open is not None
            conversation = await self._ready()
            self.acquired = loop.time() - began
            return await conversation.say(text, more=more, max_seconds=max_seconds, timeout=timeout)

    def add_turn(self, who: str, text: str, samples: Samples | None = None, rate: int = 0) -> None:
        """What somebody said: float32, [n] or [n, channels]. Returns at once.

        Where an event loop runs the engine is told in the background. Raises TextError,
        RequestError.
        """
        limits = Limits()
        if not who.strip() or len(who) > limits.name_chars or not who.isprintable():
            raise RequestError(f"A speaker has a name of 1 to {limits.name_chars} characters.")
        if not text.strip() or len(text) > limits.text_chars:
            raise TextError(f"A turn needs its words: 1 to {limits.text_chars} characters.")
        self._turns.append(_Turn(who, text, samples, rate))
        self.open_ahead()

    def open_ahead(self) -> None:
        """Open the conversation and tell it the turns in the background; `say` reports failures."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._ahead is None or self._ahead.done():
            self._ahead = loop.create_task(self._prepare(), name="csm-call-ahead")

    def drop(self) -> None:
        """Leave the conversation; the next `say` opens another and tells it the last turns."""
        conversation, self._conversation, self._manner = self._conversation, None, None
        if conversation is not None:
            closing = asyncio.create_task(conversation.aclose(), name="csm-call-drop")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def leave(self, seconds: float) -> None:
        """`drop` it for another engine: this one is taken for that long only if no other is."""
        if self._client is not None and self._conversation is not None:
            self._client.avoid(self._conversation.url, seconds)
        self.drop()

    async def aclose(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.wait([self._ahead])
        self.drop()
        if self._closing:
            await asyncio.wait(self._closing)

    @property
    def _open(self) -> Conversation | None:
        alive = self._conversation is not None and self._conversation.error is None
        return self._conversation if alive else None

    async def _prepare(self) -> None:
        try:
            while self._open is None or self._turns or self._manner != self._wanted:
                async with self._lock:
                    await self._ready()
        except CsmError as error:
            level = logging.INFO if error.retryable else logging.WARNING
            logger.log(level, "no conversation ahead of the reply: %s", error)

    async def _ready(self) -> Conversation:
        """The conversation, in the manner and with the turns of now. The lock is held."""
        conversation = await self._with_manner(self._wanted)
        await self._tell(conversation)
        while self._manner != self._wanted:  # changed meanwhile
            conversation = await self._with_manner(self._wanted)
        return conversation

    def _forget(self, manner: Manner) -> None:
        """Whose voice is given up is forgotten with it: their turns are told to nobody again."""
        gone, self._person = self._person, _person(manner)
        if gone is not None and gone != self._person:
            self._turns = deque(turn for turn in self._turns if turn.who != gone)
            told = (turn for turn in self._told if turn.who != gone)
            self._told = deque(told, maxlen=_TURNS_KEPT)

    async def _with_manner(self, manner: Manner) -> Conversation:
        if (conversation := self._open) is None:
            return await self._reopen(manner)
        if self._manner != manner:
            # Unknown while it changes: a cancelled wait leaves either of the two.
            self._manner = None
            await conversation.set_voice(
                manner.voice, temperature=manner.temperature, top_k=manner.top_k, seed=manner.seed
            )
            self._manner = manner
        return conversation

    async def _reopen(self, manner: Manner) -> Conversation:
        client = await self._connect()
        self._client, self.engines = client, client.engines
        conversation = await client.conversation(
            manner.voice, temperature=manner.temperature, top_k=manner.top_k, seed=manner.seed
        )
        self._conversation, self._manner = conversation, manner
        self._turns.extendleft(reversed(self._told))
        self._told.clear()
        return conversation

    async def _tell(self, conversation: Conversation) -> None:
        while self._turns:
            turn = self._turns[0]
            await asyncio.to_thread(turn.encode)
            if self._turns and self._turns[0] is turn:  # not given up meanwhile
                await conversation.turn(turn.who, turn.text, turn.encoded)
                self._told.append(self._turns.popleft())


def _person(manner: Manner) -> str | None:
    return manner.voice.speaker if isinstance(manner.voice, InlineVoice) else None
