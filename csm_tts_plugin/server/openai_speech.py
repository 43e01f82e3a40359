"""`POST /v1/audio/speech`, as OpenAI's clients send it: one text in, one stream of sound out."""

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
from ..fields import WHOLE_MAX, Fields, read_object
from ..protocol import STOCK_VOICE, VOICE_ID
from .access import require_key
from .faults import as_csm_error, logger
from .speech import Speech, sentences_of
from .state import STATE
from .voices import resolve

_GONE_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    sentences: list[str] = field(repr=False)
    voice: str
    format: str
    sampling: Sampling


async def speak(request: web.Request) -> web.StreamResponse:
    """Errors before the first sound have a status; later ones cut the connection, so that no client
    takes half a speech for a whole one.
    """
    state = request.app[STATE]
    key = require_key(request, state.config)
    state.check_open()
    asked = read_request(await _body(request), state.config.limits)
    info = state.engine.info()
    voice = await asyncio.to_thread(resolve, asked.voice, state.config, info)
    with Speech(state, asked.sentences, voice, asked.sampling, key=key) as speech:
        watch = asyncio.create_task(_watch(request, speech), name="csm-speech-watch")
        try:
            return await _stream(request, speech, asked.format)
        finally:
            watch.cancel()
            await asyncio.wait([watch])


def read_request(text: str, limits: Limits) -> SpeechRequest:
    """OpenAI's fields, and `temperature`, `top_k`, `seed` for those who send an extra body.

    Any `model` will do: an engine has one. Raises RequestError, TextError, VoiceError.
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
            fields.integer("top_k", 1, limits.top_k_max),
            fields.integer("seed", 0, WHOLE_MAX),
        ),
    )
    fields.finish()
    return asked


def _refuse_what_csm_cannot(fields: Fields) -> None:
    if fields.raw("speed") not in (None, 1, 1.0):
        raise fields.bad("speed", "1 or left out: CSM speaks at the voice's own pace")
    if fields.raw("instructions"):
        raise fields.bad("instructions", "left out: CSM takes its manner from the voice alone")
    if fields.string("stream_format", default="audio") != "audio":
        raise fields.bad("stream_format", "audio or left out; the sound is streamed as it is made")


def _voice(fields: Fields) -> str:
    """A name, or `{"id": name}` as newer clients send it."""
    value: Any = fields.raw("voice")
    if isinstance(value, dict) and set(value) == {"id"}:
        value = value["id"]
    if value is None:
        return STOCK_VOICE
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


async def _stream(request: web.Request, speech: Speech, format: str) -> web.StreamResponse:
    sink = await asyncio.to_thread(encoder, format)
    response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPES[format]})
    try:
        async with aclosing(speech.pieces()) as pieces:
            async for piece in pieces:
                if not response.prepared:
                    await response.prepare(request)
                await _send(request, response, await _encode(sink, format, piece))
        if not response.prepared:  # the model had nothing to say: a file without sound
            await response.prepare(request)
        await _send(request, response, await asyncio.to_thread(sink.finish))
        await response.write_eof()
    except Exception as error:
        if not response.prepared:
            raise
        _cut(request, error)
    return response


async def _encode(sink: Encoder, format: str, piece: Samples) -> bytes:
    """libav takes a millisecond or two for a frame: too long for the loop that all share."""
    if format in ("pcm", "wav"):
        return sink.push(piece)
    return await asyncio.to_thread(sink.push, piece)


async def _send(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(request.app[STATE].config.limits.stalled_reader_s):
        await response.write(data)


def _cut(request: web.Request, error: Exception) -> None:
    """End a started response so that its client sees that it is not whole."""
    if request.transport is None:
        return
    request.transport.abort()
    if not isinstance(error, OSError):  # a stalled or lost client is no error of ours
        request.app[STATE].metrics.errors.labels(as_csm_error(error, logger).code).inc()


async def _watch(request: web.Request, speech: Speech) -> None:
    """Free the engine when the client leaves, also while nothing is sent."""
    with suppress(asyncio.CancelledError):
        while request.transport is not None:  # noqa: ASYNC110  a handler is not told otherwise
            await asyncio.sleep(_GONE_POLL_S)
        speech.fail(UnavailableError("The client left."))
