"""What a serving process says of itself: lines for a person, or JSON for its supervisor."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

from ..engine.api import EngineInfo, EngineStatus
from ..errors import CsmError, from_code


class Report(Protocol):
    def listening(self, host: str, port: int) -> None: ...

    def progress(self, detail: str) -> None: ...

    def ready(self, info: EngineInfo | None, status: EngineStatus, seconds: float) -> None: ...

    def failed(self, error: CsmError) -> None: ...


class LineReport:
    """One line each; only the error goes to stderr."""

    def listening(self, host: str, port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        _say(f"listening on http://{shown}:{port}")

    def progress(self, detail: str) -> None:
        _say(f"  {detail}")

    def ready(self, info: EngineInfo | None, status: EngineStatus, seconds: float) -> None:
        _say(f"ready: {describe(info, status)}, after {seconds:.1f} s")

    def failed(self, error: CsmError) -> None:
        print(f"csm_tts_plugin: {error}", file=sys.stderr, flush=True)


class JsonReport:
    """One JSON object a line on stdout, each with an `event`; `read_event` reads them."""

    def listening(self, host: str, port: int) -> None:
        _event("listening", host=host, port=port)

    def progress(self, detail: str) -> None:
        _event("progress", detail=detail)

    def ready(self, info: EngineInfo | None, status: EngineStatus, seconds: float) -> None:
        _event("ready", detail=describe(info, status), seconds=round(seconds, 2))

    def failed(self, error: CsmError) -> None:
        _event("failed", code=error.code, message=error.message)


def describe(info: EngineInfo | None, status: EngineStatus) -> str:
    """`tiny on cpu float32, 8 slots`."""
    model = f"{info.model} on {info.device} {info.dtype}" if info else "the model"
    return f"{model}, {status.slots} slots"


def read_event(line: str) -> dict[str, Any] | None:
    """The event of a line, None for any other line."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def read_failure(event: dict[str, Any]) -> CsmError:
    """The error that a `failed` event tells of."""
    return from_code(str(event.get("code")), str(event.get("message")))


def _event(name: str, **members: Any) -> None:
    _say(json.dumps({"event": name, **members}))


def _say(line: str) -> None:
    print(line, flush=True)
