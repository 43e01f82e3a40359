"""`POST /v1/audio/speech`, as OpenAI's clients send it: one text in, one stream of audio out."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from ..audio.encoding import CONTENT_TYPES, Encoder, encoder
from ..config import Limits
from ..engine.api import Samples, Sampling
from ..errors import RequestError, UnavailableError, VoiceError
from ..wire.fields import WHOLE_MAX, Fields, read_object
from ..wire.protocol import STOCK_VOICE, TRACE, VOICE_ID
from .access import require_key
from .faults import as_csm_error, logger
from .framing import Bare, Events, Framing
from .speech import Speech, sentences_of
from .state import STATE
from .voices import as_openai, find

_GONE_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    sentences: list[str] = field(repr=False)
    voice: str
    format: str
    sampling: Sampling
    events: bool = False
    """Answer with server-sent events instead of an audio file."""
    characters: int = 0


async def speak(request: web.Request) -> web.StreamResponse:
    """Errors before the first audio have an HTTP status; later ones close the connection without
    the end of the body, so that no client takes half a speech for a whole one.
    """
    state = request.app[STATE]
    key = require_key(request, state.config)
    state.check_open()
    asked = read_request(await _body(request), state.config.limits)
    name = await asyncio.to_thread(as_openai, asked.voice, state.config)
    voice = await find(name, state)
    given = request.headers.get("traceparent", "")
    parent = given if TRACE.fullmatch(given) else None  # W3C: ignore malformed headers
    sentences, sampling = asked.sentences, asked.sampling
    with Speech(state, sentences, voice, sampling, key=key, parent=parent) as speech:
        watch = asyncio.create_task(_watch(request, speech), name="csm-speech-watch")
        try:
            return await _stream(request, speech, asked)
        finally:
            watch.cancel()
            await asyncio.wait([watch])


def read_request(text: str, limits: Limits) -> SpeechRequest:
    """Reads OpenAI's fields and our `temperature`, `top_k`, `seed` (`extra_body` of its client).

    Any `model` is accepted: an engine has only one. Raises RequestError, TextError, VoiceError.
    """
    fields = Fields(read_object(text, limits), "speech")
    fields.string("model", default="")
    words = fields.speech("input", replace(limits, text_chars=limits.speech_chars))
    _refuse_what_csm_cannot(fields)
    asked = SpeechRequest(
        sentences_of(words),
        _voice(fields),
        _format(fields),
        Sampling(
            fields.number("temperature", 0.0, limits.temperature_max),
            fields.integer("top_k", 1, limits.top_k_max, schema=True),
            fields.integer("seed", 0, WHOLE_MAX, schema=True),
        ),
        _events(fields),
        len(words),
    )
    fields.finish(named=True)
    return asked


def _refuse_what_csm_cannot(fields: Fields) -> None:
    if fields.number("speed", 0.25, 4.0) not in (None, 1.0):
        raise fields.bad("speed", "1 or left out: CSM speaks at the voice's own pace")
    if fields.string("instructions", default=""):
        raise fields.bad("instructions", "left out: CSM takes its manner from the voice alone")


def _events(fields: Fields) -> bool:
    format = fields.string("stream_format", default="audio")
    if format not in ("audio", "sse"):
        raise fields.bad("stream_format", "audio or sse")
    return format == "sse"


def _voice(fields: Fields) -> str:
    """A name, or `{"id": name}` as newer clients send it."""
    value: Any = fields.raw("voice")
    if value is None:
        return STOCK_VOICE
    if isinstance(value, dict) and set(value) == {"id"}:
        value = value["id"]
    if not isinstance(value, str) or not VOICE_ID.fullmatch(value):
        raise fields.bad("voice", "a voice's name: a-z, 0-9, _ and -, at most 64", VoiceError)
    return value


def _format(fields: Fields) -> str:
    format = fields.string("response_format", default="mp3")
    if format not in CONTENT_TYPES:
        raise fields.bad("response_format", f"one of {', '.join(CONTENT_TYPES)}")
    return format


async def _body(request: web.Request) -> str:
    try:
        return await request.text()
    except (UnicodeDecodeError, LookupError):
        raise RequestError("The body must be JSON in UTF-8.") from None


async def _stream(request: web.Request, speech: Speech, asked: SpeechRequest) -> web.StreamResponse:
    sink = await asyncio.to_thread(encoder, asked.format)
    framing = Events(asked.characters) if asked.events else Bare(asked.format)
    response = web.StreamResponse(headers=framing.headers)
    try:
        async with aclosing(speech.pieces()) as pieces:
            async for piece in pieces:
                if not response.prepared:
                    await response.prepare(request)
                framing.frames += 1
                data = await _encode(sink, asked.format, piece)
                await _send(request, response, framing.sound(data))
        if not response.prepared:  # the model generated nothing: a file without audio
            await response.prepare(request)
        rest = framing.sound(await asyncio.to_thread(sink.finish))
        await _send(request, response, rest + framing.end())
        await response.write_eof()
    except Exception as error:
        if not response.prepared:
            raise
        await _cut(request, response, framing, error)
    return response


async def _encode(sink: Encoder, format: str, piece: Samples) -> bytes:
    """Encoding by libav takes 1 to 2 ms per frame, too long for the shared event loop."""
    if format in ("pcm", "wav"):
        return sink.push(piece)
    return await asyncio.to_thread(sink.push, piece)


async def _send(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(request.app[STATE].config.limits.stalled_reader_s):
        await response.write(data)


async def _cut(
    request: web.Request, response: web.StreamResponse, framing: Framing, error: Exception
) -> None:
    """End a started response so that the client notices that it is incomplete."""
    transport = request.transport
    if transport is None:
        return
    if isinstance(error, OSError):  # a stalled or lost client is no error of ours
        return transport.abort()
    told = as_csm_error(error, logger)
    request.app[STATE].metrics.errors.labels(told.code).inc()
    if not (last := framing.failed(told)):
        return transport.abort()
    try:
        await _send(request, response, last)
        transport.close()  # without the last chunk of a complete response
    except OSError:
        transport.abort()


async def _watch(request: web.Request, speech: Speech) -> None:
    """Free the engine when the client leaves, also while nothing is sent."""
    with suppress(asyncio.CancelledError):
        while request.transport is not None:  # noqa: ASYNC110  a handler is not told otherwise
            await asyncio.sleep(_GONE_POLL_S)
        speech.fail(UnavailableError("The client left."))
