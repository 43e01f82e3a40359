"""Speaks one text in a temporary conversation, for routes without conversations.

Sentences are given to the engine a few ahead of what the client has read: a slow client only delays
itself, and holds neither a slot nor more memory than those sentences.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from functools import partial
from typing import Self

from ..engine.api import Audio, Done, Event, Failed, Samples, Sampling, VoicePrompt
from ..errors import BusyError, CsmError, EngineTimeoutError, TextError
from ..text import stream as text_stream
from .admission import Admitted
from .state import ServerState

_AHEAD = 2
"""Sentences given to the engine at a time: one being spoken and the next one."""


def sentences_of(text: str) -> list[str]:
    """The sentences to be spoken. Raises TextError if there are none."""
    sentences = text_stream.sentences_of(text)
    if not sentences:
        raise TextError("There is nothing to say: the text holds no words.")
    return sentences


class Speech:
    """A context manager: entering gives the engine the first sentence, `pieces` yields the audio.

    Entering raises BusyError, UnavailableError, RequestError and then leaves nothing in the engine.
    Leaving frees everything in the engine, also before the end of the speech.
    """

    def __init__(
        self,
        state: ServerState,
        sentences: list[str],
        voice: VoicePrompt | None,
        sampling: Sampling | None = None,
        *,
        key: int,
        parent: str | None = None,
    ) -> None:
        """`key`: the index of the client's key, see `access`. `parent`: the client's trace span."""
        self._parent = parent
        self._state = state
        self._key = key
        self._admitted: Admitted | None = None
        self._waiting = deque(sentences)
        self._voice = voice
        self._sampling = sampling
        self._conversation: str | None = None
        self._incoming: asyncio.Queue[Event | CsmError] = asyncio.Queue()
        self._with_engine = 0
        self._first = True
        self._said_at: float | None = None
        self._heard_at: float | None = None

    @property
    def speaking(self) -> bool:
        return self._conversation is not None

    def fail(self, error: CsmError) -> None:
        """End early: free the engine and raise `error` in `pieces`."""
        self._release()
        self._incoming.put_nowait(error)

    def __enter__(self) -> Self:
        self._state.check_open()
        self._admitted = self._state.admission.admit(self._key)
        try:
            self._admitted.speak()
            self._conversation = self._state.engine.open(self._voice, self._sampling)
            self._say()
        except BaseException:
            self._release()
            raise
        self._state.sessions.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._with_engine:
            self._state.metrics.cancels.inc()
        self._release()
        self._state.sessions.discard(self)
        self._state.changed.set()

    async def pieces(self) -> AsyncGenerator[Samples, None]:
        """Yields float32 mono samples at 24 kHz, one frame each. Raises the CsmError that ended the
        speech early.
        """
        while self._waiting or self._with_engine:
            await self._say_ahead()
            match await self._next():
                case Audio(samples=samples):
                    yield samples
                case Done():
                    self._with_engine -= 1
                case Failed(error=error):
                    self._with_engine -= 1
                    raise error

    def _receive(self, event: Event) -> None:
        metrics = self._state.metrics
        if isinstance(event, Audio):
            self._heard_at = metrics.heard(self._said_at, self._heard_at)
        elif isinstance(event, Done):
            metrics.ended(event, first=self._first, parent=self._parent)
            self._first, self._said_at, self._heard_at = False, None, None
        self._incoming.put_nowait(event)

    async def _next(self) -> Event:
        patience = self._state.config.limits.answer_s
        try:
            async with asyncio.timeout(patience):
                event = await self._incoming.get()
        except TimeoutError:
            raise EngineTimeoutError(f"The engine gave no sound for {patience:g} s.") from None
        if isinstance(event, CsmError):
            raise event
        return event

    async def _say_ahead(self) -> None:
        """Give the engine the next sentences. If all slots are taken in between, wait for one."""
        deadline = time.monotonic() + self._state.config.limits.answer_s
        while self._waiting and self._with_engine < _AHEAD:
            try:
                self._say()
            except BusyError as error:
                if self._with_engine:
                    return
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(min(error.retry_after or 1.0, 1.0))

    def _say(self) -> None:
        if self._conversation is None:
            return
        self._state.engine.say(
            self._conversation,
            self._waiting[0],
            partial(self._state.bridge.post, self._receive),
            sampling=self._sampling,
            more=len(self._waiting) > 1,
            live=False,
        )
        if not self._with_engine:
            self._said_at, self._heard_at = time.monotonic(), None
        self._waiting.popleft()
        self._with_engine += 1

    def _release(self) -> None:
        if self._conversation is not None:
            self._state.engine.close(self._conversation)
            self._conversation = None
        if self._admitted is not None:
            self._admitted.close()
