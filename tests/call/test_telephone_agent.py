"""A telephone call on a real LiveKit server: when the agent speaks, and what a hang-up leaves.

The agent's session runs in this process, so that tests see its every frame and event; its engine is
a stand-in that speaks a tone at full level at once, so that the start of a word can be measured.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from livekit.agents import AgentSession

from csm_tts_plugin import TTS, CallerVoiceAgent, ConsentPolicy
from csm_tts_plugin.caller.consent import State
from csm_tts_plugin.config import AgentConfig
from livekit import rtc
from tests.call.in_process import Job, browser_in, job_in, session_of
from tests.server.conftest import serving
from tests.support import mulaw
from tests.support.phone import LOUD, Phone
from tests.support.stand_in_engine import AMPLITUDE, pitch_of
from tests.support.waiting import until

pytestmark = [pytest.mark.call, pytest.mark.timeout(300)]

GREETING = AgentConfig().greeting
PHONE_QUESTION = ConsentPolicy().question_for(telephone=True)


class Watched(CallerVoiceAgent):
    """The agent; records all frames that it gives to playback."""

    def __init__(self, ctx, **options):
        super().__init__(ctx, instructions="", **options)
        self.played = []

    async def tts_node(self, text, model_settings):
        async for frame in super().tts_node(text, model_settings):
            self.played.append(np.frombuffer(frame.data, np.int16))
            yield frame


@dataclass
class Call:
    agent: Watched
    job: Job
    session: AgentSession
    dial: Callable[[str], Phone]
    """Makes a telephone that calls, with this initial status."""

    @property
    def statuses(self):
        people = self.job.room.remote_participants.values()
        return [person.attributes.get("sip.callStatus") for person in people]


@pytest.fixture
async def engine():
    async with serving() as running:
        running.engine.frame_s = 0.02
        yield running


@asynccontextmanager
async def answering(server, engine, room_name):
    """The agent in a room of the server, its job and its session."""
    async with job_in(server, room_name) as job, TTS(engine_url=engine.url) as speech:
        agent = Watched(job, greeting=GREETING)
        async with session_of(job, agent, tts=speech) as session:
            yield agent, job, session


@pytest.fixture
async def call(livekit_server, engine):
    """A room with the agent in it."""
    name = f"call-{secrets.token_hex(4)}"
    async with answering(livekit_server, engine, name) as (agent, job, session):
        yield Call(agent, job, session, lambda status: Phone(livekit_server, name, status))


def said(engine):
    return " ".join(text for _, text in engine.engine.said)


async def test_nothing_is_said_before_the_telephone_is_answered(call, engine):
    async with call.dial("dialing") as phone:
        for status in ("dialing", "ringing", "automation"):
            await phone.status(status)
            await until(lambda status=status: call.statuses == [status], status)
            await until(lambda: not call.session.input.audio_enabled, "deaf while it rings")
        assert engine.engine.said == []
        assert not phone.heard_speech
        await phone.status("active")
        await until(lambda: phone.heard_speech, "the greeting")
        assert call.session.input.audio_enabled
    assert said(engine) == GREETING


async def test_the_first_word_follows_silence_and_is_whole(call, engine):
    async with call.dial("active") as phone:
        await until(lambda: phone.loud_frames() > 40 and call.agent.played, "the greeting")
        await until(lambda: phone.quiet_frames > 60, "its end")
        await call.session.say("And this comes later.")
        heard = phone.heard
    silence = np.flatnonzero(np.abs(np.concatenate(call.agent.played).astype(int)) > LOUD)[0]
    assert 0.2 <= silence / 24_000 <= 0.3
    later = [frame for frame in call.agent.played if not frame.any()]
    assert len(later) == 1, "only the call's first sound waits for the line"
    onset = np.flatnonzero(np.abs(heard.astype(int)) > LOUD)[0]
    word = heard[onset : onset + mulaw.RATE * 3 // 10].astype(float) / 32_768
    pitch = pitch_of(engine.engine.said[0][1])
    # The tone has its full level at once, and the pitch of the text that was spoken.
    level = AMPLITUDE / np.sqrt(2)
    for part in np.split(word, 10)[1:]:
        assert 0.5 * level < np.sqrt(np.mean(part**2)) < 2 * level
    strongest = np.argmax(np.abs(np.fft.rfft(word * np.hanning(len(word)))))
    assert strongest * mulaw.RATE / len(word) == pytest.approx(pitch, abs=10)


async def test_a_browser_is_greeted_at_once_and_without_silence(livekit_server, engine):
    name = f"call-{secrets.token_hex(4)}"
    async with answering(livekit_server, engine, name) as (agent, job, _):
        async with browser_in(livekit_server, name):
            await until(lambda: agent.played, "the greeting")
        assert np.abs(agent.played[0].astype(int)).max() > LOUD
        assert job.ended == [], "a browser may come back"


def tasks():
    return [task.get_name() for task in asyncio.all_tasks()]


async def leave(phone):
    await phone.hang_up()


async def tell(phone):
    await phone.status("hangup")


@pytest.mark.parametrize("how", [leave, tell])
@pytest.mark.parametrize("phase", ["ringing", "greeting", "listening"])
async def test_a_hang_up_ends_the_job_and_leaves_nothing_at_the_engine(
    call, engine, phase, how, caplog
):
    caplog.set_level(logging.INFO)
    states = []
    call.session.on("agent_state_changed", lambda event: states.append(event.new_state))
    if phase == "greeting":
        engine.engine.frame_s = 1.0  # the greeting lasts until the hang-up is known
    async with call.dial("ringing" if phase == "ringing" else "active") as phone:
        await until(lambda: engine.engine.conversations, "the conversation opened ahead")
        if phase == "ringing":
            await until(lambda: call.statuses == ["ringing"], "the agent hears it ring")
            await until(lambda: not call.session.input.audio_enabled, "the agent waits")
        else:
            await until(lambda: engine.engine.utterances, "the engine speaks")
        if phase == "listening":
            await until(lambda: states[-2:] == ["speaking", "listening"], "the greeting's end")
        await how(phone)
        await until(lambda: call.job.ended, "the job ends")
        await until(lambda: engine.engine.idle, "the engine is free")
    await engine.settle()
    await until(lambda: not [name for name in tasks() if name.startswith("csm-")], "no task left")
    assert call.job.ended == ["the caller hung up"]
    assert said(engine) == ("" if phase == "ringing" else GREETING)
    assert bool(engine.engine.cancelled) == (phase == "greeting")
    assert caplog.text.count("the caller hung up") == 1


async def test_a_telephone_that_nobody_answers_is_given_up(call, engine, monkeypatch, caplog):
    monkeypatch.setattr("csm_tts_plugin.caller.telephone.Telephone.answered.__defaults__", (0.2,))
    async with call.dial("ringing") as phone:
        await until(lambda: call.job.ended, "the job ends")
        gone = rtc.ConnectionState.CONN_DISCONNECTED
        await until(lambda: phone.room.connection_state == gone, "the telephone rings no more")
    await engine.settle()
    assert engine.engine.said == []
    (line,) = [r.getMessage() for r in caplog.records if "not answered" in r.getMessage()]
    assert line == (
        "the telephone was not answered within 0.2 s (sip.callStatus is ringing); ending the call"
    )


@pytest.mark.parametrize(("digit", "state"), [("1", State.GRANTED), ("2", State.REFUSED)])
async def test_a_key_of_the_telephone_answers_the_question_for_consent(call, engine, digit, state):
    pressed = []
    call.job.room.on("sip_dtmf_received", lambda event: pressed.append(event.digit))
    async with call.dial("active") as phone:
        await until(lambda: phone.heard_speech, "the greeting")
        await phone.press(digit)
        await until(lambda: pressed, "a key")
        await call.session.say(PHONE_QUESTION)
        consent = call.agent._call.voice.consent
        assert consent.open, "what was pressed before the question is no answer"
        await phone.press(digit)
        await until(lambda: consent.state is state, state)
        if state is State.GRANTED:
            await phone.press("0")
            await until(lambda: consent.state is State.WITHDRAWN, "taken back")
