"""VOICE_SOURCE: a worker with an unusable voice reports it in one line and does not start."""

from __future__ import annotations

import numpy as np
import pytest

from csm_tts_plugin.config import AgentConfig
from csm_tts_plugin.errors import ConfigError
from csm_tts_plugin.voices.store import VoiceStore
from csm_tts_plugin.voices.voice import Consent, Voice
from csm_tts_plugin.worker import Services, check_voice


@pytest.fixture
def folder(tmp_path):
    consent = Consent(speaker="Nobody", statement="A tone.", date="2025-01-31")
    tone = (0.3 * np.sin(np.arange(24_000) / 20)).astype(np.float32)
    for id in ("ada", "bob"):
        voice = Voice.from_audio(tone, 24_000, transcript="A tone.", consent=consent, id=id)
        VoiceStore(tmp_path).add(voice)
    (tmp_path / "bob.json").unlink()
    return tmp_path


@pytest.mark.parametrize("name", ["caller", "stock", "ada"])
def test_a_voice_that_is_there_passes(name, folder):
    check_voice(AgentConfig(voice_source=name), folder)


def test_without_a_folder_only_stored_voices_are_missed():
    for name in ("caller", "stock"):
        check_voice(AgentConfig(voice_source=name), None)
    with pytest.raises(ConfigError, match="CSM_VOICES_DIR"):
        check_voice(AgentConfig(voice_source="ada"), None)


def test_what_another_engine_keeps_is_its_own_to_know(tmp_path):
    config = AgentConfig(voice_source="ada", engine_urls=("http://127.0.0.1:9",))
    check_voice(config, tmp_path)
    check_voice(config, None)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("../ada", "id of a stored voice"),
        ("Ada", "id of a stored voice"),
        ("a" * 65, "id of a stored voice"),
        ("carl", "no voice carl"),
        ("bob", "no consent record"),
    ],
)
def test_a_voice_that_cannot_be_had_is_told_with_its_cure(name, cause, folder):
    with pytest.raises(ConfigError, match=cause) as caught:
        check_voice(AgentConfig(voice_source=name), folder)
    assert "VOICE_SOURCE" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_worker_with_such_a_voice_starts_nothing(folder):
    env = {"VOICE_SOURCE": "carl", "CSM_VOICES_DIR": str(folder), "CSM_MODEL": "tiny"}
    with pytest.raises(ConfigError, match="VOICE_SOURCE=carl"):
        await Services(env).start()
    assert "CSM_ENGINE_URL" not in env
