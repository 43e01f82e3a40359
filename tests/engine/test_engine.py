"""What many callers may rely on: cancels, refusals, failures that stay with whom they belong to."""

from __future__ import annotations

import contextlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from csm_tts_plugin.config import FRAME_SECONDS, Limits
from csm_tts_plugin.engine.api import Audio, Done, Failed, Reason, Sampling, Turn, VoicePrompt
from csm_tts_plugin.engine.core import Engine, EngineConfig
from csm_tts_plugin.errors import (
    AudioError,
    BusyError,
    ConfigError,
    EngineError,
    NumericError,
    RequestError,
    TextError,
    UnavailableError,
    VoiceError,
)
from tests.engine.tools import (
    GREEDY,
    PATIENCE,
    ByHand,
    Heard,
    noise,
    say,
    small_checkpoint,
    started,
    truth,
    voice,
)


def alone(checkpoint, text: str, frames: int) -> np.ndarray:
    """What `generate` says to `text` as a conversation's first sentence."""
    hand = ByHand(checkpoint, slots=1, queue=0)
    return truth(checkpoint.model, hand.engine._writer.turn(0, text), frames)


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


TEXTS = ("One.", "Two.", "And three.", "Four of them.", "Five")


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


# Refusing


def test_exactly_slots_and_queue_are_accepted_and_the_rest_refused_at_once(small):
    hand = ByHand(small, slots=4, queue=4)
    accepted, refusals = [], []
    for _ in range(64):
        conversation = hand.engine.open()
        try:
            accepted.append(say(hand.engine, conversation, max_seconds=0.2))
        except BusyError as error:
            refusals.append(error)
    assert (len(accepted), len(refusals)) == (8, 56)
    assert all(error.retry_after > 0 and error.retryable for error in refusals)
    hand.round()
    status = hand.engine.status()
    assert (status.slots, status.queue, status.speaking, status.queued) == (4, 4, 4, 4)
    hand.run()
    assert [heard.frames() for heard in accepted] == [3] * 8
    assert hand.free()


def test_a_conversation_has_only_so_many_sentences_waiting(small):
    hand = ByHand(small, limits=Limits(utterances_per_conversation=3), slots=1, queue=0)
    conversation = hand.engine.open()
    for _ in range(3):
        say(hand.engine, conversation)
    with pytest.raises(RequestError, match="3 sentences"):
        say(hand.engine, conversation)


BAD_SAYS = [
    ({"text": ""}, TextError),
    ({"text": " \n\t"}, TextError),
    ({"text": "x" * 2_001}, TextError),
    ({"max_seconds": 0.0}, RequestError),
    ({"max_seconds": -1.0}, RequestError),
    ({"max_seconds": float("nan")}, RequestError),
    ({"max_seconds": float("inf")}, RequestError),
    ({"sampling": Sampling(temperature=float("nan"))}, RequestError),
    ({"sampling": Sampling(temperature=-0.1)}, RequestError),
    ({"sampling": Sampling(temperature=100.0)}, RequestError),
    ({"sampling": Sampling(top_k=-1)}, RequestError),
    ({"sampling": Sampling(seed=2**63)}, RequestError),
    ({"sampling": Sampling(seed=-1)}, RequestError),
]


@pytest.mark.parametrize(("options", "error"), BAD_SAYS)
def test_nonsense_is_refused_typed_and_the_engine_goes_on(engine, options, error):
    conversation = engine.open()
    with pytest.raises(error) as refusal:
        say(engine, conversation, **options)
    assert "\n" not in str(refusal.value)
    assert say(engine, conversation, max_seconds=0.1).wait().frames() == 2
    engine.close(conversation)


def test_extreme_but_valid_wishes_are_granted(engine):
    for sampling in (Sampling(4.0, 0, 2**63 - 1), Sampling(1e-9, 65_536, 0), Sampling(0.0, 1)):
        conversation = engine.open(sampling=sampling)
        heard = say(engine, conversation, sampling=None, max_seconds=0.2).wait()
        assert heard.frames() == 3
        engine.close(conversation)


def _with_nan(seconds: float) -> np.ndarray:
    samples = noise(seconds)
    samples[1_000] = np.nan
    return samples


BAD_AUDIO = [
    noise(0.1),
    np.zeros(0, np.float32),
    np.zeros(600 * 24_000, np.float32),
    _with_nan(1.0),
    np.full(24_000, np.inf, np.float32),
    noise(1.0).astype(np.float64),
    noise(1.0)[None],
]


@pytest.mark.parametrize("audio", BAD_AUDIO, ids=lambda a: f"{a.shape}-{a.dtype}")
def test_audio_that_cannot_be_a_reference_is_refused_everywhere(engine, audio):
    prompt = VoicePrompt("bad", "caller", (Turn("caller", "words", audio),))
    conversation = engine.open()
    with pytest.raises(AudioError):
        engine.open(prompt)
    with pytest.raises(AudioError):
        engine.set_voice(conversation, prompt)
    with pytest.raises(AudioError):
        engine.add_turn(conversation, Turn("caller", "words", audio))
    assert say(engine, conversation, max_seconds=0.1).wait().frames() == 2
    engine.close(conversation)


def test_a_reference_without_words_is_refused(engine):
    with pytest.raises(VoiceError, match="transcript"):
        engine.open(VoicePrompt("mute", "caller", (Turn("caller", " ", noise(1.0)),)))


def test_a_text_longer_than_the_context_fails_alone(small):
    hand = ByHand(small, slots=2, queue=2)
    conversation = hand.engine.open()
    hand.engine.add_turn(conversation, Turn("someone", "keep me"))
    heard = say(hand.engine, conversation, "x" * 600)
    beside = say(hand.engine, hand.engine.open(), "Beside.", max_seconds=0.8)
    hand.run()
    assert isinstance(heard.end, Failed)
    assert isinstance(heard.end.error, RequestError)
    assert "shorter" in heard.end.error.message
    np.testing.assert_array_equal(beside.codes, alone(small, "Beside.", 10))
    assert len(hand.context(conversation).turns) == 1, "the turns before it stay"
    after = say(hand.engine, conversation, max_seconds=0.2)
    hand.run()
    assert after.frames() == 3


def test_speech_ends_where_the_context_does(small):
    """The prompt leaves 20 frames of room: no more are made, and none is lost."""
    hand = ByHand(small, slots=1, queue=0)
    taken = len(hand.engine._writer.turn(0, ""))
    heard = say(hand.engine, hand.engine.open(), "y" * (512 - 21 - taken))
    hand.run()
    assert (heard.frames(), heard.reason) == (20, Reason.LENGTH)


@pytest.mark.parametrize(
    "settings",
    [
        {"slots": 0},
        {"queue": -1},
        {"threads": 0},
        {"max_context": 3},
        {"max_lead_s": -1.0},
        {"max_lead_s": float("nan")},
    ],
)
def test_settings_that_cannot_work_are_said_before_anything_is_loaded(settings):
    engine = Engine(EngineConfig(**{"model": "tiny", "threads": 1, **settings}))
    engine.start()
    with pytest.raises(ConfigError, match=next(iter(settings))):
        engine.wait_ready(PATIENCE)
    engine.stop()


# Failing


def _speaking(hand: ByHand, count: int, texts=TEXTS) -> list[tuple[str, Heard]]:
    streams = []
    for text in texts[:count]:
        conversation = hand.engine.open()
        streams.append((conversation, say(hand.engine, conversation, text, max_seconds=0.96)))
    while not all(len(heard.audio) >= 2 for _, heard in streams):
        hand.round()
    return streams


def test_nan_in_one_row_ends_that_stream_and_leaves_the_others_exact(small):
    hand = ByHand(small, slots=4, queue=4)
    streams = _speaking(hand, 4)
    victim, heard = streams[2]
    hand.runner.state.hidden[hand.seat(victim).row] = float("nan")
    hand.run()
    assert isinstance(heard.end, Failed)
    assert isinstance(heard.end.error, NumericError)
    assert np.isfinite(np.concatenate([audio.samples for audio in heard.audio])).all()
    for number in (0, 1, 3):
        np.testing.assert_array_equal(streams[number][1].codes, alone(small, TEXTS[number], 12))
    again = say(hand.engine, victim, "Once more.", max_seconds=0.8)
    hand.run()
    np.testing.assert_array_equal(again.codes, alone(small, "Once more.", 10))


def test_infinity_is_found_as_well(small):
    hand = ByHand(small, slots=1, queue=0)
    ((conversation, heard),) = _speaking(hand, 1)
    hand.runner.state.hidden[hand.seat(conversation).row, 5] = float("-inf")
    hand.run()
    assert isinstance(heard.end.error, NumericError)


def test_nan_left_in_a_row_harms_nobody_who_gets_it_next(small):
    """The stream is cancelled before its NaN is found; its memory goes to others."""
    hand = ByHand(small, slots=1, queue=4)
    ((conversation, heard),) = _speaking(hand, 1)
    for tensor in (*hand.runner.state.keys, *hand.runner.state.values):
        tensor[hand.seat(conversation).row, :, 3:] = float("nan")
    hand.engine.cancel(heard.id)
    hand.round()
    for number in range(4):
        after = say(hand.engine, hand.engine.open(), TEXTS[number], max_seconds=0.8)
        hand.run()
        np.testing.assert_array_equal(after.codes, alone(small, TEXTS[number], 10))


def test_sound_that_is_not_finite_is_never_handed_out(small):
    hand = ByHand(small, slots=2, queue=0)
    (bad, heard), (_, beside) = _speaking(hand, 2)
    row, original = hand.seat(bad).row, hand.runner.draw

    def spoilt(*arguments):
        frame = original(*arguments)
        frame.samples[row] = np.nan
        hand.runner.draw = original
        return frame

    hand.runner.draw = spoilt
    hand.run()
    assert isinstance(heard.end.error, NumericError)
    np.testing.assert_array_equal(beside.codes, alone(small, TEXTS[1], 12))


@pytest.mark.parametrize("step", [1, 2, 7])
@pytest.mark.parametrize("part", ["draw", "advance", "read"])
def test_a_step_that_raises_fails_everybody_typed_and_the_engine_says_so(small, part, step, caplog):
    engine = started(small, slots=2, queue=4)
    runner = engine._rounds._runner
    original, calls = getattr(runner, part), 0

    def breaking(*arguments):
        nonlocal calls
        calls += 1
        if calls >= step:
            raise RuntimeError("device lost")
        return original(*arguments)

    setattr(runner, part, breaking)
    conversations = [engine.open() for _ in range(5)]
    heard = []
    for conversation in conversations:
        # Once it has failed, it refuses with the same error.
        with contextlib.suppress(EngineError):
            heard.append(say(engine, conversation, "Some words. " * 12))
    ends = [one.wait().end for one in heard]
    failed = [end for end in ends if isinstance(end, Failed)]
    assert failed or not heard
    assert all(isinstance(end.error, EngineError) for end in failed)
    status = engine.status()
    assert not status.ready
    assert isinstance(status.failure, EngineError)
    assert status.conversations == 0
    for ask in (engine.open, lambda: say(engine, conversations[0])):
        with pytest.raises(EngineError):
            ask()
    assert "Some words" not in caplog.text
    engine.stop()


def test_a_listener_that_raises_harms_nobody(small):
    hand = ByHand(small, slots=2, queue=0)

    def rude(event):
        raise ValueError("not today")

    hand.engine.say(hand.engine.open(), "Rude.", rude, sampling=GREEDY, live=False)
    heard = say(hand.engine, hand.engine.open(), "Two.", max_seconds=0.8)
    hand.run()
    np.testing.assert_array_equal(heard.codes, alone(small, "Two.", 10))
    assert hand.free()


# The end frame


def test_the_end_frame_is_neither_heard_nor_counted():
    checkpoint = small_checkpoint(3)
    hand = ByHand(checkpoint, slots=2, queue=0)
    heard = say(hand.engine, hand.engine.open(), "Until it ends.", max_seconds=4.0)
    while len(heard.audio) < 5:
        hand.round()
    # With all scores alike, the first code wins in every codebook: the end.
    hand.runner.weights.lm_head.zero_()
    for head in hand.runner.weights.depth_heads:
        head.zero_()
    hand.run()
    assert isinstance(heard.end, Done)
    assert (heard.reason, heard.end.frames, heard.frames()) == (Reason.END, 5, 5)
    assert all(codes[:-1].any() for codes in heard.codes)


def test_speech_that_ends_before_it_begins_is_an_end_without_sound():
    checkpoint = small_checkpoint(3)
    checkpoint.model.lm_head.weight.data.zero_()
    checkpoint.model.depth_decoder.codebooks_head.weight.data.zero_()
    hand = ByHand(checkpoint, slots=1, queue=0)
    conversation = hand.engine.open()
    heard = say(hand.engine, conversation)
    hand.run()
    assert (heard.frames(), heard.reason) == (0, Reason.END)
    assert len(hand.context(conversation)) == 0
    assert heard.end.timings.total >= 0


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


# Life


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
