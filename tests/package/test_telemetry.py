"""Spans: none unless requested, correct times, and no words of a caller."""

from __future__ import annotations

import time

import pytest
from livekit.agents import telemetry as livekit_telemetry
from opentelemetry.trace import NoOpTracerProvider

from csm_tts_plugin import telemetry
from csm_tts_plugin.config import AgentConfig, TelemetryConfig
from csm_tts_plugin.errors import ConfigError
from tests.package.test_imports import imported_by
from tests.support.collector import attributes, collecting, seconds

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
CANARY = "the caller said tangerine"
FIGURES = {"queued": 0.1, "prefill": 0.3, "first_audio": 0.4, "total": 2.0}


@pytest.fixture
def exported(monkeypatch):
    """What arrives at a collector; the export is ended after the test."""
    with collecting() as collector:
        for name in ("TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL", "HEADERS"):
            monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
        monkeypatch.setenv(ENDPOINT, collector.url)
        yield collector
        telemetry.end()
        livekit_telemetry.set_tracer_provider(NoOpTracerProvider())


@pytest.mark.parametrize(
    "env",
    [
        {},
        {ENDPOINT: ""},
        {ENDPOINT: "http://here", "OTEL_SDK_DISABLED": "true"},
        {ENDPOINT: "http://here", "OTEL_TRACES_EXPORTER": "none"},
        {ENDPOINT: "http://here", "OTEL_TRACES_EXPORTER": "console"},
    ],
)
def test_nothing_is_exported_unless_an_endpoint_is_named(env):
    config = TelemetryConfig.from_env(env)
    assert not config.wanted
    assert telemetry.begin("nobody", config) is None


@pytest.mark.parametrize(
    "env",
    [
        {ENDPOINT: "http://here"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://here/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
        {ENDPOINT: "http://here", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    ],
)
def test_an_endpoint_turns_it_on(env):
    assert TelemetryConfig.from_env(env).wanted


def test_another_protocol_is_refused_with_the_cure():
    env = {ENDPOINT: "http://here:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL=grpc.*http/protobuf"):
        TelemetryConfig.from_env(env)


def test_where_it_is_off_opentelemetry_is_not_even_imported():
    begun = "import csm_tts_plugin.telemetry as t; t.begin('nobody')"
    assert "opentelemetry" not in imported_by(begun)


def test_an_utterance_is_a_span_with_the_times_of_its_parts(exported):
    telemetry.begin("csm-engine")
    telemetry.utterance(reason="end", frames=25, **FIGURES)
    telemetry.flush()
    (span,) = exported.spans("csm.utterance", "csm-engine")
    found = attributes(span)
    assert (found["csm.reason"], found["csm.frames"]) == ("end", 25)
    assert found["csm.first_frame_s"] == pytest.approx(0.4)
    assert seconds(span) == pytest.approx(2.0, abs=1e-5)
    lengths = {"queue": 0.1, "prefill": 0.2, "first_frame": 0.1}
    for name, length in lengths.items():
        (part,) = exported.spans(f"csm.{name}")
        assert part.parent_span_id == span.span_id
        assert seconds(part) == pytest.approx(length, abs=1e-5)


def test_an_utterance_that_never_came_to_its_turn_has_no_later_parts(exported):
    telemetry.begin("csm-engine")
    ended = {"queued": 0.5, "prefill": 0.0, "first_audio": 0.0, "total": 0.5}
    telemetry.utterance(reason="cancelled", frames=0, **ended)
    telemetry.flush()
    assert len(exported.spans("csm.queue")) == 1
    assert not exported.spans("csm.prefill")


def test_a_turn_is_a_span_from_the_last_word_to_the_first_sound(exported):
    telemetry.begin("csm-agent")
    silent_at = time.time() - 5
    heard = {
        "stopped_speaking_at": silent_at, "end_of_turn_delay": 0.6, "transcription_delay": 0.5,
    }  # fmt: skip
    said = {"llm_node_ttft": 0.4, "tts_node_ttfb": 0.1, "e2e_latency": 1.2}
    telemetry.turn(heard, said, interrupted=True)
    telemetry.flush()
    (span,) = exported.spans("csm.turn", "csm-agent")
    assert span.start_time_unix_nano == pytest.approx(silent_at * 1e9, abs=1e6)
    assert seconds(span) == pytest.approx(1.2, abs=1e-5)
    assert attributes(span)["csm.interrupted"] is True
    for part, length in {"endpointing": 0.6, "stt": 0.5, "llm": 0.4, "first_audio": 0.1}.items():
        (child,) = exported.spans(f"csm.{part}")
        assert seconds(child) == pytest.approx(length, abs=1e-5)
        assert child.start_time_unix_nano >= span.start_time_unix_nano
        assert child.end_time_unix_nano <= span.end_time_unix_nano
        assert attributes(span)[f"csm.{part}_s"] == pytest.approx(length)


def test_a_turn_whose_figures_are_missing_is_told_with_what_there_is(exported):
    telemetry.begin("csm-agent")
    telemetry.turn({}, {"tts_node_ttfb": 0.25}, interrupted=False)
    telemetry.flush()
    (span,) = exported.spans("csm.turn")
    assert seconds(span) == pytest.approx(0.25, abs=1e-5)
    assert not exported.spans("csm.llm")


def test_what_livekit_records_of_a_call_leaves_without_words_and_names(exported):
    provider = telemetry.begin("csm-agent")
    livekit_telemetry.set_tracer_provider(provider, allow_pii=False)
    tracer = livekit_telemetry.tracer
    with tracer.start_as_current_span("llm_request") as span:
        span.set_attribute("gen_ai.input.messages", CANARY)
        span.set_attribute("lk.response.text", CANARY)
        span.set_attribute("any.new.attribute", CANARY)
        span.set_attribute("lk.function_tools", [CANARY])
        span.set_attribute("gen_ai.request.model", "some-model")
        span.set_attribute("gen_ai.usage.input_tokens", 12)
        span.add_event("message", {"content": CANARY})
    with pytest.raises(ValueError, match="tangerine"), tracer.start_as_current_span("failing"):
        raise ValueError(CANARY)
    telemetry.flush()
    (span,) = exported.spans("llm_request")
    assert attributes(span) == {
        "gen_ai.request.model": "some-model",
        "gen_ai.usage.input_tokens": 12,
    }
    (failed,) = exported.spans("failing")
    assert failed.status.code == failed.status.STATUS_CODE_ERROR
    assert b"tangerine" not in exported.raw


def test_the_name_of_the_service_may_be_ones_own(exported, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-voices")
    telemetry.begin("csm-engine")
    telemetry.utterance(reason="end", frames=1, **FIGURES)
    telemetry.flush()
    assert exported.spans("csm.utterance", "my-voices")


def test_a_collector_that_is_away_costs_an_utterance_nothing(exported, monkeypatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    telemetry.begin("csm-engine")
    for _ in range(3000):  # more than the exporter's queue holds
        telemetry.utterance(reason="end", frames=1, **FIGURES)
    assert not exported.raw


def test_a_workers_figures_need_a_folder_for_those_of_its_calls():
    with pytest.raises(ConfigError, match="PROMETHEUS_MULTIPROC_DIR"):
        AgentConfig.from_env({"AGENT_METRICS_PORT": "9464"})
    env = {"AGENT_METRICS_PORT": "9464", "PROMETHEUS_MULTIPROC_DIR": "somewhere"}
    assert AgentConfig.from_env(env).metrics_port == 9464
    assert AgentConfig.from_env({}).metrics_port == 0
