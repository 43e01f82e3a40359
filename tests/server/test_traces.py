"""The engine's spans join the caller's trace, on every route."""

from __future__ import annotations

import asyncio
import os
import signal

import aiohttp
import pytest
from livekit.agents import telemetry as livekit_telemetry
from opentelemetry.trace import NoOpTracerProvider

from csm_tts_plugin import TTS, telemetry
from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.wire.protocol import encode
from tests.server.conftest import listen
from tests.server.raw import answer, opened, raw
from tests.server.test_openai_speech import LINE, asked
from tests.server.test_process import line_with, process
from tests.support.collector import collecting
from tests.support.waiting import until

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exported(monkeypatch):
    with collecting() as collector:
        for name in ("TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL", "HEADERS"):
            monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector
        telemetry.end()
        livekit_telemetry.set_tracer_provider(NoOpTracerProvider())


@pytest.fixture
def tracer(exported):
    return telemetry.begin("csm-agent").get_tracer("tests")


async def spans(exported, name, count, service=None):
    """The spans of this name, once at least `count` have arrived."""
    telemetry.flush()
    await until(lambda: len(exported.spans(name, service)) >= count)
    return exported.spans(name, service)


async def test_what_is_said_in_a_span_is_a_child_of_it(server, exported, tracer):
    async with EngineClient(server.url) as client:
        conversation = await client.conversation()
        with tracer.start_as_current_span("reply"):
            await listen(await conversation.say(LINE))
    (reply,) = await spans(exported, "reply", 1)
    (utterance,) = await spans(exported, "csm.utterance", 1)
    assert (utterance.trace_id, utterance.parent_span_id) == (reply.trace_id, reply.span_id)


async def test_a_conversation_that_was_opened_in_a_span_hands_it_to_all_it_says(
    server, exported, tracer
):
    async with EngineClient(server.url) as client:
        with tracer.start_as_current_span("call"):
            conversation = await client.conversation()
        for _ in range(2):
            await listen(await conversation.say(LINE))
    (call,) = await spans(exported, "call", 1)
    for utterance in await spans(exported, "csm.utterance", 2):
        assert (utterance.trace_id, utterance.parent_span_id) == (call.trace_id, call.span_id)


async def test_livekits_session_and_an_engine_elsewhere_are_one_trace(exported):
    """Two processes; LiveKit's own span of the request is the parent."""
    livekit_telemetry.set_tracer_provider(telemetry.begin("csm-agent"))
    with process("--model", "ready", "--port", "0", env=dict(os.environ)) as engine:
        url = line_with(engine, "listening").split()[-1]
        line_with(engine, "ready:")
        voice = TTS(engine_url=url)
        stream = voice.stream()
        stream.push_text(LINE)
        stream.end_input()
        async for _ in stream:
            pass
        await stream.aclose()
        await voice.aclose()
        engine.send_signal(signal.SIGTERM)
        await asyncio.to_thread(engine.wait, 20)
    (utterance,) = await spans(exported, "csm.utterance", 1, "csm-engine")
    requests = await spans(exported, "tts_request_run", 1, "csm-agent")
    assert utterance.trace_id in {span.trace_id for span in requests}
    assert utterance.parent_span_id in {span.span_id for span in requests}


async def test_the_header_of_an_http_request_is_the_parent(server, exported, tracer):
    for header, expected in ((GIVEN, bytes.fromhex(GIVEN.split("-")[1])), ("nonsense", None)):
        async with (
            aiohttp.ClientSession(headers={"traceparent": header}) as session,
            session.post(f"{server.url}/v1/audio/speech", json=asked()) as spoken,
        ):
            assert spoken.status == 200
            await spoken.read()
        await server.settle()
        found = (await spans(exported, "csm.utterance", 1))[-1]
        assert (found.trace_id == expected) is (expected is not None)


@pytest.mark.parametrize(
    "bad",
    ["00-abc", "00-" + "0" * 32 + "-b7ad6b7169203331-01", GIVEN.upper(), GIVEN + "-x", "my words"],
)
async def test_what_is_no_trace_is_refused_on_the_socket(server, bad):
    async with raw(server) as socket:
        await opened(socket)
        await socket.send_json({"type": "say", "id": "1", "text": LINE, "traceparent": bad})
        told = await answer(socket)
        assert (told["code"], told["id"]) == ("bad_request", "1")
        assert bad not in told["message"]


async def test_where_nobody_traces_nothing_is_sent(server, monkeypatch):
    sent = []

    def noted(message):
        sent.append(encode(message))
        return sent[-1]

    monkeypatch.setattr("csm_tts_plugin.client.link.encode", noted)
    async with EngineClient(server.url) as client:
        conversation = await client.conversation()
        await listen(await conversation.say(LINE))
    assert len(sent) == 2
    assert "traceparent" not in "".join(sent)
