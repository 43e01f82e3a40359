"""The worker's reported load, and the settings with which it does not start."""

from __future__ import annotations

import json

import pytest

from csm_tts_plugin import telemetry, worker
from csm_tts_plugin.config import AgentConfig
from csm_tts_plugin.errors import ConfigError, CsmError
from csm_tts_plugin.offline.names import check_names
from csm_tts_plugin.wire.load import QUIET_ROWS, rows_for
from csm_tts_plugin.worker import Services
from tests.support.pages import Handler, answering


def engine_saying(status: dict, code: int = 200):
    class Ready(Handler):
        def do_GET(self):
            self.answer(code, json.dumps(status).encode())

    return answering(Ready)


STATUS = {"ready": True, "slots": 4, "speaking": 1, "queued": 0, "conversations": 1}
STATUS |= {"model": "tiny", "device": "cpu"}


QUIET = STATUS | {"speaking": 0, "conversations": 6}


@pytest.mark.parametrize(
    ("status", "change", "load"),
    [(STATUS, {"speaking": 4}, 0.125), (QUIET, {"conversations": 9}, 0.75)],
    ids=["by who speaks", "quiet calls by the room that they take"],
)
def test_the_load_is_that_of_the_least_busy_engine(monkeypatch, status, change, load):
    with engine_saying(status) as idle, engine_saying(status | change) as busy:
        monkeypatch.setenv("CSM_ENGINE_URL", f"{busy},{idle}")
        assert worker.engine_load() == load
        monkeypatch.setenv("CSM_ENGINE_URL", busy)
        assert worker.engine_load() == 1.0


def test_calls_that_have_not_reached_an_engine_yet_count_too(monkeypatch):
    with engine_saying(STATUS | {"speaking": 0, "conversations": 0}) as url:
        monkeypatch.setenv("CSM_ENGINE_URL", url)
        assert worker.engine_load(0) == 0.0
        assert worker.engine_load(6) == 0.75
        monkeypatch.setenv("CSM_ENGINE_URL", f"{url},{url}")
        assert worker.engine_load(6) == 0.375
    assert worker.engine_load(1) == 1.0


async def test_a_burst_of_calls_is_accepted_as_far_as_the_engine_has_room(monkeypatch):
    """LiveKit asks for each call whether the worker is available, and a refused call stays silent.
    `_reserved_slots` are calls accepted a moment ago; 5 of 8 rows are below its limit of 0.7."""
    with engine_saying(STATUS | {"speaking": 0, "conversations": 0}) as url:
        monkeypatch.setenv("CSM_ENGINE_URL", url)
        monkeypatch.setattr(worker.Worker, "active_jobs", [])
        agent = worker.Worker(AgentConfig())
        agent._devmode = agent._draining = agent._simulation = False  # as `run` sets them
        await agent._refresh_worker_load()
        for accepted, available in ((0, True), (2, True), (5, True), (6, False)):
            agent._reserved_slots = accepted
            assert agent._is_available() is available


def test_engines_behind_one_address_count_as_several_addresses_do(monkeypatch):
    behind = [STATUS | {"conversations": 12}, STATUS | {"speaking": 0, "conversations": 4}]
    with engine_saying(STATUS | {"engines": behind}) as url:
        monkeypatch.setenv("CSM_ENGINE_URL", url)
        assert worker.engine_load() == 0.5
        assert worker.engine_load(12) == 0.75
    with engine_saying(STATUS | {"engines": behind, "ready": False}) as url:
        monkeypatch.setenv("CSM_ENGINE_URL", url)
        assert worker.engine_load() == 1.0


def test_the_measure_of_fullness_knows_as_many_rows_as_the_engine_has():
    from csm_tts_plugin.engine import core

    assert core._PARKED == QUIET_ROWS
    assert [rows_for(slots) for slots in (1, 8, 64)] == [2, 16, 96]


def test_an_engine_that_is_not_ready_or_gone_takes_no_calls(monkeypatch):
    with engine_saying({"ready": False, "slots": 4}, 503) as loading:
        monkeypatch.setenv("CSM_ENGINE_URL", loading)
        assert worker.engine_load() == 1.0
    assert worker.engine_load() == 1.0


def test_missing_keys_are_named_and_others_are_not():
    config = AgentConfig(livekit_url="ws://here", livekit_api_key="k")
    with pytest.raises(ConfigError, match=r"^Set LIVEKIT_API_SECRET in"):
        worker.check_keys(config)


@pytest.mark.parametrize("name", ["offline", "openai/gpt-4.1-mini", "deepgram/nova-3"])
def test_known_providers_pass(name):
    check_names(AgentConfig(stt=name, llm=name), {})


async def test_a_model_that_cannot_be_loaded_ends_the_start_and_leaves_nothing_behind(tmp_path):
    env = {"CSM_MODEL": str(tmp_path), "CSM_DEVICE": "cpu", "AGENT_STT": "a/b", "AGENT_LLM": "a/b"}
    services = Services(env)
    with pytest.raises(CsmError):
        await services.start()
    assert "CSM_ENGINE_URL" not in env
    await services.stop()


def test_figures_of_a_turn_are_rounded_and_may_be_missing():
    figures = telemetry.turn_figures(
        {"end_of_turn_delay": 0.51234, "transcription_delay": 0.4}, {"llm_node_ttft": 0.2}
    )
    assert figures["endpointing"] == 0.512
    assert figures["tts_first_audio"] is None
