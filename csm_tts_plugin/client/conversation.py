"""One conversation with an engine and its utterances: the client's end of a socket.

A conversation has one task that reads and one that writes, so that a cancellation never waits. A
lost connection is replaced by another, over which utterances continue; if that is impossible, each
utterance ends with a typed error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import aiohttp

from .. import telemetry
from ..errors import CsmError, EngineError, EngineTimeoutError, UnavailableError
from ..wire.protocol import (
    AudioHeader,
    Cancel,
    ClientMessage,
    DoneMessage,
    ErrorMessage,
    InlineVoice,
    Open,
    Opened,
    Say,
    ServerMessage,
    TurnMessage,
    parse_server,
)
from .link import Link

logger = logging.getLogger("csm_tts_plugin.client.engine")


@dataclass(frozen=True, slots=True)
class Chunk:
    """`samples` samples of 16-bit little-endian mono PCM, after `frame` frames of 80 ms."""

    pcm: bytes = field(repr=False)
    frame: int
    samples: int


class Conversation:
    """The context of one call in an engine. Made by `EngineClient.conversation`."""

    def __init__(
        self,
        url: str,
        link: Link,
        opening: Open,
        timeout: float,
        registry: set[Conversation],
    ) -> None:
        """`link` must be open."""
        self.url = url
        """The URL of its engine."""
        self._link = link
        self._opening = opening
        self._timeout = timeout
        self._registry = registry
        self._opened: asyncio.Future[Opened] | None = None
        self._reopening = asyncio.Lock()
        self._utterances: dict[str, Utterance] = {}
        self._count = 0
        self._error: CsmError | None = None
        self._heard = 0.0
        self._reader = asyncio.create_task(self._read(), name="csm-client-read")
        self._writer = asyncio.create_task(self._link.write(), name="csm-client-write")
        registry.add(self)

    @property
    def rate(self) -> int:
        """The sample rate of the chunks in Hz."""
        return self._opening.rate

    @property
    def error(self) -> CsmError | None:
        """Why the conversation has ended; None while it is open."""
        return self._error

    async def set_voice(
        self,
        voice: str | InlineVoice,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> None:
        """Change voice and sampling from the next `say` on; the turns stay.

        Raises VoiceError, AudioError or ConsentError and then keeps the old voice; also the errors
        of `say`.
        """
        await self._reopen(
            replace(
                self._opening,
                voice=voice,
                temperature=temperature,
                top_k=top_k,
                seed=seed,
                traceparent=telemetry.traceparent(),
            )
        )

    async def turn(self, who: str, text: str, audio: bytes | None = None) -> None:
        """Add a speaker's turn to the context; `audio` is an encoded file (WAV, FLAC, OGG).

        The engine answers only if it refuses the turn; that is logged, and speech goes on without
        it.
        """
        self._post(TurnMessage(who, text, audio))

    async def say(
        self,
        text: str,
        *,
        more: bool = False,
        max_seconds: float | None = None,
        timeout: float | None = None,
    ) -> Utterance:
        """Speak one sentence after those already said; `more`: the reply goes on after it.

        `timeout` replaces the client's for the chunks of this sentence; after it the engine also
        cancels the sentence. Raises UnavailableError when the connection is lost: open another
        conversation.
        """
        self._count += 1
        patience = timeout or self._timeout
        utterance = Utterance(str(self._count), self, patience)
        say = Say(utterance.id, text, more, max_seconds, patience, telemetry.traceparent())
        utterance.number = self._post(say)
        self._utterances[utterance.id] = utterance
        return utterance

    async def aclose(self) -> None:
        """Cancel its utterances and free the conversation in the engine, within bounded time."""
        if self._error is None:
            self._error = UnavailableError("The conversation is closed; open another.")
        for utterance in list(self._utterances.values()):
            utterance._finish()
        self._writer.cancel()
        await self._link.aclose()
        self._reader.cancel()
        await asyncio.wait({self._reader, self._writer})
        self._registry.discard(self)

    async def _reopen(self, opening: Open) -> None:
        async with self._reopening:
            self._opened = asyncio.get_running_loop().create_future()
            try:
                number = self._post(opening)
                async with asyncio.timeout(self._timeout):
                    await self._opened
                self._link.arrived(number)
            except TimeoutError:
                raise EngineTimeoutError(
                    f"The engine did not open the conversation within {self._timeout:g} s."
                ) from None
            finally:
                self._opened = None
            self._opening = opening

    def _post(self, message: ClientMessage) -> int:
        if self._error is not None:
            raise self._error
        return self._link.post(message)

    def _cancel(self, id: str, heard: int | None = None) -> None:
        if self._error is None:
            self._post(Cancel(id, heard))

    async def _read(self) -> None:
        error: CsmError | None = None
        try:
            await self._receive()
            while self._error is None and self._link.broken:
                await self._go_on()
                await self._receive()
        except CsmError as broken:
            error = broken
        finally:
            lost = UnavailableError("The connection to the engine was lost; open another.")
            self._lose(self._error or error or lost)
            # Also if the task is cancelled because its loop ends: no later chance to close it.
            await self._link.aclose()

    async def _go_on(self) -> None:
        """Continue over another connection. Raises CsmError if there is none."""
        self._writer.cancel()
        await self._link.again()
        self._heard = asyncio.get_running_loop().time()
        self._writer = asyncio.create_task(self._link.write(), name="csm-client-write")

    async def _receive(self) -> None:
        """Read messages until the socket ends. Raises EngineError for protocol
        errors of the engine.
        """
        header: AudioHeader | None = None
        async for message in self._link.socket:
            if message.type is aiohttp.WSMsgType.ERROR:
                return
            if header is not None:
                self._hear(header, message)
                self._link.count()
                header = None
            elif message.type is not aiohttp.WSMsgType.TEXT:
                raise EngineError("The engine sent sound that it had not announced.")
            else:
                parsed = parse_server(message.data)
                header = parsed if isinstance(parsed, AudioHeader) else None
                if header is None:
                    self._link.count()
                self._dispatch(parsed)

    def _hear(self, header: AudioHeader, message: aiohttp.WSMessage) -> None:
        binary = message.type is aiohttp.WSMsgType.BINARY
        if not binary or len(message.data) != 2 * header.samples:
            raise EngineError("The engine sent other sound than it had announced.")
        self._heard = asyncio.get_running_loop().time()
        if (utterance := self._utterances.get(header.id)) is not None:
            utterance._hear(header, message.data)

    def _dispatch(self, message: ServerMessage) -> None:
        match message:
            case Opened():
                if self._opened is not None and not self._opened.done():
                    self._opened.set_result(message)
            case DoneMessage():
                self._heard = asyncio.get_running_loop().time()
                if (utterance := self._utterances.pop(message.id, None)) is not None:
                    self._link.arrived(utterance.number)
                    utterance.result = message
                    utterance._finish()
            case ErrorMessage(id=str(id)):
                if (utterance := self._utterances.pop(id, None)) is not None:
                    self._link.arrived(utterance.number)
                    utterance._finish(message.to_exception())
            case ErrorMessage():
                self._complain(message)

    def _complain(self, message: ErrorMessage) -> None:
        """Handle an error of the conversation: the answer to `open`, or a
        message before closing.
        """
        if self._opened is not None and message.about in ("open", None):
            if not self._opened.done():
                self._opened.set_exception(message.to_exception())
        elif message.about is None:
            self._lose(message.to_exception())
        else:
            logger.warning("the engine refused a %s: %s", message.about, message.code)

    def _lose(self, error: CsmError) -> None:
        if self._error is None:
            self._error = error
        self._registry.discard(self)
        self._writer.cancel()
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(error)
        utterances, self._utterances = self._utterances, {}
        for utterance in utterances.values():
            utterance._finish(error)


class Utterance:
    """One text being spoken: iterate over its chunks once. Made by `Conversation.say`.

    Leaving the iteration, by `break` or because the task is cancelled, cancels it in the engine.
    Iterating raises the typed error that ended it: UnavailableError for a lost connection,
    EngineTimeoutError when nothing arrived within the timeout, or the error that the engine
    reported.
    """

    def __init__(self, id: str, conversation: Conversation, timeout: float) -> None:
        self.id = id
        self.number = 0
        """The number of the message that asked for it."""
        self.result: DoneMessage | None = None
        """The engine's message at its end, None before."""
        self.error: CsmError | None = None
        """The error that ended it; iterating raises it after the chunks that arrived before."""
        self._conversation = conversation
        self._timeout = timeout
        self._incoming: asyncio.Queue[Chunk | CsmError | None] = asyncio.Queue()
        self._expected_seq = 0
        self._finished = False

    async def __aiter__(self) -> AsyncGenerator[Chunk, None]:
        try:
            while (chunk := await self._next()) is not None:
                yield chunk
        finally:
            self._stop()

    async def cancel(self) -> None:
        """Stop it at once, here and in the engine. Iteration ends; unread chunks are dropped."""
        self._stop()

    def heard(self, frames: int) -> None:
        """Report that only the first `frames` frames were heard: the engine drops the others from
        the context.

        For an utterance that has ended or was cancelled; ignored if the conversation is lost.
        """
        self._conversation._cancel(self.id, frames)

    def _stop(self) -> None:
        if self._finished:
            return
        while not self._incoming.empty():
            self._incoming.get_nowait()
        self._finish()
        self._conversation._cancel(self.id)

    async def _next(self) -> Chunk | None:
        """The next chunk, None at the end. Raises the error that ended it."""
        if self._finished and self._incoming.empty():
            return None
        item = await self._wait()
        if isinstance(item, CsmError):
            raise item
        return item

    async def _wait(self) -> Chunk | CsmError | None:
        timeout = self._timeout
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            # Sentences are spoken in order, so audio of an earlier one extends the timeout.
            deadline = max(began, self._conversation._heard) + timeout
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    return await self._incoming.get()
            if self._conversation._heard + timeout <= deadline:
                self._stop()
                return EngineTimeoutError(f"The engine gave no sound for {timeout:g} s.")

    def _hear(self, header: AudioHeader, pcm: bytes) -> None:
        if self._finished:
            return
        if header.seq != self._expected_seq:
            self._finish(EngineError("Sound of the reply was lost on its way."))
            self._conversation._cancel(self.id)
            return
        self._expected_seq += 1
        self._incoming.put_nowait(Chunk(pcm, header.frame, header.samples))

    def _finish(self, error: CsmError | None = None) -> None:
        if not self._finished:
            self._finished = True
            self.error = error
            self._incoming.put_nowait(error)
