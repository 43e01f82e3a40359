"""The programs of `examples/`, each as a process: two in calls on a real LiveKit server with the
real engine and `tiny`, one that writes files.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys

import numpy as np
import pytest
import soundfile

from csm_tts_plugin.config import EngineConfig, ServerConfig
from csm_tts_plugin.server.supervisor import EngineProcess
from livekit import api
from scripts.setup_tools import ROOT
from scripts.worker import Progress, Worker
from tests.call import centre
from tests.call.running import run
from tests.call.test_consent_calls import STORY, Voice, until
from tests.support.endpoint import completion, endpoint
from tests.support.recordings import path_of
from tests.support.serve_watched import VOICES

pytestmark = [pytest.mark.call, pytest.mark.timeout(900)]

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The environment of an engine with csm-tiny, and the file that lists the voices it holds."""
    state = tmp_path_factory.mktemp("engine") / "voices.json"
    command = (sys.executable, "-m", "tests.support.serve_watched", "serve")
    config = EngineConfig(model="tiny", device="cpu", threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VOICES, str(state))
        process = EngineProcess(config, ServerConfig(port=0), command=command)
        with process as engine:
            url = engine.wait_ready(centre.LIMIT_S)
            yield {"CSM_ENGINE_URL": url, "CSM_ENGINE_KEY": engine.key}, state


def script():
    """An LLM that hands over when the caller mentions a room; its reply shows which agent it is."""

    def reply_to(request: dict) -> dict:
        first, last = str(request["messages"][0]["content"]), request["messages"][-1]
        tools = {tool["function"]["name"] for tool in request.get("tools", [])}
        handover = "hand_over_to_reservations"
        wants = last["role"] == "user" and "room" in str(last["content"]).lower()
        if wants and handover in tools:
            call = {"index": 0, "id": "call_1", "type": "function"}
            return {"tool_calls": [{**call, "function": {"name": handover, "arguments": "{}"}}]}
        return {"content": "For which dates?" if "book rooms" in first else "I see."}

    def answer(body: bytes) -> bytes:
        delta = reply_to(json.loads(body))
        reason = "tool_calls" if "tool_calls" in delta else "stop"
        return completion([{"role": "assistant", **delta}], reason)

    return endpoint(answer)


async def call(example: str, livekit_server, settings: dict[str, str], log, talk) -> str:
    """Runs the example in a call with `talk` as the caller; returns its log."""
    keys = {**livekit_server.keys, **settings}
    worker = Worker(keys, log, Progress(), program=EXAMPLES / example)
    with worker.child:
        await asyncio.to_thread(worker.wait_ready)
        grants = api.VideoGrants(room_join=True, room=f"example-{secrets.token_hex(4)}")
        grants.can_update_own_metadata = True
        token = api.AccessToken(livekit_server.key, livekit_server.secret).with_identity("caller")
        voice = Voice()
        voice.listen()
        try:
            jwt = token.with_grants(grants).to_jwt()
            await asyncio.wait_for(voice.room.connect(livekit_server.url, jwt), 60)
            await voice.begin()
            await talk(voice)
        finally:
            await voice.hang_up()
    return log.read_text()


async def write(voice: Voice, text: str) -> None:
    await voice.room.local_participant.send_text(text, topic="lk.chat")


async def test_the_plugin_alone_speaks_in_somebody_s_agent(livekit_server, engine, tmp_path):
    async def talk(voice: Voice) -> None:
        assert voice.texts == ["Hello, how can I help?"]
        await write(voice, "What is the weather like?")
        await until(lambda: voice.texts[1:] == ["I see."], "the reply")

    with script() as llm:
        settings = {**engine[0], "OPENAI_BASE_URL": llm, "OPENAI_API_KEY": "none"}
        await call("plugin_alone.py", livekit_server, settings, tmp_path / "agent.log", talk)


async def test_a_caller_keeps_their_voice_when_the_receptionist_hands_over(
    livekit_server, engine, tmp_path
):
    environment, state = engine

    def held() -> list[str]:
        return json.loads(state.read_text())["used"]

    async def talk(voice: Voice) -> None:
        assert voice.texts[0].startswith("Hotel Seaview")
        await voice.attribute("granted")
        await voice.say(path_of(STORY))
        await voice.hears_itself()
        await until(lambda: len(held()) == 1, "the engine holds their voice")
        kept = held()
        await write(voice, "I want to book a room.")
        await until(lambda: voice.texts[-1] == "For which dates?", "the second agent's reply")
        assert held() == kept
        assert voice.voices[-1] == "caller"
        await voice.attribute("refused")
        await voice.hears_the_agent()
        await until(lambda: not held(), "the engine holds it no more")

    with script() as llm:
        settings = {"AGENT_STT": "offline", "AGENT_LLM": "openai:script", "OPENAI_API_KEY": ""}
        settings |= {**environment, "OPENAI_BASE_URL": llm}
        log = await call("receptionist.py", livekit_server, settings, tmp_path / "agent.log", talk)
    assert "The replies are now in the voice: stock" in log, "the second agent's hook"


def test_the_narrator_writes_a_file_for_each_paragraph(tmp_path):
    story = tmp_path / "story.txt"
    story.write_text("It is a fine day. We go out.\n\nThe rain\ncomes later.\n")
    words = [str(EXAMPLES / "narrator.py"), str(story), str(tmp_path / "spoken")]
    ended = run([*words, "--model", "tiny"], {}, tmp_path)
    assert ended.code == 0
    files = sorted((tmp_path / "spoken").iterdir())
    assert [file.name for file in files] == ["001.wav", "002.wav"]
    for file in files:
        samples, rate = soundfile.read(file)
        assert rate == 24_000
        assert len(samples) > rate // 2
        assert np.abs(samples).max() > 0.05
    assert ", 2 sentences" in ended.output


def test_the_narrator_says_in_one_line_what_is_wrong(tmp_path):
    ended = run([str(EXAMPLES / "narrator.py"), str(tmp_path / "none.txt"), "x"], {}, tmp_path)
    assert ended.code == 1
    assert ended.output.startswith("narrator: ")
    assert len(ended.output.splitlines()) == 1
