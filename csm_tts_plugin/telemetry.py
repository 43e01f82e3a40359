"""Durations of turns and utterances, as OpenTelemetry spans and Prometheus metrics.

Spans are off unless an OTLP endpoint is set. All exported spans, also LiveKit's, pass `_Discreet`,
which keeps numbers and words of a list only, never texts or names. Independent of LiveKit;
opentelemetry is imported only if spans are on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Histogram

from .config import TelemetryConfig, figures_folder
from .errors import ConfigError, install

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span, Tracer

_SCOPE = "csm_tts_plugin"
_IN_ORDER = ("llm", "first_sentence", "first_audio", "playout")
"""The parts of a turn after its end, in their order."""
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
    """Export spans of this process as `service`; returns the provider, None if spans are off.

    Raises ConfigError if opentelemetry is not installed.
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
            f"Spans need opentelemetry; {install('telemetry')}, or leave"
            " OTEL_EXPORTER_OTLP_ENDPOINT empty."
        ) from None
    name = {} if config.names_service else {SERVICE_NAME: service}
    _provider = TracerProvider(resource=Resource.create(name))
    _provider.add_span_processor(BatchSpanProcessor(discreet(OTLPSpanExporter())))
    return _provider


def flush() -> None:
    """Send waiting spans. Blocks, for a limited time."""
    if _provider is not None:
        _provider.force_flush(_FLUSH_MS)


def end() -> None:
    """Send waiting spans and stop exporting."""
    global _provider
    provider, _provider = _provider, None
    if provider is not None:
        provider.force_flush(_FLUSH_MS)
        provider.shutdown()


def traceparent() -> str | None:
    """The current span as W3C's header `traceparent`, for the engine's spans; None without one.
    Imports nothing, because opentelemetry is loaded if there is a span.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    here = trace.get_current_span().get_span_context()
    if not here.is_valid:
        return None
    return f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}"


def _within(parent: str | None) -> Context | None:
    """The context of a span with a parent in another process; None starts a trace."""
    if parent is None:
        return None
    from opentelemetry.trace import (
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        set_span_in_context,
    )

    _, trace_id, span_id, flags = parent.split("-")[:4]
    there = SpanContext(
        int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16) & TraceFlags.SAMPLED)
    )
    return set_span_in_context(NonRecordingSpan(there))


def utterance(
    *,
    parent: str | None = None,
    reason: str,
    frames: int,
    queued: float,
    prefill: float,
    first_audio: float,
    total: float,
) -> None:
    """Record an utterance at its end: seconds since it was asked for, frames of 80 ms.

    `parent`: the client's span as W3C's `traceparent`.
    """
    if (tracer := _tracer()) is None:
        return
    ended = time.time()
    began = ended - total
    span = tracer.start_span("csm.utterance", context=_within(parent), start_time=_ns(began))
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
    """Record one turn, by LiveKit's metrics of the caller's message and of the reply to it."""
    seconds = {
        "endpointing": heard.get("end_of_turn_delay"),
        "stt": heard.get("transcription_delay"),
        "llm": said.get("llm_node_ttft"),
        "first_sentence": _first_sentence(said),
        "first_audio": said.get("tts_node_ttfb"),
        "playout": said.get("playback_latency"),
        "e2e": said.get("e2e_latency"),
    }
    known = {part: float(value) for part, value in seconds.items() if value is not None}
    turns.labels(str(interrupted).lower()).inc()
    for part, value in known.items():
        turn_seconds.labels(part).observe(value)
    if (tracer := _tracer()) is not None:
        _turn_span(tracer, known, heard.get("stopped_speaking_at"), interrupted)


def turn_figures(heard: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a turn in seconds, by LiveKit's metrics of the user's message and of the reply.

    `first_sentence`: from the LLM's first token until the text-to-speech has something to speak.
    `playout`: from first audio until LiveKit's output takes it. `spoke_at`, `silent_at` and
    `sounds_at` are the times at which the caller began and ended and the reply began, for matching
    with a recording.
    """
    found = {
        "spoke_at": heard.get("started_speaking_at"),
        "silent_at": heard.get("stopped_speaking_at"),
        "sounds_at": said.get("started_speaking_at"),
        "endpointing": heard.get("end_of_turn_delay"),
        "stt": heard.get("transcription_delay"),
        "llm_ttft": said.get("llm_node_ttft"),
        "first_sentence": _first_sentence(said),
        "tts_first_audio": said.get("tts_node_ttfb"),
        "playout": said.get("playback_latency"),
        "e2e": said.get("e2e_latency"),
    }
    return {name: None if value is None else round(value, 3) for name, value in found.items()}


def _first_sentence(said: Mapping[str, Any]) -> float | None:
    token, sentence = said.get("llm_node_ttft"), said.get("llm_node_ttfs")
    return None if token is None or sentence is None else max(0.0, float(sentence) - float(token))


def _turn_span(
    tracer: Tracer, known: Mapping[str, float], silent_at: float | None, interrupted: bool
) -> None:
    """A span from the end of the caller's speech to first audio of the reply, with its parts:
    endpointing and speech-to-text from its beginning, the others up to its end.
    """
    whole = known.get("e2e", sum(known.get(part, 0.0) for part in ("endpointing", *_IN_ORDER)))
    began = time.time() - whole if silent_at is None else silent_at
    sounds = began + whole
    span = tracer.start_span("csm.turn", start_time=_ns(began))
    span.set_attribute("csm.interrupted", interrupted)
    places = {
        "endpointing": (began, began + known.get("endpointing", 0.0)),
        "stt": (began, began + known.get("stt", 0.0)),
    }
    until = sounds
    for part in reversed(_IN_ORDER):
        places[part] = (until - known.get(part, 0.0), until)
        until = places[part][0]
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
    """An exporter that removes everything that could hold a caller's words or identity.

    Kept of a span: times, numbers, the values of `_WORDS`, and whether it failed; no events, whose
    messages may contain anything.
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
