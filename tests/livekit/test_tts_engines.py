"""Engines that a TTS starts: shared for equal settings, stopped by the last, dropped on failure."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace

import pytest
from livekit.agents import APIError

from csm_tts_plugin.client import engines
from csm_tts_plugin.client.engines import LocalEngine, RemoteEngine, engine_for
from csm_tts_plugin.config import EngineConfig
from csm_tts_plugin.errors import ModelLoadError, UnavailableError
from csm_tts_plugin.tts import TTS
from tests.livekit.speech import PATIENT, RecordingEngine, speak
from tests.server.conftest import serving
from tests.support.waiting import until

TINY = EngineConfig(model="tiny")
TEXT = "A sentence by an engine of its own."


class FakeProcess:
    """An `EngineProcess` whose engine is the test's server."""

    url = ""
    made: list[FakeProcess]
    failure: Exception | None = None

    def __init__(self, config, server) -> None:
        self.config, self.server = config, server
        self.key = "a key"
        self.running = False
        self.loaded = asyncio.Event()
        FakeProcess.made.append(self)

    def start(self) -> None:
        self.running = True

    async def ready(self, timeout: float | None = None) -> str:
        await self.loaded.wait()
        if self.failure is not None:
            raise self.failure
        return FakeProcess.url

    async def astop(self, grace: float = 5.0) -> None:
        self.running = False


@pytest.fixture
async def processes(monkeypatch):
    monkeypatch.delenv("CSM_ENGINE_URL", raising=False)
    monkeypatch.setattr(engines, "EngineProcess", FakeProcess)
    monkeypatch.setattr(FakeProcess, "made", [], raising=False)
    async with serving(RecordingEngine(), key="a key") as server:
        monkeypatch.setattr(FakeProcess, "url", server.url)
        yield FakeProcess.made
        await server.settle()
    assert engines._running == {}


async def test_all_that_want_the_same_engine_share_one_and_the_last_stops_it(processes):
    first, second, other = TTS(model="tiny"), TTS(model="tiny"), TTS(model="another")
    for speaker in (first, second, other):
        speaker.prewarm()
    assert [process.config.model for process in processes] == ["tiny", "another"]
    for process in processes:
        process.loaded.set()
    for speaker in (first, second):
        assert (await speak(speaker, TEXT)).sounds_like(TEXT)
    await other.aclose()
    await first.aclose()
    assert [process.running for process in processes] == [True, False]
    assert (await speak(second, TEXT)).sounds_like(TEXT)
    await second.aclose()
    assert not processes[0].running


async def test_nothing_is_started_before_it_is_needed(processes):
    speaker = TTS(model="tiny")
    await speaker.aclose()
    assert processes == []


async def test_a_reply_waits_for_an_engine_that_loads(processes):
    async with TTS(model="tiny") as speaker, speaker.stream(conn_options=PATIENT) as stream:
        stream.push_text(TEXT)
        stream.end_input()
        await until(lambda: processes)
        assert not stream._task.done()
        processes[0].loaded.set()
        assert (await anext(stream)).frame.duration > 0


async def test_an_engine_that_could_not_start_is_not_kept(processes, monkeypatch):
    failure = ModelLoadError("No such model; check its name.")
    monkeypatch.setattr(FakeProcess, "failure", failure)
    async with TTS(model="tiny") as speaker:
        speaker._engine.start()
        processes[0].loaded.set()
        with pytest.raises(APIError, match="No such model") as caught:
            await speak(speaker, TEXT)
        assert not caught.value.retryable
        assert not processes[0].running
        monkeypatch.setattr(FakeProcess, "failure", None)
        speaker._engine.start()
        processes[1].loaded.set()
        assert (await speak(speaker, TEXT)).sounds_like(TEXT)


def test_a_url_goes_before_an_engine_of_ones_own(monkeypatch):
    monkeypatch.delenv("CSM_ENGINE_URL", raising=False)
    assert isinstance(engine_for(TINY, None, None), LocalEngine)
    assert isinstance(engine_for(TINY, "http://127.0.0.1:8090", None), RemoteEngine)
    assert isinstance(engine_for(TINY, ["127.0.0.1:1", "127.0.0.1:2"], "key"), RemoteEngine)
    monkeypatch.setenv("CSM_ENGINE_URL", "http://127.0.0.1:8090")
    assert isinstance(engine_for(TINY, None, None), RemoteEngine)


def test_other_settings_are_another_engine(monkeypatch, tmp_path):
    monkeypatch.delenv("CSM_ENGINE_URL", raising=False)
    keys = [
        engine_for(TINY, None, None)._key,
        engine_for(replace(TINY, device="cpu"), None, None)._key,
    ]
    monkeypatch.setenv("CSM_VOICES_DIR", str(tmp_path))
    keys.append(engine_for(TINY, None, None)._key)
    assert len(set(keys)) == 3


def test_livekit_finds_the_plugin_without_loading_torch():
    program = (
        "import sys; from livekit.plugins import csm; from livekit.agents import Plugin;"
        "plugin = Plugin.registered_plugins[-1];"
        "plugin.download_files();"
        "import csm_tts_plugin;"
        "assert csm.TTS is csm_tts_plugin.TTS;"
        "print(plugin.package, plugin.version == csm_tts_plugin.__version__, plugin.logger.name,"
        " 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert told.stdout.split() == [
        "livekit.plugins.csm",
        "True",
        "csm_tts_plugin",
        "False",
        "False",
    ], told.stderr


async def test_a_tts_says_which_model_its_engine_has_and_where(server):
    async with TTS(engine_url=server.url) as speaker:
        assert await speaker.engine_facts() == {
            "csm.model": "stand-in",
            "csm.device": "cpu",
            "csm.clones": "true",
        }
    server.engine.told = {"reference_seconds": 10.0, "follows": "pitch and size"}
    async with TTS(engine_url=server.url) as speaker:
        assert await speaker.engine_facts() == {
            "csm.model": "stand-in",
            "csm.device": "cpu",
            "csm.clones": "false",
            "csm.follows": "pitch and size",
        }
    async with TTS(engine_url="http://127.0.0.1:9") as nowhere:
        with pytest.raises(UnavailableError):
            await nowhere.engine_facts()
