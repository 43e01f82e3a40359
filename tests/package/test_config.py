"""Settings are read from the environment and checked; secret ones are never shown."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from csm_tts_plugin.config import (
    DEFAULT_MODEL,
    FRAME_SAMPLES,
    FRAME_SECONDS,
    SAMPLE_RATE,
    AgentConfig,
    EngineConfig,
    Limits,
    ServerConfig,
)
from csm_tts_plugin.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-key-nobody-may-see"


def test_an_empty_environment_gives_the_defaults():
    assert EngineConfig.from_env({}) == EngineConfig()
    assert ServerConfig.from_env({}) == ServerConfig()
    assert AgentConfig.from_env({}) == AgentConfig()
    assert EngineConfig().model == DEFAULT_MODEL == "eustlb/csm-1b"


def test_the_engine_s_variables_are_read():
    config = EngineConfig.from_env(
        {
            "CSM_MODEL": "tiny",
            "CSM_REVISION": "abc",
            "CSM_DEVICE": "cpu",
            "CSM_DTYPE": "bfloat16",
            "CSM_SLOTS": "3",
            "CSM_QUEUE": "0",
            "CSM_CUDA_GRAPHS": "0",
            "CSM_ADAPTER": " anna ",
            "CSM_WATERMARK": "OFF",
            "CSM_WHOLE_CONTEXT": "1",
            "CSM_KERNELS": "0",
        }
    )
    plain = EngineConfig("tiny", "abc", "cpu", "bfloat16", 3, 0, False)
    assert config == dataclasses.replace(
        plain, adapter="anna", watermark="off", whole_context=True, kernels=False
    )
    assert (EngineConfig().adapter, EngineConfig().watermark) == (None, "perth")


def test_a_watermark_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="CSM_WATERMARK must be one of perth, off, got 'water'"):
        EngineConfig.from_env({"CSM_WATERMARK": "water"})


def test_the_server_s_variables_are_read():
    config = ServerConfig.from_env({"CSM_ENGINE_KEY": SECRET, "CSM_VOICES_DIR": "/voices"})
    assert (config.key, config.voices_dir) == (SECRET, Path("/voices"))
    assert config.host == "127.0.0.1"


def test_the_agent_s_variables_are_read():
    config = AgentConfig.from_env(
        {
            "LIVEKIT_URL": "ws://127.0.0.1:7880",
            "LIVEKIT_API_KEY": "key",
            "LIVEKIT_API_SECRET": SECRET,
            "AGENT_NAME": "bot",
            "AGENT_STT": "deepgram/nova-3",
            "AGENT_LLM": "openai:small",
            "VOICE_SOURCE": "stock",
            "CSM_ENGINE_URL": "http://a:1, http://b:2,",
            "CSM_ENGINE_KEY": SECRET,
        }
    )
    assert config.engine_urls == ("http://a:1", "http://b:2")
    assert (config.stt, config.llm, config.voice_source) == (
        "deepgram/nova-3",
        "openai:small",
        "stock",
    )
    assert config.livekit_api_secret == config.engine_key == SECRET


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CSM_SLOTS", "many"),
        ("CSM_SLOTS", "0"),
        ("CSM_SLOTS", "2.5"),
        ("CSM_QUEUE", "-1"),
        ("CSM_CUDA_GRAPHS", "perhaps"),
    ],
)
def test_a_variable_that_cannot_be_is_named_with_its_value(name, value):
    with pytest.raises(ConfigError) as refusal:
        EngineConfig.from_env({name: value})
    assert name in str(refusal.value)
    assert value in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", ["1", "true", "YES", " on "])
def test_yes_has_several_spellings(value):
    assert EngineConfig.from_env({"CSM_CUDA_GRAPHS": value}).cuda_graphs


@pytest.mark.parametrize("value", ["0", "False", "no", "OFF"])
def test_no_has_several_spellings(value):
    assert not EngineConfig.from_env({"CSM_CUDA_GRAPHS": value}).cuda_graphs


@pytest.mark.parametrize(
    "name", ["CSM_MODEL", "CSM_DEVICE", "CSM_SLOTS", "CSM_CUDA_GRAPHS", "CSM_KERNELS"]
)
def test_a_variable_left_empty_is_as_if_not_set(name):
    assert EngineConfig.from_env({name: "  "}) == EngineConfig()


def test_keys_are_not_shown():
    server = ServerConfig(key=SECRET)
    agent = AgentConfig(livekit_api_key=SECRET, livekit_api_secret=SECRET, engine_key=SECRET)
    assert SECRET not in repr(server) + str(server) + repr(agent) + str(agent)


@pytest.mark.parametrize("config", [EngineConfig(), ServerConfig(), AgentConfig(), Limits()])
def test_settings_cannot_be_changed_behind_somebody_s_back(config):
    name = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, None)


def test_a_frame_is_80_milliseconds():
    assert FRAME_SAMPLES / SAMPLE_RATE == FRAME_SECONDS == 0.08


def test_every_limit_bounds_something():
    limits = Limits()
    for part in dataclasses.fields(limits):
        assert getattr(limits, part.name) > 0, part.name
    assert limits.reference_seconds_min < limits.reference_seconds_max
    # A message must be able to carry the largest reference in base64.
    assert limits.message_bytes > limits.reference_bytes * 4 / 3


def test_the_environment_is_read_in_one_place_only():
    readers = set()
    for path in (ROOT / "csm_tts_plugin").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in {
                "os.environ",
                "os.getenv",
            }:
                readers.add(path.relative_to(ROOT / "csm_tts_plugin").as_posix())
    assert "config.py" in readers
    assert readers <= {"config.py", *PASSES_IT_ON}


PASSES_IT_ON = {
    "audio/containers.py",
    "offline/providers.py",
    "server/supervisor.py",
    "worker.py",
}
"""They pass the environment to a child process, read what a parent process set there for its child,
or set what LiveKit reads from it."""
