"""An engine that dies in the middle of a reply: the reply goes on, and no more than one sentence is
heard twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time

import pytest

from csm_tts_plugin.audio.resample import to_pcm16
from csm_tts_plugin.client.call import Call, Manner
from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.client.reply import Reply, numbered
from csm_tts_plugin.config import FRAME_SAMPLES, EngineConfig, ServerConfig
from csm_tts_plugin.errors import UnavailableError
from csm_tts_plugin.server.supervisor import EngineProcess
from tests.chaos.figures import record
from tests.server.conftest import serving
from tests.server.test_process import STAND_IN, run_where_the_tests_are  # noqa: F401
from tests.support.stand_in_engine import StandInEngine, _Utterance, frames_of
from tests.support.waiting import LIMIT_S, until

SENTENCES = [f"This is the sentence with the number {n}, of several." for n in range(6)]
TIMEOUT_S = 60.0
FRAME = 2 * FRAME_SAMPLES
"""In bytes."""


class Listener:
    def __init__(self):
        self.pcm = b""
        self.texts = []
        self.silences = []

    def text(self, sentence, seconds):
        self.texts.append(sentence)

    def sound(self, pcm):
        self.pcm += pcm


def frame_of(text):
    """The exact bytes of the frame that the stand-in repeats for this text."""
    return to_pcm16(_Utterance("", text, print, None, False).sound().samples)


def length_of(text):
    return FRAME * frames_of(text)


def repeated(pcm, sentences):
    """Number of extra frames that were heard of each sentence; fails if audio is missing, out of
    order, or of another reply.
    """
    extra = []
    for text in sentences:
        frame, heard = frame_of(text), 0
        while pcm[heard * FRAME : (heard + 1) * FRAME] == frame:
            heard += 1
        assert heard >= frames_of(text)
        extra.append(heard - frames_of(text))
        pcm = pcm[heard * FRAME :]
    assert pcm == b""
    return extra


async def slowly(sentences):
    for sentence in numbered(sentences, more_to_come=False):
        await asyncio.sleep(0.0)
        yield sentence


async def speak(connect, listener, sentences):
    call = Call(connect, Manner())
    try:
        reply = Reply(call, lambda: 1.6, listener, 24_000, TIMEOUT_S)
        await reply.speak(slowly(sentences), lambda call: None)
    finally:
        await call.aclose()


def supervised(model, **options):
    config = EngineConfig(model=model, device="cpu", slots=2, queue=2, threads=1)
    return EngineProcess(config, ServerConfig(port=0), start_timeout=300.0, **options)


def client_of(engine, clients):
    async def connect():
        url = await engine.ready(TIMEOUT_S)
        if not clients:
            clients.append(EngineClient(url, key=engine.key, timeout=TIMEOUT_S))
        return clients[0]

    return connect


async def speak_and_kill(engine, sentences, kills):
    """`kills`: numbers of bytes heard after which the engine is killed."""
    listener, clients = Listener(), []
    reply = asyncio.create_task(speak(client_of(engine, clients), listener, sentences))
    try:
        for kill in kills:
            await until(lambda: reply.done() or len(listener.pcm) > kill)  # noqa: B023
            assert not reply.done(), reply.exception()
            await killed(engine, listener)
            await until(lambda: len(listener.pcm) > kill + 4 * FRAME)  # noqa: B023  it speaks on
        await asyncio.wait_for(reply, 120.0)
    finally:
        reply.cancel()
        await asyncio.gather(reply, return_exceptions=True)
        for client in clients:
            await client.aclose()
    return listener


async def killed(engine, listener):
    """Kills the engine; adds to `listener.silences` the silence and how long the restart took."""
    ready = engine._ready
    began = time.monotonic()
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: engine._ready is not ready)
    heard = len(listener.pcm)  # audio in transit has arrived
    await engine.ready(120.0)
    back = time.monotonic()
    await until(lambda: len(listener.pcm) > heard)
    listener.silences.append((time.monotonic() - began, back - began))


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.soak)])
async def test_a_reply_goes_on_after_its_engine_was_killed(kills):
    sentences = SENTENCES * max(1, kills // 2)
    length = sum(map(length_of, sentences))
    moments = [int(length * (n + 0.5) / (kills + 1)) for n in range(kills)]
    with supervised("slow", command=STAND_IN) as engine:
        listener = await speak_and_kill(engine, sentences, moments)
    assert listener.texts == sentences
    again = [count for count in repeated(listener.pcm, sentences) if count]
    assert len(again) <= kills
    assert sum(again) < kills * frames_of(sentences[0])
    beyond = [silence - restart for silence, restart in listener.silences]
    record(
        "kills",
        kills=kills,
        sentences_heard_again=len(again),
        frames_heard_again=sum(again),
        silence_s_median=round(statistics.median(s for s, _ in listener.silences), 2),
        silence_beyond_the_restart_s_worst=round(max(beyond), 2),
    )
    assert kills < 50 or max(beyond) < 2.0


async def test_a_reply_goes_on_at_the_next_engine():
    listener = Listener()
    with supervised("slow", command=STAND_IN) as engine:
        async with serving() as good:
            urls = [await engine.ready(TIMEOUT_S), good.url]
            async with EngineClient(urls, key=engine.key, timeout=TIMEOUT_S) as client:

                async def connect():
                    return client

                reply = asyncio.create_task(speak(connect, listener, SENTENCES))
                await until(lambda: len(listener.pcm) > length_of(SENTENCES[0]) + FRAME)
                engine.stop(grace=0.0)
                await asyncio.wait_for(reply, 60.0)
            again = [count for count in repeated(listener.pcm, SENTENCES) if count]
            assert len(again) <= 1
            spoken = [text for _, text in good.engine.said]
            assert spoken == SENTENCES[len(SENTENCES) - len(spoken) :], "in their order"
            assert spoken
            await good.settle()


async def test_where_no_engine_comes_back_the_reply_ends_with_a_typed_error(monkeypatch):
    monkeypatch.setattr("csm_tts_plugin.client.reply._RESUME_S", 0.3)
    listener = Listener()
    async with serving(StandInEngine("slow")) as server:
        async with EngineClient(server.url, timeout=TIMEOUT_S) as client:

            async def connect():
                return client

            reply = asyncio.create_task(speak(connect, listener, SENTENCES))
            await until(lambda: listener.pcm)
            await server.state.drain(0.0)
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(reply, LIMIT_S)
        assert listener.texts == SENTENCES[:1]
        await server.settle()


async def test_an_engine_lost_before_the_first_sound_is_told_at_once():
    async with serving() as server:
        server.engine.mode = "stalled"
        listener = Listener()
        async with EngineClient(server.url, timeout=TIMEOUT_S) as client:

            async def connect():
                return client

            reply = asyncio.create_task(speak(connect, listener, SENTENCES))
            await until(lambda: server.engine.utterances)
            server.state.end_sessions()
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(reply, LIMIT_S)
        assert listener.pcm == b""
        await server.settle()


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_reply_of_the_real_engine_goes_on_after_it_was_killed():
    with supervised("tiny") as engine:
        await engine.ready(300.0)
        sentences = ["Hello there, this is the first.", "And this is the second of them."]
        listener = await speak_and_kill(engine, sentences, [3 * FRAME])
    assert listener.texts == sentences
    assert len(listener.pcm) > 10 * FRAME
