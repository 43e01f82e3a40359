"""The native protocol of `WS /v1/stream`, as typed messages. No I/O.

Text messages are JSON objects with a `type`; binary messages are sound: 16-bit little-endian mono PCM
at the rate asked for in `open`. One socket is one conversation.

to the engine   `open` (voice, rate, key, sampling) · `turn` (who, text, audio) · `say` (id, text, more,
                max_seconds) · `cancel` (id) · `close`
from the engine `opened` · `audio` (id, seq, frame, samples: the binary message that follows) ·
                `done` (id, frames, reason, timings) · `error` (id, code, message, retryable, retry_after)

`open` may be sent again: the voice changes from the next `say` on. Each `say` is one utterance; they are
spoken in order, and each ends in exactly one `done` or `error` with its id. `more` says that the same
reply goes on. An `error` without an id concerns the conversation; the socket stays usable unless the
server closes it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from typing import Any

from .config import OUTPUT_RATES, SAMPLE_RATE, Limits
from .errors import AudioError, CsmError, RequestError, TextError, VoiceError, from_code

VOICE_ID = re.compile(r"^[a-z0-9_-]{1,64}$")
"""The only names a voice may have on the wire: never a path, never a URL."""

STOCK_VOICE = "stock"


@dataclass(frozen=True, slots=True)
class InlineVoice:
    """A reference sent with `open`: an encoded file (WAV, FLAC, OGG), its words and the consent."""

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


@dataclass(frozen=True, slots=True)
class Cancel:
    id: str


@dataclass(frozen=True, slots=True)
class Close:
    pass


ClientMessage = Open | TurnMessage | Say | Cancel | Close


@dataclass(frozen=True, slots=True)
class Opened:
    conversation: str
    rate: int


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """Announces the binary message that follows it at once."""

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

    @classmethod
    def of(cls, error: CsmError, id: str | None = None) -> ErrorMessage:
        return cls(error.code, error.message, error.retryable, id, error.retry_after)

    def to_exception(self) -> CsmError:
        return from_code(self.code, self.message, retry_after=self.retry_after)


ServerMessage = Opened | AudioHeader | DoneMessage | ErrorMessage
