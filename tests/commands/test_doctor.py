"""`doctor` names each possible fault and its remedy, and exits with 1."""

from __future__ import annotations

import json
import os
import socket

import pytest

from csm_tts_plugin.__main__ import main
from csm_tts_plugin.commands import doctor
from csm_tts_plugin.config import EngineConfig
from scripts.livekit_server import LiveKitServer
from tests.server.conftest import nothing_left, serving
from tests.support.pages import Handler
from tests.support.pages import answering as serving_pages
from tests.support.stand_in_engine import StandInEngine

__all__ = ["nothing_left"]

NOWHERE = "127.0.0.1:9"
SECRET = "a-secret-of-more-than-32-characters-x"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("CSM_", "LIVEKIT_", "AGENT_", "OPENAI_", "OTEL_", "HF_", "VOICE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CSM_MODEL", "tiny")
    monkeypatch.setenv("AGENT_HEALTH", "127.0.0.1:0")
    monkeypatch.chdir(tmp_path)  # away from a developer's .env


@pytest.fixture
def examined(monkeypatch, capsys):
    """Runs `doctor` with these settings; the exit code and what it printed."""

    def examine(**settings: str) -> tuple[int, str]:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        code = main(["doctor", "--port", "0"])
        return code, capsys.readouterr().out

    return examine


def answering(pages: dict[str, tuple[int, object]]):
    """A server that answers each path with its status and JSON, and others with 404."""

    class Pages(Handler):
        def do_GET(self):
            status, value = pages.get(self.path, (404, {}))
            self.answer(status, value if isinstance(value, bytes) else json.dumps(value).encode())

        do_POST = do_GET

    return serving_pages(Pages)


def bad(examination: tuple[int, str]) -> list[str]:
    """The faults it found; fails unless the exit code is 1 with faults and 0 without."""
    code, printed = examination
    faults = [line for line in printed.splitlines() if line.startswith("BAD")]
    assert code == (1 if faults else 0)
    return faults


def test_where_nothing_is_wrong_it_says_so(examined):
    code, printed = examined()
    assert (code, printed.splitlines()[-1]) == (0, "nothing must be fixed")


# LiveKit


@pytest.fixture(scope="module")
def livekit(tmp_path_factory):
    with LiveKitServer(tmp_path_factory.mktemp("livekit") / "server.log") as server:
        yield server


def test_a_livekit_server_that_takes_the_key_is_fine(examined, livekit):
    found = examined(**livekit.keys)
    assert not [fault for fault in bad(found) if "LiveKit" in fault]
    assert f"ok   LiveKit at {livekit.url} accepts the key" in found[1]
    assert livekit.secret not in found[1]


@pytest.mark.parametrize("wrong", ["LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"])
def test_a_key_that_livekit_refuses_is_told_and_not_shown(examined, livekit, wrong):
    found = examined(**{**livekit.keys, wrong: SECRET})
    (fault,) = [fault for fault in bad(found) if livekit.url in fault]
    assert "refuses the key; check LIVEKIT_API_KEY and LIVEKIT_API_SECRET" in fault
    assert SECRET not in found[1]


def test_another_server_is_not_taken_for_livekit(examined):
    with answering({}) as url:
        found = examined(LIVEKIT_URL=url, LIVEKIT_API_KEY="k", LIVEKIT_API_SECRET=SECRET)
    assert [fault for fault in bad(found) if "not a LiveKit server (answers 404)" in fault]


def test_a_livekit_that_is_away_and_keys_that_are_missing(examined):
    faults = " ".join(bad(examined(LIVEKIT_URL=f"ws://{NOWHERE}")))
    assert f"no LiveKit at ws://{NOWHERE}; start it, or correct LIVEKIT_URL" in faults
    assert "LIVEKIT_API_KEY is not set" in faults
    assert "LIVEKIT_API_SECRET is not set" in faults


# engines


async def test_an_engine_that_is_ready_and_takes_the_key_is_fine(examined, in_thread):
    async with serving(key="secret") as server:
        found = await in_thread(examined, CSM_ENGINE_URL=server.url, CSM_ENGINE_KEY="secret")
        assert not bad(found)
        assert "an engine is ready" in found[1]
        found = await in_thread(examined, CSM_ENGINE_URL=server.url, CSM_ENGINE_KEY="another")
        (fault,) = bad(found)
        assert "refuses the key; set CSM_ENGINE_KEY" in fault
        assert "another" not in found[1]


async def test_an_engine_that_is_still_loading_says_what_it_does(examined, in_thread):
    async with serving(StandInEngine("not-ready")) as server:
        (fault,) = bad(await in_thread(examined, CSM_ENGINE_URL=server.url))
        assert "is not ready: loading" in fault


async def test_a_voice_that_the_engine_does_not_have(examined, in_thread):
    async with serving() as server:
        found = await in_thread(examined, CSM_ENGINE_URL=server.url, VOICE_SOURCE="anna")
        (fault,) = bad(found)
        assert "has no voice anna; add it, or correct VOICE_SOURCE" in fault


def test_no_engine_and_something_else_in_its_place(examined):
    with answering({"/readyz": (200, {"hello": "world"})}) as url:
        faults = bad(examined(CSM_ENGINE_URL=f"{url},http://{NOWHERE}"))
    assert f"the server at {url} is not an engine" in faults[0]
    assert f"no engine at http://{NOWHERE}; start it" in faults[1]


@pytest.fixture
def in_thread():
    """The command blocks, and the server that it queries runs in this loop."""
    import asyncio

    async def run(examine, **settings):
        return await asyncio.to_thread(lambda: examine(**settings))

    return run


# models


CONFIG = {"model_type": "csm"}


def checkpoint(folder, **files: object):
    whole = {"config.json": CONFIG, "tokenizer.json": {}, "model.safetensors": {}} | files
    for name, value in whole.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            (folder / name).write_text(text)
    return str(folder)


def test_a_whole_model_folder_is_fine(examined, tmp_path):
    assert not bad(examined(CSM_MODEL=checkpoint(tmp_path)))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": None}, "lacks config.json"),
        ({"tokenizer.json": None}, "lacks tokenizer.json"),
        ({"model.safetensors": None}, "lacks model.safetensors"),
        ({"config.json": "{"}, "config.json in"),
        ({"config.json": {"model_type": "llama"}}, "of type llama, not csm"),
        (
            {"model.safetensors.index.json": {"weight_map": {"a": "part-1", "b": "part-2"}}},
            "lacks part-1, part-2",
        ),
        ({"model.safetensors.index.json": "[]"}, "lacks model.safetensors.index.json"),
    ],
)
def test_what_is_wrong_with_a_model_folder_is_named(examined, tmp_path, files, words):
    (fault,) = bad(examined(CSM_MODEL=checkpoint(tmp_path, **files)))
    assert words in fault


def test_a_folder_that_is_not_there(examined):
    (fault,) = bad(examined(CSM_MODEL="./nowhere"))
    assert "model folder nowhere does not exist; correct CSM_MODEL" in fault


MODEL = "/api/models/some/model"


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ({}, "is not available to you at "),
        ({MODEL: (401, {})}, "accept its terms there and set HF_TOKEN"),
        ({MODEL: (200, {"gated": "manual"})}, "is gated; accept its terms on the hub"),
    ],
)
def test_a_hub_that_does_not_give_the_model(examined, tmp_path, pages, words):
    with answering(pages) as url:
        found = examined(CSM_MODEL="some/model", HF_ENDPOINT=url, HF_HOME=str(tmp_path))
    (fault,) = bad(found)
    assert words in fault


def test_a_hub_that_gives_it_and_one_that_is_away(examined, tmp_path):
    home = str(tmp_path)
    with answering({MODEL: (200, {"gated": False})}) as url:
        assert not bad(examined(CSM_MODEL="some/model", HF_ENDPOINT=url, HF_HOME=home))
    (fault,) = bad(examined(CSM_MODEL="some/model", HF_ENDPOINT=f"http://{NOWHERE}"))
    assert "cannot be reached; set CSM_MODEL to a folder or to tiny" in fault
    weights = tmp_path / "hub/models--some--model/snapshots/1/model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    code, printed = examined(CSM_MODEL="some/model")
    assert code == 0
    assert "downloaded before" in printed


# devices


def test_a_device_that_is_not_there(examined):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    faults = bad(examined(CSM_DEVICE="cuda"))
    assert "CSM_DEVICE=cuda, but torch finds no CUDA device" in faults[0]


def test_a_card_that_is_too_small_is_told_with_the_slots(monkeypatch):
    (finding,) = doctor._room(EngineConfig(slots=64), 8.0)
    assert "CSM-1B with 64 slots needs about 10 GiB" in finding.text
    assert not list(doctor._room(EngineConfig(slots=64), 80.0))


def test_graphs_that_cannot_be_captured_are_told_with_the_cause(monkeypatch):
    def fails(device):
        raise RuntimeError("operation not permitted\nmore")

    monkeypatch.setattr(doctor, "_captured", fails)
    finding = doctor._graphs(EngineConfig())
    assert "capturing fails (operation not permitted)" in finding.text
    monkeypatch.setattr(doctor, "_captured", lambda device: False)
    assert "wrong numbers" in doctor._graphs(EngineConfig()).text
    assert doctor._graphs(EngineConfig(cuda_graphs=False)).mark is doctor.Mark.NOTE


def test_what_own_kernels_need_is_told(monkeypatch):
    assert "turned off by CSM_KERNELS=0" in doctor._kernels(EngineConfig(kernels=False)).text
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert "install gcc" in doctor._kernels(EngineConfig()).text
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor._kernels(EngineConfig()).mark is doctor.Mark.OK
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed" in doctor._kernels(EngineConfig()).text


def test_what_the_kernels_of_a_cpu_need_is_told(monkeypatch):
    assert "turned off by CSM_KERNELS=0" in doctor._c_kernels(EngineConfig(kernels=False)).text
    assert doctor._c_kernels(EngineConfig()).mark is doctor.Mark.OK
    assert "in bfloat16" in doctor._c_kernels(EngineConfig(dtype="bfloat16")).text
    monkeypatch.setenv("PATH", "")
    found = doctor._c_kernels(EngineConfig())
    assert (found.mark, "no C compiler" in found.text) == (doctor.Mark.NOTE, True)


# voices, models of the worker, ports


def test_a_voice_source_that_is_not_stored(examined, tmp_path):
    assert "CSM_VOICES_DIR is not set" in bad(examined(VOICE_SOURCE="anna"))[0]
    (fault,) = bad(examined(CSM_VOICES_DIR=str(tmp_path)))
    assert f"no such voice in {tmp_path}" in fault
    (fault,) = bad(examined(CSM_VOICES_DIR=str(tmp_path / "none")))
    assert "is not there; make it, or correct CSM_VOICES_DIR" in fault


@pytest.fixture
def worker(examined, livekit):
    """`doctor` with a working LiveKit server."""
    return lambda **settings: examined(**livekit.keys, **settings)


def test_an_endpoint_is_asked_for_its_models(worker):
    models = {"data": [{"id": "ear"}, {"id": "mind"}]}
    names = {"AGENT_STT": "openai:ear", "AGENT_LLM": "openai:mind"}
    with answering({"/v1/models": (200, models)}) as url:
        assert not bad(worker(**names, OPENAI_BASE_URL=f"{url}/v1"))
        (fault,) = bad(worker(AGENT_LLM="openai:other"))
        assert "has no model other" in fault
    with answering({"/v1/models": (401, {})}) as url:
        key = "sk-very-secret"
        found = worker(**names, OPENAI_BASE_URL=f"{url}/v1", OPENAI_API_KEY=key)
        assert all("refuses the key; correct OPENAI_API_KEY" in fault for fault in bad(found))
        assert key not in found[1]
    faults = bad(worker(OPENAI_BASE_URL=f"http://{NOWHERE}/v1"))
    assert len(faults) == 2
    assert "start it, or correct OPENAI_BASE_URL" in faults[0]


def test_a_provider_that_nobody_knows(worker):
    (fault,) = bad(worker(AGENT_LLM="parrot", AGENT_STT="deepgram/nova-3"))
    assert "AGENT_LLM=parrot is unknown" in fault


def test_inference_names_are_noted_where_the_server_is_ones_own(worker):
    code, printed = worker(AGENT_LLM="openai/gpt-4.1-mini", AGENT_STT="deepgram/nova-3")
    assert code == 0
    assert printed.count("needs the key of a LiveKit Cloud project") == 2


def test_offline_models_that_were_never_set_up(worker, monkeypatch, tmp_path):
    monkeypatch.setattr("csm_tts_plugin.offline.models._PLACES", (tmp_path,))
    faults = bad(worker(AGENT_STT="offline", AGENT_LLM="offline"))
    assert len(faults) == 2
    assert all("run `make setup`" in fault for fault in faults)


def test_a_port_that_is_taken_is_noted_with_its_setting(worker):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        _, printed = worker(AGENT_HEALTH=address, AGENT_STT="a/b", AGENT_LLM="a/b")
    assert "is taken; if not by the worker's health page, choose with AGENT_HEALTH" in printed


def test_settings_that_cannot_be_are_told_once(examined):
    faults = bad(examined(AGENT_HEALTH="here"))
    assert len(faults) == 1
    assert "AGENT_HEALTH must be host:port" in faults[0]


def test_spans_without_a_collector_are_noted(examined):
    code, printed = examined(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{NOWHERE}")
    assert code == 0
    assert f"no collector at http://{NOWHERE}" in printed
    (fault,) = bad(examined(OTEL_EXPORTER_OTLP_PROTOCOL="grpc"))
    assert "http/protobuf" in fault
