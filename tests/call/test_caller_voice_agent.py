"""`CallerVoiceAgent` in users' agents: handoffs, hooks, tools, nodes, and what it refuses.

A real LiveKit server; the engine is a stand-in, which needs no time for a new voice. Instead of
running speech-to-text, the tests pass in recorded speech with its transcript.
"""

from __future__ import annotations

import logging
import secrets

import numpy as np
import pytest
from livekit.agents import Agent, AgentSession, function_tool, llm, tts

from csm_tts_plugin import TTS, CallerVoiceAgent, ConsentPolicy
from csm_tts_plugin.audio.resample import to_pcm16
from csm_tts_plugin.caller.consent import State
from csm_tts_plugin.errors import ConfigError
from tests.call.in_process import browser_in, job_in, session_of
from tests.server.conftest import serving
from tests.support.recordings import READER, heard
from tests.support.waiting import until

pytestmark = [pytest.mark.call, pytest.mark.timeout(300)]

RATE = 24_000


class Named(CallerVoiceAgent):
    """A user's agent with a tool, a hook, and its own nodes that call `super()`."""

    def __init__(self, ctx, name, **options):
        super().__init__(ctx, instructions=f"You are {name}.", **options)
        self.name, self.voices, self.entered, self.frames, self.texts = name, [], 0, 0, []

    @function_tool
    async def look_up(self) -> str:
        """Look something up."""
        return "found"

    async def on_enter(self) -> None:
        await super().on_enter()
        self.entered += 1

    async def on_voice_changed(self, name: str) -> None:
        self.voices.append(name)

    async def llm_node(self, chat_ctx, tools, model_settings):
        async for chunk in super().llm_node(chat_ctx, tools, model_settings):
            self.texts.append(chunk if isinstance(chunk, str) else chunk.delta.content)
            yield chunk

    async def tts_node(self, text, model_settings):
        async for frame in super().tts_node(text, model_settings):
            self.frames += 1
            yield frame


class Script(llm.LLM):
    """Always replies with the same sentence."""

    def chat(self, *, chat_ctx, tools=None, conn_options=None, **_):
        return _Reply(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class _Reply(llm.LLMStream):
    async def _run(self):
        delta = llm.ChoiceDelta(role="assistant", content="That is good to know.")
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=delta))


@function_tool
async def outside() -> str:
    """A tool that was handed in."""
    return "done"


@pytest.fixture
async def engine():
    async with serving() as running:
        running.engine.frame_s = 0.01
        yield running


def speak(agent: CallerVoiceAgent, number: int) -> None:
    """Passes in a recorded sentence of the caller with its transcript."""
    voice, turn = agent._call.voice, heard(READER[number], RATE)
    silence = np.zeros(RATE, np.float32)
    voice.recorder.push(to_pcm16(silence), RATE)
    voice.recorder.speech_began()
    voice.recorder.push(to_pcm16(np.concatenate([turn.samples, silence])), RATE)
    agent._call.look_at_caller()
    voice.heard(turn.text)


async def test_consent_and_voice_survive_a_handoff_to_an_agent_with_its_own_tts(
    livekit_server, engine
):
    room = f"handoff-{secrets.token_hex(4)}"
    granted = {"csm.voice_consent": "granted"}
    async with (
        job_in(livekit_server, room) as job,
        TTS(engine_url=engine.url) as speech,
        TTS(engine_url=engine.url) as other,
        browser_in(livekit_server, room, **granted) as browser,
    ):
        first = Named(job, "the first", greeting="Hello.")
        second = Named(job, "the second", tts=other)
        async with session_of(job, first, tts=speech) as session:
            await until(lambda: first.frames, "the greeting")
            speak(first, 0)
            await until(lambda: first.voices == ["caller"], "the hook of the first")
            cloned = speech.voice
            session.update_agent(second)
            await until(lambda: second.entered, "the second agent")
            assert second.voice_name == "caller"
            assert other.voice is cloned
            assert speech.voice is None, "the first TTS has nothing of the caller any more"
            await session.say("I am in your voice.")
            assert second.frames
            shown = job.room.local_participant
            await until(lambda: shown.attributes.get("csm.voice") == "caller", "csm.voice")
            taken_back = browser.local_participant.set_attributes({"csm.voice_consent": "no"})
            await taken_back
            await until(lambda: second.voices == ["stock"], "the hook of the second")
            assert first.voices == ["caller"]
            assert other.voice is speech.voice is None
            session.update_agent(first)
            await until(lambda: first.entered == 2, "the first agent again")
            assert first.voice_name == "stock"
            assert first._call.voice.consent.state is State.WITHDRAWN


async def test_the_question_comes_once_in_a_session_whichever_agents_reply(livekit_server, engine):
    room = f"question-{secrets.token_hex(4)}"
    policy = ConsentPolicy(question="May I sound like you?")
    async with (
        job_in(livekit_server, room) as job,
        TTS(engine_url=engine.url) as speech,
        browser_in(livekit_server, room),
    ):
        first, second = Named(job, "the first", consent=policy), Named(job, "the second")
        async with session_of(job, first, tts=speech, llm=Script()) as session:
            assert await first.caller_listens()
            speak(first, 0)
            await session.generate_reply(user_input="It is a fine day.")
            assert first.texts == ["That is good to know.", " May I sound like you?"]
            session.update_agent(second)
            await until(lambda: second.entered, "the second agent")
            assert second._call.voice.consent.state is State.ASKED
            speak(second, 1)
            await session.generate_reply(user_input="And warm.")
            assert second.texts == ["That is good to know."]


async def test_without_asking_an_agent_asks_by_itself(livekit_server, engine):
    room = f"unasked-{secrets.token_hex(4)}"
    async with (
        job_in(livekit_server, room) as job,
        TTS(engine_url=engine.url) as speech,
        browser_in(livekit_server, room),
    ):
        agent = Named(job, "polite", consent=ConsentPolicy(ask=False))
        async with session_of(job, agent, tts=speech, llm=Script()) as session:
            assert await agent.caller_listens()
            speak(agent, 0)
            await session.generate_reply(user_input="It is a fine day.")
            assert agent.texts == ["That is good to know."]
            await session.say(f"Well. {agent.consent_question}")
            assert agent._call.voice.consent.state is State.ASKED


async def test_a_hook_that_fails_is_in_the_log_and_the_call_goes_on(livekit_server, engine, caplog):
    class Broken(Named):
        async def on_voice_changed(self, name):
            raise ValueError("a mistake of somebody's")

    room = f"broken-{secrets.token_hex(4)}"
    granted = {"csm.voice_consent": "granted"}
    async with (
        job_in(livekit_server, room) as job,
        TTS(engine_url=engine.url) as speech,
        browser_in(livekit_server, room, **granted),
    ):
        agent = Broken(job, "broken")
        async with session_of(job, agent, tts=speech) as session:
            assert await agent.caller_listens()
            speak(agent, 0)
            await until(lambda: "on_voice_changed failed" in caplog.text, "the log")
            assert agent.voice_name == "caller"
            await session.say("It goes on.")
            assert agent.frames


def test_tools_of_the_subclass_and_those_handed_in_are_kept():
    agent = Named(None, "handy", tools=[outside])
    names = {tool.info.name for tool in agent.tools}
    assert names == {"look_up", "outside", "use_my_voice", "stop_using_my_voice"}


class Foreign(tts.TTS):
    def __init__(self):
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=False), sample_rate=RATE, num_channels=1
        )

    def synthesize(self, text, *, conn_options=None):
        raise NotImplementedError


def test_another_tts_is_refused_where_the_agent_is_made():
    with pytest.raises(ConfigError, match=r"needs csm_tts_plugin.TTS .* found Foreign;"):
        Named(None, "strange", tts=Foreign())


@pytest.mark.parametrize(("held", "named"), [(None, "none"), (Foreign(), "Foreign")])
async def test_a_session_without_our_tts_ends_the_job_with_what_is_missing(
    livekit_server, held, named, caplog
):
    caplog.set_level(logging.ERROR)
    room = f"strange-{secrets.token_hex(4)}"
    async with job_in(livekit_server, room) as job:
        options = {} if held is None else {"tts": held}
        async with session_of(job, Named(job, "strange"), **options):
            await until(lambda: job.ended, "the job ends")
    (reason,) = job.ended
    assert reason == (
        "CallerVoiceAgent needs csm_tts_plugin.TTS as the tts of the agent or of its AgentSession,"
        f" found {named}; write AgentSession(tts=csm_tts_plugin.TTS())."
    )
    assert reason in caplog.text


async def test_an_agent_of_another_kind_may_take_over_in_between(livekit_server, engine):
    room = f"between-{secrets.token_hex(4)}"
    granted = {"csm.voice_consent": "granted"}
    async with (
        job_in(livekit_server, room) as job,
        TTS(engine_url=engine.url) as speech,
        browser_in(livekit_server, room, **granted) as browser,
    ):
        agent, plain = Named(job, "ours"), Agent(instructions="")
        async with session_of(job, agent, tts=speech) as session:
            assert await agent.caller_listens()
            speak(agent, 0)
            assert agent.voice_name == "caller"
            session.update_agent(plain)
            await until(lambda: session.current_agent is plain, "the plain agent")
            await browser.local_participant.set_attributes({"csm.voice_consent": "no"})
            await until(lambda: speech.voice is None, "consent taken back meanwhile")


def test_sessions_that_are_over_are_let_go():
    from csm_tts_plugin import agent as module

    assert not [session for session in module._calls if isinstance(session, AgentSession)]
