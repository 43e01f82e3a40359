"""Speech over a real socket arrives complete, in order, and only at its own client."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import OUTPUT_RATES
from tests.server.conftest import limits_of, listen, serving, speaks, wave
from tests.server.raw import raw
from tests.support.stand_in_engine import AMPLITUDE, StandInEngine, frames_of
from tests.support.waiting import until

LINE = "It is a fine day to be heard from start to end."


@pytest.mark.parametrize("rate", OUTPUT_RATES)
async def test_a_sentence_arrives_whole_at_the_asked_rate(client, rate):
    conversation = await client.conversation(rate=rate)
    utterance = await conversation.say(LINE)
    chunks = await listen(utterance)
    samples = wave(chunks)
    assert len(samples) == frames_of(LINE) * rate * 80 // 1000
    assert speaks(chunks, LINE, rate)
    assert abs(np.max(np.abs(samples)) - AMPLITUDE) < 0.02
    assert [chunk.samples * 2 for chunk in chunks] == [len(chunk.pcm) for chunk in chunks]
    assert utterance.result.reason == "end"
    assert utterance.result.frames == frames_of(LINE)
    assert utterance.result.timings["total"] >= utterance.result.timings["first_audio"]


async def test_chunks_count_their_frames(client):
    conversation = await client.conversation()
    chunks = await listen(await conversation.say(LINE))
    assert [chunk.frame for chunk in chunks] == list(range(frames_of(LINE)))


async def test_sentences_are_spoken_in_the_order_they_were_said(server, client):
    conversation = await client.conversation()
    texts = [f"This is the sentence with the number {n}." for n in range(5)]
    utterances = [await conversation.say(text, more=text != texts[-1]) for text in texts]
    heard = await asyncio.gather(*map(listen, utterances))
    assert all(speaks(chunks, text) for chunks, text in zip(heard, texts, strict=True))
    assert [text for _, text in server.engine.said] == texts


async def test_a_loud_voice_is_clipped_not_wrapped(monkeypatch, client):
    monkeypatch.setattr("tests.support.stand_in_engine.AMPLITUDE", 3.0)
    conversation = await client.conversation()
    samples = wave(await listen(await conversation.say(LINE)))
    assert np.max(np.abs(np.diff(samples))) < 1.9  # wrapping would jump by 2
    assert np.mean(np.abs(samples) > 0.99) > 0.5


async def test_what_is_asked_reaches_the_engine(server, client):
    conversation = await client.conversation(temperature=0.5, top_k=7, seed=11)
    await conversation.turn("caller", "Hello, who is there?")
    await listen(await conversation.say("It is me."))
    held = next(iter(server.engine.conversations.values()))
    assert [(turn.speaker, turn.text) for turn in held.turns] == [
        ("caller", "Hello, who is there?")
    ]
    assert (held.sampling.temperature, held.sampling.top_k, held.sampling.seed) == (0.5, 7, 11)


async def test_cancel_ends_the_iteration_and_frees_the_engine(server, client):
    server.engine.mode = "slow"
    conversation = await client.conversation()
    utterance = await conversation.say(LINE)
    heard = []
    async for chunk in utterance:
        heard.append(chunk)
        await utterance.cancel()
    assert len(heard) == 1
    await until(lambda: utterance.result is not None)
    assert utterance.result.reason == "cancelled"
    assert utterance.result.frames < frames_of(LINE)
    assert server.engine.utterances == 0
    server.engine.mode = "normal"
    assert speaks(await listen(await conversation.say("The next one.")), "The next one.")


async def test_breaking_out_of_the_iteration_cancels_in_the_engine(server, client):
    server.engine.mode = "slow"
    conversation = await client.conversation()
    async for _ in await conversation.say(LINE):
        break
    await until(lambda: server.engine.cancelled == [LINE])


async def test_cancelling_the_listening_task_cancels_in_the_engine(server, client):
    server.engine.mode = "stalled"
    conversation = await client.conversation()
    task = asyncio.create_task(listen(await conversation.say(LINE)))
    await until(lambda: server.engine.utterances == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: server.engine.cancelled == [LINE])


async def test_a_cancelled_sentence_leaves_those_after_it_alone(server, client):
    server.engine.mode = "slow"
    conversation = await client.conversation()
    first = await conversation.say(LINE, more=True)
    second = await conversation.say("Still here.")
    await first.cancel()
    assert await listen(first) == []
    assert speaks(await listen(second), "Still here.")


async def test_many_clients_never_hear_each_other(server):
    seconds = frames_of(LINE) * 0.08

    async def call(number):
        async with EngineClient(server.url) as client:
            conversation = await client.conversation(rate=8000)
            for turn in range(3):
                text = f"Caller {number} says {turn}, and it goes on for a while longer."
                if (number + turn) % 3 == 0:
                    async for _ in await conversation.say(LINE):
                        break
                chunks = await listen(await conversation.say(text))
                assert speaks(chunks, text, 8000)

    async with asyncio.timeout(60 + seconds):
        await asyncio.gather(*(call(number) for number in range(8)))


async def test_closing_a_conversation_frees_it_and_ends_what_it_says(server, client):
    server.engine.mode = "stalled"
    conversation = await client.conversation()
    task = asyncio.create_task(listen(await conversation.say(LINE)))
    await until(lambda: server.engine.utterances == 1)
    await conversation.aclose()
    assert await task == []
    await until(lambda: server.engine.idle)


async def test_closing_the_client_closes_every_conversation(server):
    client = EngineClient(server.url)
    for _ in range(5):
        await client.conversation()
    assert len(server.engine.conversations) == 5
    await client.aclose()
    await until(lambda: server.engine.idle)


async def test_a_dropped_socket_frees_its_conversation_at_once():
    """The client did not ask to keep it; with these limits, only the lost socket can free it."""
    limits = limits_of(keep_s=3600.0, heartbeat_s=3600.0)
    async with (
        serving(StandInEngine("stalled"), limits=limits) as server,
        raw(server) as socket,
    ):
        await socket.send_json({"type": "open"})
        await socket.receive_json()
        await socket.send_json({"type": "say", "id": "1", "text": LINE})
        await until(lambda: server.engine.utterances == 1)
        socket._response.connection.transport.abort()
        await until(lambda: server.engine.idle)


async def test_status_tells_how_full_the_engine_is(server, client):
    server.engine.mode = "stalled"
    conversation = await client.conversation()
    await conversation.say(LINE)
    await until(lambda: server.engine.utterances == 1)
    status = await client.status()
    assert status["ready"] is True
    assert (status["slots"], status["speaking"], status["conversations"]) == (8, 1, 1)


async def test_metrics_count_what_was_spoken(server, client):
    conversation = await client.conversation()
    await listen(await conversation.say(LINE))
    async with client._http().get(f"{server.url}/metrics") as answer:
        text = await answer.text()
    assert 'csm_utterances_total{reason="end"} 1.0' in text
    assert "csm_first_audio_seconds_count 1.0" in text
    assert f"csm_frame_gap_seconds_count {frames_of(LINE) - 1}.0" in text
    assert "csm_conversations 1.0" in text


async def test_a_second_engine_is_tried_when_the_first_is_away_or_full():
    async with serving(StandInEngine("not-ready")) as loading, serving() as good:
        async with EngineClient(["http://127.0.0.1:9", loading.url, good.url]) as client:
            conversation = await client.conversation()
            assert speaks(await listen(await conversation.say(LINE)), LINE)
            assert len(good.engine.said) == 1
        await good.settle()
