"""A TTS is the voice of one call: one conversation, in order, without audio of an old reply."""

from __future__ import annotations

import asyncio
import logging
import os
import random

import numpy as np
import pytest
from livekit.agents import APIStatusError, tokenize

from csm_tts_plugin.errors import ConfigError, RequestError, TextError, VoiceError
from csm_tts_plugin.tts import TTS
from csm_tts_plugin.voices.store import VoiceStore
from csm_tts_plugin.voices.voice import Consent, Voice
from livekit import rtc
from tests.livekit.speech import PATIENT, Events, RecordingEngine, drain, speak
from tests.server.conftest import serving
from tests.support.waiting import until

SEED = int(os.environ.get("TEST_SEED", "20240611"))
ONE, TWO, THREE = "The first sentence is here.", "Then comes the second one.", "And a third."


def tone(seconds: float = 1.0, rate: int = 24_000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 180 * np.arange(int(seconds * rate)) / rate)).astype("f4")


def voice(speaker: str) -> Voice:
    consent = Consent(speaker=speaker, statement="For this test.", date="2025-01-31")
    return Voice.from_audio(tone(), 24_000, transcript=f"I am {speaker}.", consent=consent)


# Streaming text


@pytest.mark.parametrize("piece", ["Sure.", "Sure. ", "Sure!\n", "Why? I"])
async def test_the_first_sentence_is_said_before_the_next_has_come(server, speaker, piece):
    async with speaker.stream(conn_options=PATIENT) as stream:
        stream.push_text(piece)
        await until(lambda: server.engine.said)
        assert server.engine.said[0][1] == piece.split()[0]
        first = await anext(stream)
        assert first.frame.duration > 0


async def test_the_next_sentences_are_said_while_the_first_is_spoken(server, speaker):
    server.engine.mode = "stalled"
    async with speaker.stream(conn_options=PATIENT) as stream:
        stream.push_text(f"{ONE} {TWO} {THREE}")
        stream.end_input()
        await until(lambda: len(server.engine.said) == 3)
    await until(lambda: server.engine.utterances == 0)


async def test_a_long_reply_does_not_crowd_the_engine(server, speaker):
    server.engine.mode = "stalled"
    async with speaker.stream(conn_options=PATIENT) as stream:
        stream.push_text("Yes. " * 500)
        stream.end_input()
        await until(lambda: len(server.engine.said) >= 4)
        for _ in range(500):  # then all that needs no answer has been sent
            await asyncio.sleep(0)
        assert len(server.engine.said) < 10
    server.engine.mode = "normal"
    speech = await speak(speaker, "Yes. " * 100)
    assert len(speech.samples) == 100 * 1_920


async def test_letters_make_the_same_sentences_as_a_whole(server, speaker):
    text = f"{ONE} It costs 3.5 dollars, Mr. Smith. {THREE}"
    whole = await speak(speaker, text)
    spelled = await speak(speaker, *text)
    said = [one for _, one in server.engine.said]
    assert said[: len(said) // 2] == said[len(said) // 2 :]
    assert len(whole.samples) == len(spelled.samples)


@pytest.mark.parametrize("rate", [8_000, 24_000])
async def test_transcripts_are_timed_in_order_and_complete(server, rate):
    async with TTS(engine_url=server.url, sample_rate=rate) as speaker:
        for how in ("stream", "synthesize"):
            speech = await speak(speaker, f" {ONE} {TWO}\n\n{THREE} ", how=how)
            assert "".join(speech.transcripts) == f" {ONE} {TWO}\n\n{THREE}"
            starts = [text.start_time for text in speech.transcripts]
            assert starts[0] == 0.0
            lengths = [len(ONE) // 4 * 0.08, len(TWO) // 4 * 0.08]
            # The resampler holds back 5 ms.
            assert np.diff(starts) == pytest.approx(lengths, abs=0.006)
        assert speaker.capabilities.aligned_transcript


async def test_a_tokenizer_of_the_users_takes_the_place_of_ours(server):
    tokenizer = tokenize.basic.SentenceTokenizer(min_sentence_len=40)
    async with TTS(engine_url=server.url, tokenizer=tokenizer) as speaker:
        await speak(speaker, f"{ONE} ", f"{TWO} ", THREE)
        assert server.engine.said[0][1] == f"{ONE} {TWO}"
        await speak(speaker, f"{ONE} {TWO} {THREE}", how="synthesize")
        assert server.engine.said[0][1] == server.engine.said[2][1]


# One conversation


async def test_replies_share_one_conversation(server, speaker, events):
    for _ in range(3):
        await speak(speaker, ONE)
    await speak(speaker, TWO, how="synthesize")
    assert len({one for one, _ in server.engine.said}) == 1
    assert [metric.connection_reused for metric in events.metrics] == [False, True, True, True]


async def test_prewarm_opens_it_before_the_first_reply(server, speaker, events):
    speaker.prewarm()
    await until(lambda: len(server.engine.conversations) == 1)
    await speak(speaker, ONE)
    assert len(server.engine.conversations) == 1
    assert events.metrics[0].connection_reused


def test_prewarm_needs_no_event_loop():
    TTS(engine_url="http://127.0.0.1:1").prewarm()


async def test_prewarm_of_an_engine_that_is_not_there_disturbs_nobody(caplog):
    caplog.set_level(logging.WARNING)
    async with TTS(engine_url="http://127.0.0.1:1") as speaker:
        speaker.prewarm()
        await until(lambda: speaker._call._ahead.done())
    assert caplog.text == ""


async def test_two_replies_at_once_are_both_whole(server, speaker):
    first, second = await asyncio.gather(speak(speaker, ONE), speak(speaker, TWO))
    assert first.sounds_like(ONE)
    assert second.sounds_like(TWO)


async def test_calls_do_not_share_a_conversation(server):
    async with TTS(engine_url=server.url) as one, TTS(engine_url=server.url) as other:
        first, second = await asyncio.gather(speak(one, ONE), speak(other, TWO))
    assert first.sounds_like(ONE)
    assert second.sounds_like(TWO)
    assert len({id for id, _ in server.engine.said}) == 2


async def test_closing_ends_open_streams_and_the_conversation(server):
    server.engine.mode = "slow"
    speaker = TTS(engine_url=server.url)
    stream = speaker.stream(conn_options=PATIENT)
    stream.push_text(ONE)
    await until(lambda: server.engine.said)
    await speaker.aclose()
    await until(lambda: server.engine.idle)
    assert stream._task.done()


# Barge-in


async def test_a_new_reply_never_carries_the_sound_of_a_cancelled_one(server, speaker):
    print("seed", SEED)
    rng = random.Random(SEED)
    server.engine.frame_s = 0.003
    for turn in range(25):
        old, new = f"Old reply number {turn} that goes on for long. " * 3, f"New reply {turn} now."
        async with speaker.stream(conn_options=PATIENT) as stream:
            stream.push_text(old)
            if rng.random() < 0.5:
                stream.end_input()
            for _ in range(rng.randrange(4)):
                await anext(stream)
            await asyncio.sleep(rng.random() * 0.02)
        speech = await speak(speaker, new)
        assert speech.sounds_like(new)
        assert len(speech.samples) == len(new) // 4 * 1_920
    assert len(server.engine.conversations) == 1
    await until(lambda: server.engine.utterances == 0)


async def test_a_reply_cancelled_while_its_conversation_opens_leaves_nothing(server):
    for delay in (0.0, 0.001, 0.003, 0.01):
        async with TTS(engine_url=server.url) as speaker:
            stream = speaker.stream(conn_options=PATIENT)
            stream.push_text(ONE)
            await asyncio.sleep(delay)
            await stream.aclose()
            assert (await speak(speaker, TWO)).sounds_like(TWO)


# Options


async def test_options_take_effect_with_the_next_sentence(server, speaker):
    ada, bob = voice("Ada"), voice("Bob")
    speaker.update_options(voice=ada, temperature=0.5, top_k=10, seed=3, max_seconds=9.0)
    server.engine.mode = "slow"
    async with speaker.stream(conn_options=PATIENT) as stream:
        stream.push_text(f"{ONE} ")
        await until(lambda: server.engine.said)
        speaker.update_options(voice=bob, temperature=0.9)
        stream.push_text(TWO)
        stream.end_input()
        await drain(stream)
    server.engine.mode = "normal"
    await speak(speaker, THREE)
    speaker.update_options(voice=None)
    await speak(speaker, ONE, how="synthesize")
    heard = server.engine.heard
    assert [one.voice for one in heard] == [ada.key, bob.key, bob.key, None]
    assert [one.sampling.temperature for one in heard] == [0.5, 0.9, 0.9, 0.9]
    assert {(one.sampling.top_k, one.sampling.seed, one.max_seconds) for one in heard} == {
        (10, 3, 9.0)
    }
    assert len({one.conversation for one in heard}) == 1


async def test_a_stored_voice_is_named_by_its_id(tmp_path):
    VoiceStore(tmp_path).add(voice("Ada"), id="ada")
    async with serving(RecordingEngine(), voices_dir=tmp_path) as server:
        async with TTS(engine_url=server.url, voice="ada") as speaker:
            await speak(speaker, ONE)
            assert server.engine.heard[0].voice == voice("Ada").key
            speaker.update_options(voice="nobody")
            events = Events().watch(speaker)
            with pytest.raises(APIStatusError, match="no voice nobody"):
                await speak(speaker, TWO)
            assert len(events.errors) == 1
            speaker.update_options(voice="ada")
            assert (await speak(speaker, THREE)).sounds_like(THREE)
        await server.settle()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"voice": "../ada"}, VoiceError),
        ({"voice": 7}, VoiceError),
        ({"temperature": -1.0}, ConfigError),
        ({"temperature": float("nan")}, ConfigError),
        ({"top_k": 0}, ConfigError),
        ({"seed": -1}, ConfigError),
        ({"max_seconds": 0.0}, ConfigError),
        ({"sample_rate": 44_100}, ConfigError),
        ({"engine_url": "ftp://example.org"}, ConfigError),
    ],
)
async def test_options_that_cannot_work_are_refused_at_once(server, speaker, options, error):
    with pytest.raises(error):
        TTS(**({"engine_url": server.url} | options))
    if not {"sample_rate", "engine_url"} & options.keys():
        before = speaker._call.manner
        with pytest.raises(error):
            speaker.update_options(**options)
        assert speaker._call.manner is before


async def test_the_environment_names_the_engine_and_its_key(monkeypatch):
    async with serving(key="the key") as server:
        monkeypatch.setenv("CSM_ENGINE_URL", f"http://127.0.0.1:1, {server.url}")
        monkeypatch.setenv("CSM_ENGINE_KEY", "the key")
        monkeypatch.setenv("CSM_MODEL", "tiny")
        async with TTS() as speaker:
            assert speaker.model == "tiny"
            assert (await speak(speaker, ONE)).sounds_like(ONE)
        await server.settle()


# Turns


async def test_turns_reach_the_engine_in_order_before_the_next_reply(server, speaker):
    speaker.add_turn("caller", "Hello there.", tone(1.0, 16_000), 16_000)
    speaker.add_turn("operator", "Hold on.")
    await speak(speaker, ONE)
    speaker.add_turn("caller", "Thank you.", (tone() * 32_767).astype(np.int16), 24_000)
    await speak(speaker, TWO)
    first, second = server.engine.heard
    assert first.turns == [("caller", "Hello there."), ("operator", "Hold on.")]
    assert second.turns == [*first.turns, ("caller", "Thank you.")]
    assert [audio is None for audio in second.audio] == [False, True, False]
    for audio in (second.audio[0], second.audio[2]):
        assert np.max(np.abs(audio - tone())[500:-500]) < 1e-3


async def test_a_turn_is_told_before_there_is_a_reply(server, speaker):
    frame = rtc.AudioFrame(
        (tone(1.0, 48_000) * 32_767).astype(np.int16).tobytes(), 48_000, 1, 48_000
    )
    speaker.add_turn("caller", "Hello there.", frame)
    await until(lambda: [c for c in server.engine.conversations.values() if c.turns])
    assert server.engine.said == []


async def test_adding_a_turn_does_not_wait(server, speaker):
    began = asyncio.get_running_loop().time()
    speaker.add_turn("caller", "A long story.", np.zeros((60 * 48_000, 2), "f4"), 48_000)
    assert server.engine.conversations == {}
    print(f"{asyncio.get_running_loop().time() - began:.3f} s for a minute of stereo")
    await speak(speaker, ONE)
    assert server.engine.heard[0].turns == [("caller", "A long story.")]


async def test_a_turn_whose_sound_is_useless_is_kept_as_words(server, speaker):
    for useless in (np.zeros(24_000, "f4"), tone(0.1), tone() * np.nan, b""):
        speaker.add_turn("caller", "Hm.", useless, 24_000)
    await speak(speaker, ONE)
    assert server.engine.heard[0].turns == [("caller", "Hm.")] * 4
    assert server.engine.heard[0].audio == [None] * 4


@pytest.mark.parametrize(
    ("turn", "error"),
    [
        (("caller", " "), TextError),
        (("caller", "x" * 2_001), TextError),
        (("", "Hello."), RequestError),
        (("a\nb", "Hello."), RequestError),
        (("caller", "Hello.", tone()), RequestError),
        (("caller", "Hello.", b"odd", 8_000), RequestError),
    ],
)
async def test_a_turn_that_is_none_is_refused(speaker, turn, error):
    with pytest.raises(error):
        speaker.add_turn(*turn)


# Lost conversations and engines, withdrawn voices


async def test_a_reply_whose_engine_is_lost_goes_on_at_the_next_one():
    lost, spare = RecordingEngine("slow"), RecordingEngine()
    async with serving(spare) as second:
        async with serving(lost) as first:
            speaker = TTS(engine_url=[first.url, second.url])
            events = Events().watch(speaker)
            speaker.add_turn("caller", "Remember me.")
            stream = speaker.stream(conn_options=PATIENT)
            stream.push_text(f"{ONE} {TWO}")
            stream.end_input()
            await anext(stream)
        rest = await drain(stream)
        await stream.aclose()
        assert events.errors == []
        assert rest.sounds_like(TWO, begin=0.8)
        assert [heard.text for heard in spare.heard] == [ONE, TWO]
        assert spare.heard[0].turns == [("caller", "Remember me.")]
        await speaker.aclose()
        await second.settle()


async def test_a_conversation_that_was_lost_between_replies_is_not_noticed(server, speaker):
    speaker.add_turn("caller", "Remember me.")
    await speak(speaker, ONE)
    server.state.end_sessions()
    await until(lambda: speaker._call._open is None)
    assert (await speak(speaker, TWO)).sounds_like(TWO)
    assert server.engine.heard[1].turns == [("caller", "Remember me.")]
    assert server.engine.heard[0].conversation != server.engine.heard[1].conversation


async def test_whoever_took_their_voice_back_is_not_told_of_again(server, speaker):
    speaker.update_options(voice=voice("Ada"))
    speaker.add_turn("Ada", "My own words.")
    speaker.add_turn("operator", "Hold on.")
    await speak(speaker, ONE)
    speaker.update_options(voice=None)
    await speak(speaker, TWO)
    server.state.end_sessions()
    await until(lambda: speaker._call._open is None)
    await speak(speaker, THREE)
    assert server.engine.heard[2].turns == [("operator", "Hold on.")]


async def test_no_text_sound_or_name_of_a_caller_is_logged(server, speaker, caplog):
    caplog.set_level(logging.DEBUG)
    speaker.update_options(voice=voice("Canary"))
    speaker.add_turn("caller", "canary turn", tone(0.1), 24_000)
    await speak(speaker, "canary text one. ", "canary text two.")
    server.engine.mode, server.engine.fail_after = "failing", 2
    with pytest.raises(APIStatusError):
        await speak(speaker, "canary again, and long enough to fail.")
    ours = "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("csm_tts")
    )
    assert "canary" not in (ours + repr(speaker._call.manner) + repr(speaker._call)).lower()
