"""The two forms of the body of `/v1/audio/speech`: an audio file, or server-sent events."""

from __future__ import annotations

import base64
import json
from typing import Any, Protocol

from ..audio.encoding import CONTENT_TYPES
from ..errors import CsmError
from .faults import error_body


class Framing(Protocol):
    frames: int
    """Number of frames of 80 ms spoken so far."""

    @property
    def headers(self) -> dict[str, str]: ...

    def sound(self, data: bytes) -> bytes:
        """The part of the body for encoded audio; may be empty."""

    def end(self) -> bytes:
        """The last part of a complete body."""

    def failed(self, error: CsmError) -> bytes:
        """The last part of a body that ends with an error; empty if the form has none."""


class Bare:
    """The audio file itself."""

    def __init__(self, format: str) -> None:
        self.frames = 0
        self.headers = {"Content-Type": CONTENT_TYPES[format]}

    def sound(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""

    def failed(self, error: CsmError) -> bytes:
        return b""


class Events:
    """OpenAI's events: `speech.audio.delta` with base64, then `speech.audio.done` with usage.

    Usage counts characters of the text as input and frames of 80 ms as output. A failure is an
    `error` event, after which the connection is closed without the end of the body.
    """

    headers = {  # noqa: RUF012  a constant
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
    }

    def __init__(self, characters: int) -> None:
        self.frames = 0
        self._characters = characters

    def sound(self, data: bytes) -> bytes:
        if not data:
            return b""
        audio = base64.b64encode(data).decode("ascii")
        return _event({"type": "speech.audio.delta", "audio": audio})

    def end(self) -> bytes:
        usage = {
            "input_tokens": self._characters,
            "output_tokens": self.frames,
            "total_tokens": self._characters + self.frames,
        }
        return _event({"type": "speech.audio.done", "usage": usage})

    def failed(self, error: CsmError) -> bytes:
        return _event({"type": "error", **error_body(error)})


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
