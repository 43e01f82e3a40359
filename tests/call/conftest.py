"""Fixtures: one call, one LiveKit server and one fast engine, shared by the tests."""

from __future__ import annotations

import sys

import pytest

from csm_tts_plugin.config import EngineConfig, ServerConfig
from csm_tts_plugin.server.supervisor import EngineProcess
from scripts.livekit_server import LiveKitServer
from tests.call.running import Run, run


@pytest.fixture(scope="session")
def call(tmp_path_factory) -> Run:
    """One whole call, with the small model, for all tests that look at its result."""
    return run(["-m", "scripts.call"], {}, tmp_path_factory.mktemp("call"))


@pytest.fixture(scope="session")
def livekit_server(tmp_path_factory):
    with LiveKitServer(tmp_path_factory.mktemp("livekit") / "server.log") as server:
        yield server


@pytest.fixture(scope="session")
def quick_engine():
    """The environment of an engine without a model, for calls that test something else."""
    command = (sys.executable, "-m", "tests.support.serve_stand_in", "serve")
    config = EngineConfig(model="ready", device="cpu")
    with EngineProcess(config, ServerConfig(port=0), command=command) as engine:
        yield {"CSM_ENGINE_URL": engine.wait_ready(60), "CSM_ENGINE_KEY": engine.key}
