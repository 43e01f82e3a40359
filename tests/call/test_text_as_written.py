"""An LLM's text reaches the plugin unchanged in the sessions of our own programs.

LiveKit's session filters Markdown by default, with rules that are wrong for a telephone.
"""

from __future__ import annotations

import importlib
import secrets
from types import SimpleNamespace

import pytest
from livekit.agents import Agent, AgentSession, inference

from csm_tts_plugin import TTS
from tests.call.in_process import browser_in, job_in, session_of
from tests.server.conftest import serving

WRITTEN = "Dial *67* first. ~~Five~~ six.\n-5 degrees."
SAID = ["Dial star 67 star first.", "Five six.", "minus 5 degrees."]


class Started(Exception):
    """A program has made its session."""


async def session_made_by(program: str, monkeypatch) -> AgentSession:
    """The session that the program makes for a call, not started."""
    made: list[AgentSession] = []

    async def start(session: AgentSession, *args, **options) -> None:
        made.append(session)
        raise Started

    for name in ("CSM_ENGINE_URL", "CSM_OFFLINE_STT_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # never contacted
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr(AgentSession, "start", start)
    process = SimpleNamespace(userdata={"vad": inference.VAD(model="silero"), "llm": None})
    nothing = dict.fromkeys(("add_shutdown_callback", "shutdown"), lambda *_: None)
    answer = importlib.import_module(program).answer
    with pytest.raises(Started):
        await answer(SimpleNamespace(proc=process, room=None, **nothing))
    monkeypatch.undo()
    return made[0]


@pytest.mark.call
@pytest.mark.timeout(300)
@pytest.mark.parametrize("program", ["agent", "examples.receptionist", "examples.plugin_alone"])
async def test_a_program_s_session_speaks_what_was_written(livekit_server, program, monkeypatch):
    options = (await session_made_by(program, monkeypatch)).options
    room = f"written-{secrets.token_hex(4)}"
    async with (
        serving() as engine,
        job_in(livekit_server, room) as job,
        TTS(engine_url=engine.url) as speech,
        browser_in(livekit_server, room),
    ):
        engine.engine.frame_s = 0.01
        transforms = options.tts_text_transforms
        agent = Agent(instructions="Answer.")
        async with session_of(job, agent, tts=speech, tts_text_transforms=transforms) as session:
            await session.say(WRITTEN)
        assert [text for _, text in engine.engine.said] == SAID
