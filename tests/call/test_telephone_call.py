"""A complete telephone call: a real LiveKit server, `agent.py start`, the model `tiny`, real
speech-to-text and a real LLM; audio in both directions goes through 8 kHz mu-law.

The engine runs in a separate process and records its requests and its output, in order.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from csm_tts_plugin.audio.detection import detect
from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import SAMPLE_RATE, EngineConfig, ServerConfig
from csm_tts_plugin.server.supervisor import EngineProcess
from livekit import api
from scripts.worker import Progress, Worker
from tests.support import mulaw
from tests.support.phone import NAME, NUMBER, TRUNK, Phone
from tests.support.recordings import READER, path_of, words_of
from tests.support.serve_recorded import EVENTS, REHEARSED, REPEATED, Events
from tests.support.waiting import LIMIT_S, until
from tests.support.wording import errors, words

pytestmark = [pytest.mark.call, pytest.mark.timeout(700)]

HUNG_UP = "the caller hung up ("
"""In the log."""
CANARIES = (NUMBER, NUMBER[1:], TRUNK, TRUNK[1:], NAME)
SAYS = READER[2]
"""5.3 s: enough for a reference."""
GREETING = (
    "Hello, you have reached the office of the harbour.",
    "We are here at any time of the day and of the night.",
    "Please tell me what is on your mind today.",
)
"""Long enough for the watermark: on a busy machine it begins only after 1.3 s."""


@dataclass
class Office:
    """The agent's worker and everything that it needs, waiting for calls."""

    server: object
    log_file: Path
    events: Events
    engine: EngineProcess
    engine_url: str
    figures: Path
    """Folder of the jobs' Prometheus metrics."""

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def held(self) -> list[int]:
        """What the engine reports as held now: speaking, queued, conversations."""
        with urllib.request.urlopen(f"{self.engine_url}/readyz", timeout=30) as answer:
            figures = json.load(answer)
        return [figures[name] for name in ("speaking", "queued", "conversations")]

    def metrics(self) -> str:
        """Metrics of the engine, and the files with those of the worker's calls."""
        key = {"Authorization": f"Bearer {self.engine.key}"}
        asked = urllib.request.Request(f"{self.engine_url}/metrics", headers=key)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            engine = answer.read()
        jobs = [file.read_bytes() for file in self.figures.iterdir()]
        return b"".join([engine, *jobs]).decode(errors="replace")

    def dial(self, status: str) -> Phone:
        """Calls in a new room, named as by LiveKit's individual dispatch rule."""
        room = f"call-_{NUMBER}_{secrets.token_hex(4)}"
        return Phone(self.server, room, status, **{"csm.voice_consent": "granted"})

    async def settled(self, phone: Phone) -> None:
        """Waits until nothing of its call is left at the engine, and no agent in the room."""
        await until(lambda: self.events.free, "the engine is free")
        await none_of(lambda: asyncio.to_thread(self.held))
        late = self.events.frames_after_the_end_was_asked()
        assert all(frames <= 1 for frames in late.values())
        await none_of(lambda: self.people(phone.called))

    async def people(self, room: str) -> list[str]:
        server, asked = self.server, api.ListParticipantsRequest(room=room)
        async with api.LiveKitAPI(server.url, server.key, server.secret) as livekit:
            try:
                found = await livekit.room.list_participants(asked)
            except api.TwirpError as error:
                if error.code != api.TwirpErrorCode.NOT_FOUND:
                    raise
                return []
            return [person.identity for person in found.participants]


async def none_of(ask) -> None:
    """Polls `ask` until its answer is empty or all zeros."""
    async with asyncio.timeout(LIMIT_S):
        while any(await ask()):  # noqa: ASYNC110  other processes set no event
            await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def office(livekit_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("telephone")
    command = (sys.executable, "-m", "tests.support.serve_recorded", "serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(EVENTS, str(folder / "events.jsonl"))
        patch.setenv(REHEARSED, json.dumps(GREETING))
        patch.setenv("CSM_MODEL", "tiny")
        engine = EngineProcess(
            EngineConfig(model="tiny", device="cpu"), ServerConfig(port=0), command=command
        )
        with engine:
            url = engine.wait_ready(150)
            asyncio.run(rehearse(url, engine.key))
            keys = {
                "LIVEKIT_URL": livekit_server.url,
                "LIVEKIT_API_KEY": livekit_server.key,
                "LIVEKIT_API_SECRET": livekit_server.secret,
                "CSM_ENGINE_URL": url,
                "CSM_ENGINE_KEY": engine.key,
                "AGENT_STT": "offline",
                "AGENT_LLM": "offline",
                "AGENT_GREETING": " ".join(GREETING),
                "VOICE_SOURCE": "caller",
                "LIVEKIT_LOG_LEVEL": "DEBUG",  # everything that LiveKit logs
            }
            (figures := folder / "figures").mkdir()
            keys["PROMETHEUS_MULTIPROC_DIR"] = str(figures)
            worker = Worker(keys, folder / "agent.log", Progress())
            with worker.child:
                worker.wait_ready()
                events = Events(folder / "events.jsonl")
                log = folder / "agent.log"
                yield Office(livekit_server, log, events, engine, url, figures)


async def rehearse(url: str, key: str) -> None:
    """Lets the engine generate the greeting once."""
    async with EngineClient(url, key=key, timeout=LIMIT_S) as client:
        conversation = await client.conversation()
        for n, sentence in enumerate(GREETING, 1):
            async for _ in await conversation.say(sentence, more=n < len(GREETING)):
                pass


def without_ends(pcm: np.ndarray) -> np.ndarray:
    """int16 [n] at 8 kHz without the silence before and after it."""
    loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > 200)
    return pcm[loud[0] : loud[-1]]


def speech(name: str) -> tuple[np.ndarray, int]:
    pcm, rate = soundfile.read(path_of(name), dtype="int16")
    return pcm, rate


async def at_the_phone(office: Office, before: int) -> None:
    """Waits for the agent of the call that is logged after the first `before` characters."""
    await until(lambda: "the caller is on a telephone" in office.log[before:], "the agent")


async def greeting(phone: Phone) -> None:
    await until(lambda: phone.loud_frames() > 50, "a greeting of half a second")
    await until(lambda: phone.quiet_frames > 80 and phone.agent_state == "listening", "its end")


async def reply_to(phone: Phone, name: str, frames: int) -> None:
    """Speaks a recording; returns when more than `frames` frames (10 ms) of a reply were heard."""
    await phone.speak(*speech(name))
    before = phone.frames
    await until(lambda: phone.loud_frames(before) > frames, "a reply")


@dataclass(frozen=True)
class Call:
    """What was noted in a call from ringing to a hang-up in the middle of a sentence."""

    office: Office
    began: int
    """The number of characters of the log before it."""
    said_in_ringing: list[str]
    heard_in_ringing: bool
    greeting: np.ndarray
    greetings: list[str]
    """The ids of the greeting's utterances."""
    turns: list[dict[str, Any]]
    words: list[str]

    @property
    def log(self) -> str:
        return self.office.log[self.began :]


@pytest.fixture(scope="module")
def call(office) -> Call:
    return asyncio.run(whole_call(office))


async def whole_call(office: Office) -> Call:
    began, said = len(office.log), len(office.events.of("say"))
    async with office.dial("ringing") as phone:
        await at_the_phone(office, began)
        await until(lambda: phone.agent_state == "listening", "it waits")
        in_ringing = office.events.of("say")[said:], phone.heard_speech
        await phone.status("active")
        await greeting(phone)
        heard, greetings = phone.heard, office.events.of("say")[said:]
        await reply_to(phone, SAYS, frames=50)
        await reply_to(phone, READER[4], frames=50)  # interrupts the first reply
        await until(lambda: phone.turns, "the figures of a turn")
        await phone.hang_up()
    await office.settled(phone)
    await until(lambda: HUNG_UP in office.log[began:], "the log of the end")
    return Call(office, began, *in_ringing, heard, greetings, phone.turns, phone.final_words)


def test_nothing_is_said_while_it_rings(call):
    assert call.said_in_ringing == []
    assert not call.heard_in_ringing


def test_what_comes_over_the_line_is_told_as_made(call):
    assert all(id.startswith(REPEATED) for id in call.greetings), "as rehearsed: no gaps"
    assert len(call.greetings) == len(GREETING)
    heard = without_ends(call.greeting).astype(np.float32) / 32_768
    found = detect(soxr.resample(heard, mulaw.RATE, SAMPLE_RATE))
    print("confidence", found.whole, found.seconds)
    assert found.marked


def test_a_caller_is_understood_over_the_line(call):
    said = words(words_of(SAYS))
    understood = words(" ".join(call.words))[: len(said)]
    assert errors(understood, said) <= 0.4 * len(said)


def test_a_hang_up_in_the_middle_of_a_sentence_ends_the_call(call):
    assert call.log.count(HUNG_UP) == 1
    assert "Traceback" not in call.log


def test_nobody_is_named_in_the_figures_of_a_turn(call):
    assert call.turns
    assert not [canary for canary in CANARIES if canary in json.dumps(call.turns)]


def test_speech_from_a_telephone_is_marked_as_narrow(call):
    """Whether or not it became a reference: the measured band counts, not the agent's 48 kHz."""
    measured = [line for line in call.log.splitlines() if " band to " in line]
    assert measured
    assert all("narrow band to" in line for line in measured)


def test_nobody_is_named_in_any_log_or_figure(call):
    office = call.office
    assert "RoomIO linked to participant" in call.log, "LiveKit's own lines are among them"
    assert "received job request" in office.log
    metrics = office.metrics()
    assert "csm_utterances" in metrics
    assert "csm_turns" in metrics
    assert not [canary for canary in CANARIES if canary in office.log + metrics]


async def test_a_caller_may_hang_up_while_it_rings(office):
    before, said = len(office.log), len(office.events.of("say"))
    async with office.dial("ringing") as phone:
        await at_the_phone(office, before)
        await phone.hang_up()
    await until(lambda: "sip.callStatus was ringing" in office.log[before:], "it is known")
    await office.settled(phone)
    assert len(office.events.of("say")) == said


async def in_the_greeting(phone: Phone) -> None:
    await until(lambda: phone.heard_speech, "the greeting")


async def while_speaking(phone: Phone) -> None:
    pcm, rate = speech(SAYS)
    await phone.speak(pcm[: len(pcm) // 2], rate)


async def while_it_is_understood(phone: Phone) -> None:
    await phone.speak(*speech(SAYS))


async def while_the_llm_generates(phone: Phone) -> None:
    await phone.speak(*speech(SAYS))
    await until(lambda: phone.agent_state == "thinking" or phone.final_words, "it thinks")


async def at_the_first_sound(phone: Phone) -> None:
    await reply_to(phone, SAYS, frames=0)


async def in_the_middle_of_a_sentence(phone: Phone) -> None:
    await reply_to(phone, SAYS, frames=100)


PHASES = [
    in_the_greeting,
    while_speaking,
    while_it_is_understood,
    while_the_llm_generates,
    at_the_first_sound,
    in_the_middle_of_a_sentence,
]


@pytest.mark.soak
@pytest.mark.parametrize("how", ["leaves", "hangup"])
@pytest.mark.parametrize("phase", PHASES)
async def test_a_caller_may_hang_up_at_any_time(office, phase, how):
    before = len(office.log)
    async with office.dial("active") as phone:
        await at_the_phone(office, before)
        if phase is not in_the_greeting:
            await greeting(phone)
        await phase(phone)
        if how == "hangup":
            await phone.status("hangup")
            await until(lambda: HUNG_UP in office.log[before:], "it is known")
        await phone.hang_up()
    await office.settled(phone)
    log = office.log[before:]
    assert log.count(HUNG_UP) == 1
    assert "Traceback" not in log
    assert not [canary for canary in CANARIES if canary in log]
