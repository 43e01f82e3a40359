"""One call's conversation: opened when needed, kept between replies, reopened when lost.

Independent of LiveKit and of how the engine is started.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..audio.reference import encode_wav, to_reference
from ..config import FRAME_SECONDS, Limits
from ..errors import AudioError, ConfigError, CsmError, RequestError, TextError, VoiceError
from ..voices.voice import Voice
from ..wire.protocol import STOCK_VOICE, VOICE_ID, InlineVoice
from .engine import Conversation, EngineClient, Utterance

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

logger = logging.getLogger("csm_tts_plugin")

_TURNS_KEPT = 8
"""The last turns, which are sent again to a conversation that replaces a lost one."""

Connect = Callable[[], Awaitable[EngineClient]]


@dataclass(frozen=True, slots=True)
class Manner:
    """Voice and sampling of a call. Raises ConfigError for values out of range."""

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
    """Checks the longest duration of a sentence, in seconds. Raises ConfigError."""
    most = Limits().speech_seconds_max
    if value is not None and not FRAME_SECONDS <= value <= most:
        raise ConfigError(f"max_seconds must be from {FRAME_SECONDS:g} to {most:g}.")
    return value


def wire_voice(voice: Voice | str | None) -> str | InlineVoice:
    """A voice as a field of the message `open`; None: the stock voice. Raises VoiceError."""
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
        """Encode the audio as a file for the message; unusable audio is dropped. Blocks."""
        if self.samples is None:
            return
        try:
            self.encoded = encode_wav(to_reference(self.samples, self.rate))
        except AudioError as error:
            logger.info("the audio of a turn is left out: %s", error)
        self.samples = None


class Call:
    """`connect` returns the client of a running engine, always the same one."""

    def __init__(self, connect: Connect, manner: Manner) -> None:
        self._wanted = manner
        """Voice and sampling of the next sentence; `_manner` are those that the engine has."""
        self.acquired = 0.0
        """Seconds for which the last `say` waited for its conversation."""
        self.reused = False
        """Whether that conversation was open already."""
        self._client: EngineClient | None = None
        self._connect = connect
        self._lock = asyncio.Lock()
        self._conversation: Conversation | None = None
        self._manner: Manner | None = None
        self._person = _person(manner)
        """The speaker of the private voice in use."""
        self._turns: deque[_Turn] = deque()
        self._told: deque[_Turn] = deque(maxlen=_TURNS_KEPT)
        self._ahead: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def manner(self) -> Manner:
        """Voice and sampling of the next sentence."""
        return self._wanted

    def change(self, manner: Manner) -> None:
        """Use these from the next sentence on, also within a reply. Returns at once.

        The engine is told now, so that it prefills a new voice in advance and drops a former one
        even if no reply follows.
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
        """Speak a sentence after those already said and after all turns added so far.

        `timeout` limits the wait for each of its chunks in seconds, not that for the conversation.
        Raises CsmError.
        """
        loop = self._here()
        began = loop.time()
        async with self._lock:
            self.reused = self._open is not None
            conversation = await self._ready()
            self.acquired = loop.time() - began
            return await conversation.say(text, more=more, max_seconds=max_seconds, timeout=timeout)

    def add_turn(self, who: str, text: str, samples: Samples | None = None, rate: int = 0) -> None:
        """Add a turn to the context, with samples float32 [n] or [n, channels] at `rate` Hz.

        Returns at once; where an event loop runs, the turn is sent in the background. Raises
        TextError, RequestError.
        """
        limits = Limits()
        if not who.strip() or len(who) > limits.name_chars or not who.isprintable():
            raise RequestError(f"A speaker has a name of 1 to {limits.name_chars} characters.")
        if not text.strip() or len(text) > limits.text_chars:
            raise TextError(f"A turn needs its words: 1 to {limits.text_chars} characters.")
        self._turns.append(_Turn(who, text, samples, rate))
        self.open_ahead()

    def open_ahead(self) -> None:
        """Open the conversation and send the turns in the background; `say` reports failures."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        loop = self._here()
        if self._ahead is None or self._ahead.done():
            self._ahead = loop.create_task(self._prepare(), name="csm-call-ahead")

    def drop(self) -> None:
        """Close the conversation; the next `say` opens another one and sends the last turns."""
        conversation, self._conversation, self._manner = self._conversation, None, None
        if conversation is not None:
            closing = asyncio.create_task(conversation.aclose(), name="csm-call-drop")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def count_engines(self) -> int:
        """The number of engines to choose from for a conversation."""
        return 1 if self._client is None else await self._client.count_engines()

    def leave(self, seconds: float) -> None:
        """`drop` it and prefer other engines to this one for `seconds`."""
        if self._client is not None and self._conversation is not None:
            self._client.avoid(self._conversation.url, seconds)
        self.drop()

    async def aclose(self) -> None:
        if self._loop is not None and self._loop.is_closed():
            return  # all that ran there ended with it
        if self._loop is not None:
            self._here()
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.wait([self._ahead])
        self.drop()
        if self._closing:
            await asyncio.wait(self._closing)

    def _here(self) -> asyncio.AbstractEventLoop:
        """The event loop of the call. Raises ConfigError in another one."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise ConfigError(
                "This TTS was used in another event loop, where its connections are: make one for"
                " each loop, such as for each call of asyncio.run."
            )
        self._loop = loop
        return loop

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
        """The conversation with the current voice, sampling and turns. The lock is held."""
        conversation = await self._with_manner(self._wanted)
        await self._tell(conversation)
        while self._manner != self._wanted:  # changed meanwhile
            conversation = await self._with_manner(self._wanted)
        return conversation

    def _forget(self, manner: Manner) -> None:
        """Drop the turns of a former private voice's speaker; they are not sent again."""
        gone, self._person = self._person, _person(manner)
        if gone is not None and gone != self._person:
            self._turns = deque(turn for turn in self._turns if turn.who != gone)
            told = (turn for turn in self._told if turn.who != gone)
            self._told = deque(told, maxlen=_TURNS_KEPT)

    async def _with_manner(self, manner: Manner) -> Conversation:
        if (conversation := self._open) is None:
            return await self._reopen(manner)
        if self._manner != manner:
            # Unknown while it changes: after a cancelled wait the engine has either of the two.
            self._manner = None
            await conversation.set_voice(
                manner.voice, temperature=manner.temperature, top_k=manner.top_k, seed=manner.seed
            )
            self._manner = manner
        return conversation

    async def _reopen(self, manner: Manner) -> Conversation:
        client = await self._connect()
        self._client = client
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
