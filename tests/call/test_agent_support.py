"""How full the agent says that it is, and what it does not start with."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from csm_tts_plugin import agent_support
from csm_tts_plugin.agent_support import Services
from csm_tts_plugin.config import AgentConfig
from csm_tts_plugin.errors import ConfigError, CsmError
from csm_tts_plugin.load import QUIET_ROWS, rows_for


@contextmanager
def engine_saying(status: dict, code: int = 200):
    class Ready(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(status).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


STATUS = {"ready": True, "slots": 4, "speaking": 1, "queued": 0, "conversations": 1}
STATUS |= {"model": "tiny", "device": "cpu"}


def test_the_load_is_that_of_the_least_busy_engine(monkeypatch):
    with engine_saying(STATUS) as idle, engine_saying(STATUS | {"speaking": 4}) as busy:
        monkeypatch.setenv("CSM_ENGINE_URL", f"{busy},{idle}")
        assert agent_support.engine_load() == 0.125
        monkeypatch.setenv("CSM_ENGINE_URL", busy)
        assert agent_support.engine_load() == 1.0


def test_quiet_calls_count_by_the_room_that_they_take(monkeypatch):
    quiet = STATUS | {"speaking": 0, "conversations": 6}
    with engine_saying(quiet) as one, engine_saying(quiet | {"conversations": 9}) as other:
        monkeypatch.setenv("CSM_ENGINE_URL", f"{other},{one}")
        assert agent_support.engine_load() == 0.75
        monkeypatch.setenv("CSM_ENGINE_URL", other)
        assert agent_support.engine_load() == 1.0


def test_calls_that_have_not_reached_an_engine_yet_count_too(monkeypatch):
    with engine_saying(STATUS | {"speaking": 0, "conversations": 0}) as url:
        monkeypatch.setenv("CSM_ENGINE_URL", url)
        assert agent_support.engine_load(0) == 0.0
        assert agent_support.engine_load(6) == 0.75
        monkeypatch.setenv("CSM_ENGINE_URL", f"{url},{url}")
        assert agent_support.engine_load(6) == 0.375
    assert agent_support.engine_load(1) == 1.0


def test_the_measure_of_fullness_knows_as_many_rows_as_the_engine_has():
    from csm_tts_plugin.engine import core

    assert core._PARKED == QUIET_ROWS
    assert [rows_for(slots) for slots in (1, 8, 64)] == [2, 16, 96]


def test_an_engine_that_is_not_ready_or_gone_takes_no_calls(monkeypatch):
    with engine_saying({"ready": False, "slots": 4}, 503) as loading:
        monkeypatch.setenv("CSM_ENGINE_URL", loading)
        assert agent_support.engine_load() == 1.0
    assert agent_support.engine_load() == 1.0


def test_the_room_is_told_what_speaks(monkeypatch):
    with engine_saying(STATUS) as url:
        monkeypatch.setenv("CSM_ENGINE_URL", url)
        assert agent_support.engine_facts() == {"csm.model": "tiny", "csm.device": "cpu"}
    assert agent_support.engine_facts() == {}


def test_missing_keys_are_named_and_others_are_not():
    config = AgentConfig(livekit_url="ws://here", livekit_api_key="k")
    with pytest.raises(ConfigError, match=r"^Set LIVEKIT_API_SECRET in"):
        agent_support.check_keys(config)


@pytest.mark.parametrize("name", ["offline", "openai/gpt-4.1-mini", "deepgram/nova-3"])
def test_known_providers_pass(name):
    agent_support.check_names(AgentConfig(stt=name, llm=name), {})


async def test_a_model_that_cannot_be_loaded_ends_the_start_and_leaves_nothing_behind(tmp_path):
    env = {"CSM_MODEL": str(tmp_path), "CSM_DEVICE": "cpu", "AGENT_STT": "a/b", "AGENT_LLM": "a/b"}
    services = Services(env)
    with pytest.raises(CsmError):
        await services.start()
    assert "CSM_ENGINE_URL" not in env
    await services.stop()


def test_figures_of_a_turn_are_rounded_and_may_be_missing():
    figures = agent_support.turn_figures(
        {"end_of_turn_delay": 0.51234, "transcription_delay": 0.4}, {"llm_node_ttft": 0.2}
    )
    assert figures["endpointing"] == 0.512
    assert figures["tts_first_audio"] is None
