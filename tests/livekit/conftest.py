"""The plugin with the real server and a stand-in engine; no task or socket may be left over."""

from __future__ import annotations

import pytest

from csm_tts_plugin.tts import TTS
from tests.livekit.speech import Events, RecordingEngine
from tests.server.conftest import nothing_left, serving

__all__ = ["nothing_left"]


@pytest.fixture
async def server():
    async with serving(RecordingEngine()) as running:
        yield running
        await running.settle()


@pytest.fixture
async def speaker(server):
    async with TTS(engine_url=server.url) as speaker:
        yield speaker


@pytest.fixture
def events(speaker) -> Events:
    return Events().watch(speaker)
