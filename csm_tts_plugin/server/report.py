"""Status messages of a serving process: lines for people, or JSON for its supervisor."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

from ..engine.api import EngineInfo, EngineStatus
from ..errors import CsmError, from_code


class Report(Protocol):
    def listening(self, host: str, port: int) -> None: ...

    def progress(self, detail: str) -> None: ...

    def ready(self, detail: str, seconds: float) -> None: ...

    def failed(self, error: CsmError) -> None: ...


class LineReport:
    """One line per message; only errors go to stderr."""

    def listening(self, host: str, port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        _say(f"listening on http://{shown}:{port}")

    def progress(self, detail: str) -> None:
        _say(f"  {detail}")

    def ready(self, detail: str, seconds: float) -> None:
        _say(f"ready: {detail}, after {seconds:.1f} s")

    def failed(self, error: CsmError) -> None:
        print(f"csm_tts_plugin: {error}", file=sys.stderr, flush=True)


class JsonReport:
    """One JSON object per line on stdout, each with an `event`; `read_event` parses them."""

    def listening(self, host: str, port: int) -> None:
        _event("listening", host=host, port=port)

    def progress(self, detail: str) -> None:
        _event("progress", detail=detail)

    def ready(self, detail: str, seconds: float) -> None:
        _event("ready", detail=detail, seconds=round(seconds, 2))

    def failed(self, error: CsmError) -> None:
        _event("failed", code=error.code, message=error.message)


def describe(info: EngineInfo | None, status: EngineStatus) -> str:
    """`tiny with anna on cpu float32, 8 slots, marked by perth`."""
    if info is None:
        return f"the model, {status.slots} slots"
    model = f"{info.model} with {info.adapter}" if info.adapter else info.model
    marked = "not marked" if info.watermark == "off" else f"marked by {info.watermark}"
    return f"{model} on {info.device} {info.dtype}, {status.slots} slots, {marked}"


def read_event(line: str) -> dict[str, Any] | None:
    """The event in a line of output, None for any other line."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def read_failure(event: dict[str, Any]) -> CsmError:
    """The error in a `failed` event."""
    return from_code(str(event.get("code")), str(event.get("message")))


def _event(name: str, **members: Any) -> None:
    _say(json.dumps({"event": name, **members}))


def _say(line: str) -> None:
    print(line, flush=True)
