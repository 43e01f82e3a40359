"""The engine with many callers: cancels, closing, lead and life cycle."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from csm_tts_plugin.config import FRAME_SECONDS
from csm_tts_plugin.engine.api import Audio, Failed, Reason, Turn
from csm_tts_plugin.engine.core import Engine, EngineConfig
from csm_tts_plugin.errors import (
    RequestError,
    UnavailableError,
)
from tests.engine.tools import (
    PATIENCE,
    TEXTS,
    ByHand,
    Heard,
    alone,
    say,
    small_checkpoint,
    started,
    voice,
)

# Cancelling and closing


def test_a_cancel_ends_by_the_next_frame_and_frees_the_slot(small):
    hand = ByHand(small, slots=1, queue=1)
    first, second = hand.engine.open(), hand.engine.open()
    heard = say(hand.engine, first, "A long sentence that will not be finished.")
    waiting = say(hand.engine, second, max_seconds=0.4)
    for _ in range(4):
        hand.round()
    made = len(heard.audio)
    assert made > 1
    hand.engine.cancel(heard.id)
    hand.round()
    assert heard.reason is Reason.CANCELLED
    assert heard.frames() == made
    assert len(waiting.audio) == 1, "the slot goes on in the same round"
    hand.run()
    assert waiting.frames() == 5
    assert hand.free()


def test_a_cancel_from_the_sink_ends_after_that_very_frame(small):
    hand = ByHand(small, slots=1, queue=1)
    heard = say(
        hand.engine,
        hand.engine.open(),
        then=lambda event: hand.engine.cancel(event.utterance),
    )
    hand.run()
    assert (heard.frames(), heard.reason) == (1, Reason.CANCELLED)


def test_a_sentence_that_only_waits_can_be_cancelled(small):
    hand = ByHand(small, slots=1, queue=2)
    conversation = hand.engine.open()
    first = say(hand.engine, conversation, max_seconds=0.4)
    second = say(hand.engine, conversation, max_seconds=0.4)
    third = say(hand.engine, conversation, max_seconds=0.4)
    hand.round()
    hand.engine.cancel(second.id)
    hand.run()
    assert [heard.reason for heard in (first, second, third)] == [
        Reason.LENGTH,
        Reason.CANCELLED,
        Reason.LENGTH,
    ]
    assert second.frames() == 0
    assert len(hand.context(conversation).turns) == 2, "what was not spoken is not remembered"


def test_what_was_cancelled_while_its_prompt_was_read_never_was(small):
    hand = ByHand(small, slots=1, queue=1)
    conversation = hand.engine.open()
    long = say(hand.engine, conversation, "much to read " * 20)
    hand.round()
    assert not long.audio
    hand.engine.cancel(long.id)
    hand.run()
    assert len(hand.context(conversation)) == 0
    heard = say(hand.engine, conversation, "Now this.", max_seconds=0.8)
    hand.run()
    np.testing.assert_array_equal(heard.codes, alone(small, "Now this.", 10))


def test_unknown_and_finished_ids_are_ignored(small):
    hand = ByHand(small, slots=1, queue=1)
    conversation = hand.engine.open()
    heard = say(hand.engine, conversation, max_seconds=0.2)
    hand.run()
    for id in ("nobody", heard.id, ""):
        hand.engine.cancel(id)
        hand.engine.close(id)
    hand.run()
    assert len(heard.events) == heard.frames() + 1
    assert hand.engine.status().conversations == 1


def test_closing_cancels_what_is_spoken_and_what_waits_and_frees_everything(small):
    hand = ByHand(small, slots=1, queue=4)
    conversation, other = hand.engine.open(voice("gone", private=True)), hand.engine.open()
    heard = [say(hand.engine, conversation, max_seconds=4) for _ in range(3)]
    beside = say(hand.engine, other, max_seconds=0.4)
    while not heard[0].audio:
        hand.round()
    row = hand.seat(conversation).row
    hand.engine.close(conversation)
    hand.round()
    assert [one.reason for one in heard] == [Reason.CANCELLED] * 3
    with pytest.raises(RequestError, match="no such conversation"):
        say(hand.engine, conversation)
    hand.run()
    assert beside.frames() == 5
    assert hand.engine.status().conversations == 1
    assert hand.free()
    assert row is not None
    hand.engine.close(other)
    hand.run()
    assert not any(tensor[:1].any() for tensor in hand.runner.state.keys)
    assert not hand.rounds._voices
    assert not hand.runner._voices


def test_700_cancels_at_random_moments_leave_all_slots_free_and_survivors_exact(seed):
    checkpoint = small_checkpoint(6, context=128, codebooks=3)
    expected = {text: alone(checkpoint, text, 6) for text in TEXTS}
    rng = random.Random(seed)
    hand = ByHand(checkpoint, slots=4, queue=4)
    alive: list[tuple[str, str, Heard, int | None]] = []
    cancelled = survived = 0
    while cancelled < 700:
        while len(alive) < 8:
            text = rng.choice(TEXTS)
            conversation = hand.engine.open()
            heard = say(hand.engine, conversation, text, max_seconds=0.48)
            leave = rng.randrange(8) if rng.random() < 0.85 else None
            alive.append((conversation, text, heard, leave))
        for _, _, heard, leave in alive:
            if leave is not None and len(heard.audio) >= leave and rng.random() < 0.7:
                hand.engine.cancel(heard.id)
        hand.round()
        for stream in [stream for stream in alive if stream[2].over]:
            alive.remove(stream)
            conversation, text, heard, _ = stream
            if frames := heard.frames():
                np.testing.assert_array_equal(heard.codes, expected[text][:frames])
            cancelled += heard.reason is Reason.CANCELLED
            survived += heard.reason is not Reason.CANCELLED
            hand.engine.close(conversation)
    hand.run()
    for conversation, *_ in alive:
        hand.engine.close(conversation)
    hand.run()
    assert survived > 50
    assert hand.free()
    assert hand.engine.status().conversations == 0
    assert hand.rounds._scheduler._rows == [None] * len(hand.rounds._scheduler._rows)


def call(engine: Engine, rng: random.Random, expected: dict[str, np.ndarray]) -> None:
    """One call of one sentence, perhaps cancelled at a random frame, checked against `expected`."""
    text, leaves_at = rng.choice(TEXTS), rng.choice([0, 1, 2, 3, 4, 5, None, None])
    plain = rng.random() < 0.8

    def leave(event):
        if isinstance(event, Audio) and event.frame == leaves_at:
            engine.cancel(event.utterance)

    conversation = engine.open(None if plain else voice("v", 0.6))
    heard = say(engine, conversation, text, max_seconds=0.48, then=leave)
    if rng.random() < 0.2:
        engine.cancel(heard.id)
    heard.wait()
    if heard.frames() and plain:
        np.testing.assert_array_equal(heard.codes, expected[text][: len(heard.audio)])
    assert heard.reason in (Reason.CANCELLED, Reason.LENGTH)
    engine.close(conversation)


def test_300_calls_from_many_threads_leave_all_slots_free_and_survivors_exact(seed):
    checkpoint = small_checkpoint(6, context=128)
    expected = {text: alone(checkpoint, text, 6) for text in TEXTS}
    engine = started(checkpoint, slots=4, queue=8)

    def calls(number: int) -> None:
        rng = random.Random(seed + number)
        for _ in range(75):
            call(engine, rng, expected)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(calls, range(4), timeout=PATIENCE))
    say(engine, engine.open(), max_seconds=0.2).wait()
    status = engine.status()
    engine.stop()
    assert (status.ready, status.speaking, status.queued, status.conversations) == (True, 0, 0, 1)


# Lead


def test_a_live_stream_is_never_further_ahead_than_its_lead(small, seed):
    rng = random.Random(seed)
    hand = ByHand(small, slots=4, queue=8, max_lead_s=0.6)
    made: dict[str, list[float]] = {}

    def watch(conversation):
        def heard(event):
            if isinstance(event, Audio):
                made[conversation].append(hand.now)

        return heard

    for _ in range(5):
        conversation = hand.engine.open()
        made[conversation] = []
        for _ in range(3):
            say(
                hand.engine,
                conversation,
                max_seconds=1.2,
                live=True,
                more=True,
                then=watch(conversation),
            )
    while not hand.free():
        if not hand.round():
            hand.now += rng.choice([0.01, 0.1, 1.5])
    for moments in made.values():
        assert len(moments) == 3 * 15
        play_end = 0.0
        for moment in moments:
            play_end = max(play_end, moment) + FRAME_SECONDS
            assert play_end - moment <= 0.6 + FRAME_SECONDS + 1e-9


def test_without_live_nothing_holds_speech_back(small):
    hand = ByHand(small, slots=1, queue=0, max_lead_s=0.2)
    heard = say(hand.engine, hand.engine.open(), max_seconds=4.0, live=False)
    while hand.round():
        pass
    assert heard.frames() == 50


# Life cycle


def test_stopping_fails_what_is_left_and_ends_the_thread(small):
    before = set(threading.enumerate())
    engine = started(small, slots=1, queue=4, max_lead_s=0.3)
    heard = [say(engine, engine.open(), "Words. " * 20, live=True) for _ in range(3)]
    engine.stop()
    for one in heard:
        one.wait()
        assert isinstance(one.end, Failed)
        assert isinstance(one.end.error, UnavailableError)
    assert set(threading.enumerate()) <= before
    with pytest.raises(UnavailableError, match="stopped"):
        engine.open()
    assert not engine.status().ready
    engine.stop()


def test_an_engine_that_never_started_can_be_stopped_and_asked():
    engine = Engine(EngineConfig(model="tiny"))
    assert engine.info() is None
    assert not engine.status().ready
    with pytest.raises(UnavailableError, match="not started"):
        engine.open()
    engine.stop()


def test_info_and_status_say_what_it_is(small):
    engine = started(small, slots=3, queue=5, max_context=300)
    info, status = engine.info(), engine.status()
    engine.stop()
    assert info is not None
    assert (info.device, info.dtype, info.codebooks, info.max_context) == ("cpu", "float32", 4, 300)
    assert info.parameters > 0
    assert (status.ready, status.detail, status.slots, status.queue) == (True, "ready", 3, 5)
    with pytest.raises(RuntimeError, match="once"):
        engine.start()


def test_timings_are_in_order(engine):
    conversation = engine.open()
    timings = say(engine, conversation, max_seconds=0.4).wait().end.timings
    engine.close(conversation)
    assert 0 <= timings.queued <= timings.prefill <= timings.first_audio <= timings.total


def test_sentences_of_a_conversation_are_spoken_in_their_order(small):
    hand = ByHand(small, slots=3, queue=3)
    conversation, order = hand.engine.open(), []
    for number in range(6):
        say(
            hand.engine,
            conversation,
            f"Number {number}.",
            max_seconds=0.16,
            then=lambda event, number=number: order.append(number),
        )
    hand.run()
    assert order == sorted(order)
    assert set(order) == set(range(6))


def test_nothing_grows_with_the_number_of_finished_utterances(small):
    hand = ByHand(small, slots=2, queue=2)

    def held() -> tuple[int, ...]:
        rounds = hand.rounds
        return (
            len(hand.engine._conversations),
            len(hand.engine._inbox),
            len(list(rounds._scheduler.seats())),
            sum(seat is not None for seat in rounds._scheduler._rows),
            len(rounds._voices),
            len(hand.runner._voices),
        )

    for number in range(120):
        conversation = hand.engine.open(voice(f"v{number}", 0.5, private=True, seed=number))
        hand.engine.add_turn(conversation, Turn("someone", "hello"))
        say(hand.engine, conversation, max_seconds=0.1)
        hand.run()
        hand.engine.close(conversation)
        hand.run()
        assert held() == (0, 0, 0, 0, 0, 0)


def test_references_of_many_callers_are_kept_in_a_bounded_number(small):
    hand = ByHand(small, slots=1, queue=2)
    for number in range(80):
        conversation = hand.engine.open(voice(f"v{number}", 0.5, seed=number))
        say(hand.engine, conversation, max_seconds=0.05)
        hand.run()
        hand.engine.close(conversation)
        hand.run()
    assert len(hand.rounds._voices) <= 64
    assert len(hand.runner._voices) <= 32
