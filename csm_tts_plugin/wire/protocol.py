"""The native protocol of `WS /v1/stream`, as typed messages. No I/O.

Text messages are JSON objects with a `type`; binary messages are audio: 16-bit little-endian mono
PCM at the rate requested in `open`. One socket is one conversation.

to the engine    `open` (voice, rate, key, temperature, top_k, seed, traceparent, keep, received) ·
                 `turn` (who, text, audio) ·
                 `say` (id, text, more, max_seconds, deadline, traceparent) ·
                 `cancel` (id, heard) · `ack` (received) · `close`
from the engine  `opened` (conversation, rate, received) ·
                 `audio` (id, seq, frame, samples): the binary message that follows ·
                 `done` (id, frames, reason, timings) ·
                 `error` (id, code, message, retryable, retry_after, about)

`open` may be sent again: voice, rate and sampling change from the next `say` on. Each `say` is one
utterance; they are spoken in order, and each ends in exactly one `done` or `error` with its id.
`more` says that the same reply goes on. `deadline`: seconds for its first audio, from the time when
it is next to speak; after that, in the queue or elsewhere, it is given up with `error timeout`. An
`error` without an id concerns the conversation, and `about` says which message it answers; the
socket stays usable unless the server closes it. `traceparent` is W3C's trace context.

`keep`, a secret chosen by the client, asks that the conversation survive its socket. When the
socket is lost, not closed, the engine goes on for 10 s; the client connects again and sends `open`
with the same `keep` and the total number of messages of the engine that it has `received` (audio
with its header counts as one, the first `opened` too). The engine answers `opened`, which is not
counted, with the number of the client's messages that it has `received` (without the first `open`
and those that resume), and both send what the other missed. The engine keeps what it sent for 10 s,
or until an `ack`.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..config import FRAME_SECONDS, OUTPUT_RATES, SAMPLE_RATE, Limits
from ..errors import CsmError, EngineError, RequestError, VoiceError, from_code
from .fields import WHOLE_MAX, Fields, read_object

VOICE_ID = re.compile(r"^[a-z0-9_-]{1,64}$")
"""The only form of a voice's id in messages: never a path, never a URL."""

STOCK_VOICE = "stock"

KEEP = re.compile(r"^[A-Za-z0-9_-]{22,64}$")
"""The form of the secret for resuming a conversation: it must not be guessable."""

TRACE = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C trace context, version 0: trace, span, flags."""


@dataclass(frozen=True, slots=True)
class InlineVoice:
    """Reference audio sent with `open`: an encoded file (WAV, FLAC, OGG, MP3, M4A, WebM), its
    transcript and the consent.
    """

    audio: bytes = field(repr=False)
    transcript: str = field(repr=False)
    consent: dict[str, str] = field(repr=False)
    speaker: str = "caller"


@dataclass(frozen=True, slots=True)
class Open:
    voice: str | InlineVoice = STOCK_VOICE
    rate: int = SAMPLE_RATE
    key: str | None = field(default=None, repr=False)
    temperature: float | None = None
    top_k: int | None = None
    seed: int | None = None
    traceparent: str | None = None
    """W3C trace context: the parent of the engine's spans of this conversation."""
    keep: str | None = field(default=None, repr=False)
    """The secret for resuming the conversation after its socket was lost."""
    received: int | None = None
    """Number of the engine's messages that have arrived, when resuming."""


@dataclass(frozen=True, slots=True)
class TurnMessage:
    who: str
    text: str = field(repr=False)
    audio: bytes | None = field(default=None, repr=False)
    """An encoded file, as in `InlineVoice`."""


@dataclass(frozen=True, slots=True)
class Say:
    id: str
    text: str = field(repr=False)
    more: bool = False
    max_seconds: float | None = None
    deadline: float | None = None
    traceparent: str | None = None
    """As in `Open`, for this utterance."""


@dataclass(frozen=True, slots=True)
class Cancel:
    id: str
    heard: int | None = None
    """How many of its frames of 80 ms were heard; the others are removed from the context. May also
    be sent after its end."""


@dataclass(frozen=True, slots=True)
class Ack:
    received: int
    """As in `Open`: these messages need not be kept any more."""


@dataclass(frozen=True, slots=True)
class Close:
    pass


ClientMessage = Open | TurnMessage | Say | Cancel | Ack | Close


@dataclass(frozen=True, slots=True)
class Opened:
    conversation: str
    rate: int
    received: int | None = None
    """Number of the client's messages that have arrived, when resuming."""


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """Announces the binary message that follows immediately."""

    id: str
    seq: int
    frame: int
    samples: int


@dataclass(frozen=True, slots=True)
class DoneMessage:
    id: str
    frames: int
    reason: str
    timings: dict[str, float]


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    code: str
    message: str
    retryable: bool
    id: str | None = None
    retry_after: float | None = None
    about: str | None = None
    """The type of the message that it answers, if there is no `id`."""

    @classmethod
    def of(cls, error: CsmError, id: str | None = None, about: str | None = None) -> ErrorMessage:
        return cls(error.code, error.message, error.retryable, id, error.retry_after, about)

    def to_exception(self) -> CsmError:
        return from_code(self.code, self.message, retry_after=self.retry_after)


ServerMessage = Opened | AudioHeader | DoneMessage | ErrorMessage


# Reading

_UTTERANCE_ID = re.compile(r"^[A-Za-z0-9._:-]{1,64}$")
_DEADLINE_MAX = 86_400.0
"""The largest accepted deadline; the server's own limit is lower."""
_CONSENT_NAME = re.compile(r"^[a-z0-9_]{1,32}$")


def parse_client(text: str, limits: Limits) -> ClientMessage:
    """Parses a client's message and checks all limits; audio is decoded from base64 only.

    Raises RequestError or its subclasses TextError, AudioError, VoiceError.
    """
    kind, fields = _envelope(text, limits)
    reader = _CLIENT_READERS.get(kind)
    if reader is None:
        raise RequestError(f"Unknown message type; known are {', '.join(_CLIENT_READERS)}.")
    message = reader(fields, limits)
    fields.finish()
    return message


def addressed(text: str, limits: Limits) -> tuple[str | None, str | None]:
    """The `id` and the type of a refused message, for the answer; None if unknown."""
    try:
        kind, fields = _envelope(text, limits)
        if kind not in _CLIENT_READERS:
            return None, None
        return (fields.match("id", _UTTERANCE_ID) if kind == "say" else None), kind
    except RequestError:
        return None, None


def parse_server(text: str, limits: Limits | None = None) -> ServerMessage:
    """Parses an engine's message. Raises EngineError for a peer that is no
    engine of this version.
    """
    try:
        kind, fields = _envelope(text, limits or Limits())
        reader = _SERVER_READERS.get(kind)
        if reader is None:
            raise RequestError("Unknown message type.")
        message = reader(fields)
        fields.finish()
    except RequestError as error:
        raise EngineError(
            "The engine sent a message that is not of this protocol: "
            f"{error.message} Run the same version at both ends."
        ) from None
    return message


def _envelope(text: str, limits: Limits) -> tuple[str, Fields]:
    members = read_object(text, limits)
    kind = members.pop("type", None)
    if not isinstance(kind, str):
        raise RequestError("A message must have a `type`.")
    return kind, Fields(members, kind if kind in _TYPES.values() else "message")


def _read_open(fields: Fields, limits: Limits) -> Open:
    rate = fields.integer("rate", 1, max(OUTPUT_RATES))
    if rate is not None and rate not in OUTPUT_RATES:
        raise fields.bad("rate", f"one of {', '.join(map(str, OUTPUT_RATES))}")
    return Open(
        voice=_read_voice(fields, limits),
        rate=SAMPLE_RATE if rate is None else rate,
        key=fields.string("key", default="") or None,
        temperature=fields.number("temperature", 0.0, limits.temperature_max),
        top_k=fields.integer("top_k", 1, limits.top_k_max),
        seed=fields.integer("seed", 0, WHOLE_MAX),
        traceparent=_read_trace(fields),
        keep=_read_keep(fields),
        received=fields.integer("received", 0, WHOLE_MAX),
    )


def _read_keep(fields: Fields) -> str | None:
    value = fields.string("keep", default="")
    if value and not KEEP.fullmatch(value):
        raise fields.bad("keep", "22 to 64 of a-z, A-Z, 0-9, _ and -, chosen at random")
    return value or None


def _read_trace(fields: Fields) -> str | None:
    value = fields.string("traceparent", default="")
    if value and not TRACE.fullmatch(value):
        raise fields.bad("traceparent", "W3C's, such as 00-<32 hex digits>-<16 hex digits>-01")
    return value or None


def _read_voice(fields: Fields, limits: Limits) -> str | InlineVoice:
    value = fields.raw("voice")
    if value is None:
        return STOCK_VOICE
    if isinstance(value, str):
        if not VOICE_ID.fullmatch(value):
            raise fields.bad("voice", "a voice's name: a-z, 0-9, _ and -, at most 64", VoiceError)
        return value
    if not isinstance(value, dict):
        raise fields.bad("voice", "a voice's name or an object", VoiceError)
    inline = Fields(value, "voice")
    voice = InlineVoice(
        audio=inline.audio("audio", limits),
        transcript=inline.speech("transcript", limits),
        consent=_read_consent(inline, limits),
        speaker=inline.name("speaker", limits, default="caller"),
    )
    inline.finish()
    return voice


def _read_consent(fields: Fields, limits: Limits) -> dict[str, str]:
    consent = fields.object("consent")
    if len(consent) > 8 or not all(_CONSENT_NAME.fullmatch(name) for name in consent):
        raise fields.bad("consent", "at most 8 fields with names of a-z, 0-9 and _")
    record = Fields(dict(consent), "consent")
    values = {name: record.string(name) for name in consent}
    if any(len(value) > limits.text_chars for value in values.values()):
        raise fields.bad("consent", f"made of texts of at most {limits.text_chars} characters")
    return values


def _read_turn(fields: Fields, limits: Limits) -> TurnMessage:
    who, text = fields.name("who", limits), fields.speech("text", limits)
    if (audio := fields.raw("audio")) is None:
        return TurnMessage(who, text)
    return TurnMessage(who, text, Fields({"audio": audio}, "turn").audio("audio", limits))


def _read_say(fields: Fields, limits: Limits) -> Say:
    return Say(
        id=fields.match("id", _UTTERANCE_ID),
        text=fields.speech("text", limits),
        more=fields.flag("more", False),
        max_seconds=fields.number("max_seconds", FRAME_SECONDS, limits.speech_seconds_max),
        deadline=fields.number("deadline", 0.0, _DEADLINE_MAX),
        traceparent=_read_trace(fields),
    )


def _read_cancel(fields: Fields, limits: Limits) -> Cancel:
    return Cancel(fields.match("id", _UTTERANCE_ID), fields.integer("heard", 0, WHOLE_MAX))


def _read_close(fields: Fields, limits: Limits) -> Close:
    return Close()


def _read_opened(fields: Fields) -> Opened:
    conversation, rate = fields.match("conversation", _UTTERANCE_ID), fields.count("rate")
    return Opened(conversation, rate, fields.integer("received", 0, WHOLE_MAX))


def _read_audio(fields: Fields) -> AudioHeader:
    id = fields.match("id", _UTTERANCE_ID)
    return AudioHeader(id, fields.count("seq"), fields.count("frame"), fields.count("samples"))


def _read_done(fields: Fields) -> DoneMessage:
    id, frames = fields.match("id", _UTTERANCE_ID), fields.count("frames")
    reason = fields.match("reason", _CONSENT_NAME)
    timings = Fields(fields.object("timings"), "timings")
    seconds = {name: timings.number(name, 0.0, 1e9) for name in timings.names()}
    return DoneMessage(id, frames, reason, {k: v for k, v in seconds.items() if v is not None})


def _read_error(fields: Fields) -> ErrorMessage:
    return ErrorMessage(
        code=fields.string("code"),
        message=fields.string("message"),
        retryable=fields.flag("retryable", False),
        id=fields.string("id", default="") or None,
        retry_after=fields.number("retry_after", 0.0, 1e9),
        about=fields.string("about", default="") or None,
    )


_CLIENT_READERS: dict[str, Callable[[Fields, Limits], ClientMessage]] = {
    "open": _read_open,
    "turn": _read_turn,
    "say": _read_say,
    "cancel": _read_cancel,
    "ack": lambda fields, limits: Ack(fields.count("received")),
    "close": _read_close,
}
_SERVER_READERS: dict[str, Callable[[Fields], ServerMessage]] = {
    "opened": _read_opened,
    "audio": _read_audio,
    "done": _read_done,
    "error": _read_error,
}


# Writing

_TYPES: dict[type, str] = {
    Open: "open",
    TurnMessage: "turn",
    Say: "say",
    Cancel: "cancel",
    Ack: "ack",
    Close: "close",
    Opened: "opened",
    AudioHeader: "audio",
    DoneMessage: "done",
    ErrorMessage: "error",
}


def encode(message: ClientMessage | ServerMessage) -> str:
    """The message as one line of JSON; fields that are None are omitted, bytes become base64."""
    members = {"type": _TYPES[type(message)], **_members(message)}
    return json.dumps(members, allow_nan=False, separators=(",", ":"))


def _members(value: Any) -> dict[str, Any]:
    present = ((part.name, getattr(value, part.name)) for part in dataclasses.fields(value))
    return {name: _plain(member) for name, member in present if member is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return _members(value) if isinstance(value, InlineVoice) else value
