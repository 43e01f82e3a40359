"""Where the time went, as OpenTelemetry spans and Prometheus figures: of turns and of utterances.

Spans are off unless an OTLP endpoint is named. Whatever is exported goes through `_Discreet`, also
what LiveKit records: numbers, and words out of a list, never a text or a name. Knows nothing of
LiveKit; opentelemetry is imported when spans are wanted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Histogram

from .config import TelemetryConfig, figures_folder
from .errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span, Tracer

_SCOPE = "csm_tts_plugin"
_FLUSH_MS = 3_000
_NS = 1_000_000_000

_WORDS = frozenset(
    {
        "csm.reason",
        "job_id",
        "room_id",
        "lk.job_id",
        "lk.room_sid",
        "lk.speech_id",
        "lk.eou.source",
        "lk.eou.outcome",
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.response.model",
    }
)
"""Attributes whose text is ours, LiveKit's or a model's name, never a caller's."""

if (_folder := figures_folder()) is not None:
    _folder.mkdir(parents=True, exist_ok=True)  # where it is missing, the next lines would fail

_TURN = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
turn_seconds = Histogram(
    "csm_turn_seconds",
    "Parts of the wait between a caller's last word and the reply's first sound",
    ["part"],
    buckets=_TURN,
)
turns = Counter("csm_turns", "Replies, and whether the caller broke in", ["interrupted"])
resumes = Counter("csm_resumes", "Sentences said again, their engine being lost or full")

_provider: TracerProvider | None = None


def begin(service: str, config: TelemetryConfig | None = None) -> TracerProvider | None:
    """Export spans of this process as `service`; the provider, or None where nobody wants them.

    Raises ConfigError where opentelemetry is not installed.
    """
    global _provider
    config = config or TelemetryConfig.from_env()
    if not config.wanted:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError(
            "Spans need opentelemetry; `pip install csm-tts-plugin[telemetry]`, or leave"
            " OTEL_EXPORTER_OTLP_ENDPOINT empty."
        ) from None
    name = {} if config.names_service else {SERVICE_NAME: service}
    _provider = TracerProvider(resource=Resource.create(name))
    _provider.add_span_processor(BatchSpanProcessor(discreet(OTLPSpanExporter())))
    return _provider


def flush() -> None:
    """Send what is waiting; bounded in time. Blocks."""
    if _provider is not None:
        _provider.force_flush(_FLUSH_MS)


def end() -> None:
    """Send what is waiting and export no more."""
    global _provider
    provider, _provider = _provider, None
    if provider is not None:
        provider.force_flush(_FLUSH_MS)
        provider.shutdown()


def utterance(
    *,
    reason: str,
    frames: int,
    queued: float,
    prefill: float,
    first_audio: float,
    total: float,
) -> None:
    """The engine's part, when it has ended: seconds since it was said, frames of 80 ms."""
    if (tracer := _tracer()) is None:
        return
    ended = time.time()
    began = ended - total
    span = tracer.start_span("csm.utterance", start_time=_ns(began))
    span.set_attributes({"csm.reason": reason, "csm.frames": frames, "csm.total_s": total})
    parts = {"queue": queued, "prefill": prefill, "first_frame": first_audio}
    at = 0.0
    for name, until in parts.items():
        span.set_attribute(f"csm.{name}_s", round(until, 6))
        if until > at:
            _part(tracer, span, f"csm.{name}", began + at, began + until)
            at = until
    span.end(_ns(ended))


def turn(heard: Mapping[str, Any], said: Mapping[str, Any], *, interrupted: bool) -> None:
    """One reply: LiveKit's metrics of the caller's message, and of the reply to it."""
    seconds = {
        "endpointing": heard.get("end_of_turn_delay"),
        "stt": heard.get("transcription_delay"),
        "llm": said.get("llm_node_ttft"),
        "first_audio": said.get("tts_node_ttfb"),
        "e2e": said.get("e2e_latency"),
    }
    known = {part: float(value) for part, value in seconds.items() if value is not None}
    turns.labels(str(interrupted).lower()).inc()
    for part, value in known.items():
        turn_seconds.labels(part).observe(value)
    if (tracer := _tracer()) is not None:
        _turn_span(tracer, known, heard.get("stopped_speaking_at"), interrupted)


def _turn_span(
    tracer: Tracer, known: Mapping[str, float], silent_at: float | None, interrupted: bool
) -> None:
    """From the caller's last word to the reply's first sound. What comes before the reply is laid
    out from the left, the LLM and the first sound from the right: there they are told apart.
    """
    whole = known.get("e2e", sum(known.get(p, 0.0) for p in ("endpointing", "llm", "first_audio")))
    began = time.time() - whole if silent_at is None else silent_at
    sounds = began + whole
    speaks = sounds - known.get("first_audio", 0.0)
    span = tracer.start_span("csm.turn", start_time=_ns(began))
    span.set_attribute("csm.interrupted", interrupted)
    places = {
        "endpointing": (began, began + known.get("endpointing", 0.0)),
        "stt": (began, began + known.get("stt", 0.0)),
        "llm": (speaks - known.get("llm", 0.0), speaks),
        "first_audio": (speaks, sounds),
    }
    for part, value in known.items():
        span.set_attribute(f"csm.{part}_s", round(value, 6))
        if part in places:
            _part(tracer, span, f"csm.{part}", *places[part])
    span.end(_ns(sounds))


def _part(tracer: Tracer, parent: Span, name: str, began: float, ended: float) -> None:
    from opentelemetry.trace import set_span_in_context

    within = set_span_in_context(parent)
    tracer.start_span(name, context=within, start_time=_ns(began)).end(_ns(ended))


def _tracer() -> Tracer | None:
    return None if _provider is None else _provider.get_tracer(_SCOPE)


def _ns(seconds: float) -> int:
    return int(seconds * _NS)


def discreet(exporter: SpanExporter) -> SpanExporter:
    """The exporter, to which nothing comes that a caller said, or who it was.

    Left of a span: times, numbers, the words of `_WORDS`, and whether it failed; no events, whose
    messages may quote anything.
    """
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Status

    def bare(span: ReadableSpan) -> ReadableSpan:
        return ReadableSpan(
            name=span.name,
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=_harmless(span.attributes or {}),
            kind=span.kind,
            status=Status(span.status.status_code),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    class Discreet(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return exporter.export([bare(span) for span in spans])

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = _FLUSH_MS) -> bool:
            return exporter.force_flush(timeout_millis)

    return Discreet()


def _harmless(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in attributes.items()
        if isinstance(value, int | float) or (name in _WORDS and isinstance(value, str))
    }
