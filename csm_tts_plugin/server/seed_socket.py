"""`WS /ws`: the WebSocket of csm-streaming-tf's server, with the same messages.

in   `{"audio": <base64 file>, "transcript": ..., "response_text": ...}`
out  `{"audio": <base64>, "sample_rate": 24000}` any number of times: 16-bit little-endian mono PCM;
     then `{"status": "complete"}`, or `{"error": ..., "code": ..., "retryable": ...}`.

The recording and its transcript are the reference audio for this reply only. Requests of a socket
are spoken one after the other; after an error the next one is processed.
"""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from ..audio.reference import decode_reference
from ..audio.resample import to_pcm16
from ..config import SAMPLE_RATE, Limits
from ..engine.api import VoicePrompt
from ..errors import BusyError, CsmError, EngineTimeoutError, RequestError
from ..voices.voice import Consent, Voice
from ..wire.fields import Fields, read_object
from .access import require_key
from .faults import as_csm_error, logger
from .speech import Speech, sentences_of
from .state import STATE, ServerState

_WAITING = 2
"""Requests of one socket that may wait behind the one being spoken; each may hold a recording."""
_FAREWELL_S = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    voice: VoicePrompt = field(repr=False)
    sentences: list[str] = field(repr=False)


def read_request(text: str, limits: Limits) -> Request:
    """Reads a request and decodes its recording: call it in a thread. Raises RequestError and its
    subclasses.
    """
    fields = Fields(read_object(text, limits), "request")
    audio = fields.audio("audio", limits)
    transcript = fields.speech("transcript", limits)
    words = fields.speech("response_text", replace(limits, text_chars=limits.speech_chars))
    fields.finish()
    sentences = sentences_of(words)
    voice = Voice.from_audio(
        decode_reference(audio, limits=limits),
        SAMPLE_RATE,
        transcript=transcript,
        consent=_vouched(),
        speaker="caller",
    )
    return Request(replace(voice.prompt(), private=True), sentences)


def _vouched() -> Consent:
    """The message has no field for consent; the sender vouches for it, and nothing is stored."""
    return Consent(
        speaker="caller",
        statement="Whoever sent the recording vouches for the consent of the recorded person.",
        date=date.today().isoformat(),
    )


async def seed_socket(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE]
    key = require_key(request, state.config)
    state.check_open()
    limits = state.config.limits
    socket = web.WebSocketResponse(
        compress=False,
        heartbeat=limits.heartbeat_s,
        max_msg_size=limits.message_bytes,
        timeout=_FAREWELL_S,
    )
    await socket.prepare(request)
    transport = request.transport
    try:
        await SeedSocket(state, socket, key).run()
    finally:
        if transport is not None:
            transport.abort()
    return socket


class SeedSocket:
    def __init__(self, state: ServerState, socket: web.WebSocketResponse, key: int) -> None:
        self._state = state
        self._key = key
        self._socket = socket
        self._limits = state.config.limits
        self._requests: asyncio.Queue[str] = asyncio.Queue()
        self._speaking = False
        self._failure: CsmError | None = None
        self._ended = asyncio.Event()

    @property
    def speaking(self) -> bool:
        return self._speaking

    def fail(self, error: CsmError) -> None:
        self._failure = self._failure or error
        self._ended.set()

    async def run(self) -> None:
        """Returns when the client leaves or the session ends."""
        parts = [
            asyncio.create_task(self._receive(), name="csm-seed-receive"),
            asyncio.create_task(self._answer_all(), name="csm-seed-answer"),
            asyncio.create_task(self._ended.wait(), name="csm-seed-ended"),
        ]
        self._state.sessions.add(self)
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await self._farewell()
            self._state.sessions.discard(self)
            self._state.changed.set()

    async def _receive(self) -> None:
        """Reads also while a reply is spoken, to answer pings and notice that the client leaves."""
        while True:
            try:
                message = await self._socket.receive(timeout=self._limits.session_idle_s)
            except TimeoutError:
                if self._speaking:
                    continue
                return self.fail(EngineTimeoutError("Nothing was asked for too long."))
            if message.type is WSMsgType.TEXT:
                await self._take(message.data)
            elif message.type is WSMsgType.BINARY:
                await self._tell(RequestError("A request is a text message with JSON."))
            else:
                return None

    async def _take(self, text: str) -> None:
        if self._requests.qsize() >= _WAITING:
            return await self._tell(
                BusyError(f"{_WAITING} requests of this socket wait already.", retry_after=1.0)
            )
        self._requests.put_nowait(text)

    async def _answer_all(self) -> None:
        while True:
            text = await self._requests.get()
            self._speaking = True
            try:
                await self._answer(text)
            except OSError:  # the client is gone, or reads nothing
                return
            except Exception as error:
                await self._tell(as_csm_error(error, logger))
            finally:
                self._speaking = False
                self._state.changed.set()

    async def _answer(self, text: str) -> None:
        self._state.check_open()
        request = await asyncio.to_thread(read_request, text, self._limits)
        with Speech(self._state, request.sentences, request.voice, key=self._key) as speech:
            async with aclosing(speech.pieces()) as pieces:
                async for piece in pieces:
                    sound = base64.b64encode(to_pcm16(piece)).decode("ascii")
                    await self._send({"audio": sound, "sample_rate": SAMPLE_RATE})
        await self._send({"status": "complete"})

    async def _tell(self, error: CsmError) -> None:
        self._state.metrics.errors.labels(error.code).inc()
        body = {"error": error.message, "code": error.code, "retryable": error.retryable}
        if error.retry_after is not None:
            body["retry_after"] = error.retry_after
        await self._send(body)

    async def _send(self, body: dict[str, Any]) -> None:
        """Raises TimeoutError for a stalled client, OSError for a lost one."""
        async with asyncio.timeout(self._limits.stalled_reader_s):
            await self._socket.send_str(json.dumps(body, separators=(",", ":")))

    async def _farewell(self) -> None:
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_FAREWELL_S):
                if self._failure is not None:
                    await self._tell(self._failure)
                await self._socket.close(
                    code=WSCloseCode.OK if self._failure is None else WSCloseCode.TRY_AGAIN_LATER
                )
