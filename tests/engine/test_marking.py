"""The watermark in the engine: its start, per stream, and without cost for other streams."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest

from csm_tts_plugin.audio.detection import SECOND_MARKED, detect
from csm_tts_plugin.audio.watermark import DELAY, marked
from csm_tts_plugin.config import FRAME_SAMPLES, FRAME_SECONDS, EngineConfig
from csm_tts_plugin.engine.api import Audio, Done, Reason, Sampling
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.engine.marking import LATEST, PLAIN, waits_at
from csm_tts_plugin.errors import ConfigError
from tests.engine.tools import PATIENCE, ByHand, say, started

_ROUNDING = 1e-4
"""For samples up to 4; rounding differs between batch sizes."""
LINE = "It was sold again in the winter, and nobody knew why."


def frames(heard):
    return np.stack([event.samples for event in heard.audio])


def one_pass(plain):
    """[n, 1920] -> the same, watermarked in one pass"""
    return marked(plain.reshape(-1)).reshape(-1, FRAME_SAMPLES)


def check(heard, plain):
    """No sample is lost or shifted: unmarked at first, then as in one pass. Returns where the mark
    began."""
    assert heard.frames() == len(plain)
    sound, wanted = frames(heard), one_pass(plain)
    changed = np.abs(sound - plain).max(axis=1) > _ROUNDING
    begin = int(changed.argmax()) if changed.any() else None
    if begin is not None:
        assert np.abs(sound[begin + 1 :] - wanted[begin + 1 :]).max(initial=0.0) < _ROUNDING
    return begin


@pytest.fixture(scope="module")
def plain(small):
    """What the small model says to `LINE` with seed N, unmarked."""
    engine = started(small, slots=1, queue=4)
    known = {}

    def speak(seed, seconds=2.4):
        if seed not in known:
            heard = say(engine, engine.open(), LINE, max_seconds=seconds, sampling=drawn(seed))
            known[seed] = frames(heard.wait())
        return known[seed]

    yield speak
    engine.stop()


def drawn(seed):
    return Sampling(temperature=0.9, top_k=20, seed=seed)


def spoken(hand, seed, conversation=None, **options):
    conversation = conversation or hand.engine.open()
    options = {"max_seconds": 2.4, "sampling": drawn(seed), **options}
    return say(hand.engine, conversation, LINE, **options)


def test_a_file_is_marked_from_its_fifth_frame_on_every_time(small, plain):
    for _ in range(2):
        hand = ByHand(small, slots=2, queue=2, watermark="perth")
        heard = spoken(hand, 1)
        hand.run()
        assert check(heard, plain(1)) == PLAIN


def test_first_audio_is_handed_out_in_the_round_that_draws_it(small):
    moments = {}
    for watermark in ("perth", "off"):
        hand = ByHand(small, slots=1, queue=1, watermark=watermark)
        heard = spoken(hand, 1, live=True)
        rounds = 0
        while not heard.audio:
            assert hand.round()
            rounds += 1
        moments[watermark] = rounds
    assert moments["perth"] == moments["off"]


def test_in_company_each_is_marked_as_alone(small, plain, seed):
    rng = random.Random(seed)
    hand = ByHand(small, slots=3, queue=9, watermark="perth")
    seeds = [rng.randrange(6) for _ in range(9)]
    heard = []
    for one in seeds:
        heard.append(spoken(hand, one, live=False))
        for _ in range(rng.randrange(12)):
            hand.round()
    hand.run()
    assert [check(one, plain(key)) for one, key in zip(heard, seeds, strict=True)] == [PLAIN] * 9


def test_live_streams_in_company_of_a_fast_engine_lose_nothing(small, plain, seed):
    rng = random.Random(seed)
    hand = ByHand(small, slots=3, queue=9, watermark="perth")
    seeds = [rng.randrange(6) for _ in range(6)]
    heard = [spoken(hand, one, live=True) for one in seeds]
    while not hand.free():
        hand.round()
        hand.now += rng.choice([0.0, 0.01, 0.03])
    for one, key in zip(heard, seeds, strict=True):
        begin = check(one, plain(key))
        assert begin is not None
        assert begin <= LATEST


@pytest.mark.parametrize("took", [0.01, 0.04, 0.06])
def test_no_frame_of_a_live_stream_comes_after_its_playing_needs_it(small, plain, took):
    """`took`: seconds that the engine takes per frame, up to three quarters of its duration."""
    hand = ByHand(small, slots=1, queue=1, watermark="perth")
    moments = []

    def listen(event):
        if isinstance(event, Audio):
            moments.append(hand.now)

    heard = spoken(hand, 1, live=True, then=listen)
    while not hand.free():
        hand.now += took
        hand.rounds._delivery.round_took(took)
        hand.round()
    assert check(heard, plain(1)) is not None
    late = [at - moments[0] - FRAME_SECONDS * number for number, at in enumerate(moments)]
    assert max(late) <= 1e-9


def test_an_engine_slower_than_playing_marks_all_the_same(small, plain):
    hand = ByHand(small, slots=1, queue=1, watermark="perth")
    heard = spoken(hand, 1, live=True)
    while not hand.free():
        hand.now += 0.1
        hand.round()
    assert check(heard, plain(1)) == LATEST


def test_a_reply_s_second_sentence_is_marked_from_its_beginning(small):
    sound = {}
    for watermark in ("off", "perth"):
        hand = ByHand(small, slots=1, queue=1, watermark=watermark)
        conversation = hand.engine.open()
        first = spoken(hand, 1, conversation, more=True)
        second = spoken(hand, 2, conversation)
        hand.run()
        sound[watermark] = first, second
    plain = [frames(one) for one in sound["off"]]
    assert check(sound["perth"][0], plain[0]) == PLAIN
    assert check(sound["perth"][1], plain[1]) == 0


def test_a_cancel_ends_it_at_once_and_what_was_held_back_was_never_heard(small):
    hand = ByHand(small, slots=1, queue=1, watermark="perth")
    conversation = hand.engine.open()
    heard = spoken(hand, 1, conversation, live=True, max_seconds=8.0)
    while len(heard.audio) < 10:
        assert hand.round()
    speaking = hand.engine._conversations[conversation].speaking
    assert speaking.drawn >= len(heard.audio) + DELAY
    hand.now += 60.0
    hand.engine.cancel(heard.id)
    hand.round()
    assert heard.reason is Reason.CANCELLED
    assert heard.frames() == len(heard.audio)
    text_and_end = 2
    assert len(hand.context(conversation).turns[-1]) - text_and_end == len(heard.audio)
    again = spoken(hand, 2, conversation)
    hand.run()
    assert again.frames() == 30


def test_speech_shorter_than_the_delay_is_whole(small):
    hand = ByHand(small, slots=1, queue=9, watermark="perth")
    heard = [spoken(hand, 1, max_seconds=n * 0.08 - 0.01, more=True) for n in (1, 2, 3, 5, 7)]
    hand.run()
    assert [one.frames() for one in heard] == [1, 2, 3, 5, 7]
    assert all(isinstance(one.end, Done) for one in heard)


def test_where_it_begins():
    live = {"live": True, "goes_on": False}
    assert waits_at(**live, made=5, frames=1, lead_s=0.31) is None
    assert waits_at(**live, made=5, frames=1, lead_s=0.33) == 0
    assert waits_at(**live, made=0, frames=1, lead_s=1.5) == 0, "it follows another sentence"
    assert waits_at(**live, made=14, frames=8, lead_s=-3.0) == 2
    file = {"live": False, "lead_s": 0.0}
    assert waits_at(**file, goes_on=False, made=2, frames=2) is None
    assert waits_at(**file, goes_on=False, made=2, frames=4) == 2
    assert waits_at(**file, goes_on=True, made=0, frames=1) == 0


def test_off_says_so_and_changes_nothing(small, plain, caplog):
    with caplog.at_level(logging.WARNING, "csm_tts_plugin"):
        hand = ByHand(small, slots=1, queue=1, watermark="off")
    assert "CSM_WATERMARK=off" in caplog.text
    assert hand.engine.info().watermark == "off"
    heard = spoken(hand, 1)
    hand.run()
    assert check(heard, plain(1)) is None


def test_on_is_the_default_and_told(small):
    engine = Engine(EngineConfig(model="small", slots=1, threads=1), checkpoint=small)
    engine.start()
    engine.wait_ready(PATIENCE)
    assert engine.info().watermark == "perth"
    engine.stop()


def test_a_lead_too_short_for_it_is_refused():
    engine = Engine(EngineConfig(model="tiny", max_lead_s=0.2))
    engine.start()
    with pytest.raises(ConfigError, match=r"at least 0\.4 s"):
        engine.wait_ready(PATIENCE)
    engine.stop()


def test_speech_of_tiny_is_detected_and_without_it_not(tiny):
    found = {}
    for watermark in ("perth", "off"):
        engine = started(tiny, slots=1, queue=2, watermark=watermark)
        heard = say(engine, engine.open(), LINE, sampling=Sampling(seed=1)).wait()
        found[watermark] = detect(np.concatenate([event.samples for event in heard.audio]))
        engine.stop()
    assert found["perth"].whole > 0.8
    assert min(found["perth"].seconds[1:]) > SECOND_MARKED
    assert found["off"].whole < 0.3
