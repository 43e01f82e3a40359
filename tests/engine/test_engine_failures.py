"""Refused and failed requests do not affect other streams."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from csm_tts_plugin.config import Limits
from csm_tts_plugin.engine.api import Done, Failed, Reason, Sampling, Turn, VoicePrompt
from csm_tts_plugin.engine.core import Engine, EngineConfig
from csm_tts_plugin.errors import (
    AudioError,
    BusyError,
    ConfigError,
    EngineError,
    NumericError,
    RequestError,
    TextError,
    VoiceError,
)
from tests.engine.tools import (
    GREEDY,
    PATIENCE,
    TEXTS,
    ByHand,
    Heard,
    alone,
    noise,
    say,
    small_checkpoint,
    started,
)

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
    taken = len(hand.engine._writer.turn(0, "y")) - 1
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


def _speaking(hand: ByHand, count: int, texts=TEXTS, max_seconds=0.96) -> list[tuple[str, Heard]]:
    streams = []
    for text in texts[:count]:
        conversation = hand.engine.open()
        heard = say(hand.engine, conversation, text, max_seconds=max_seconds)
        streams.append((conversation, heard))
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("head", ["lm_head", "depth"])
@pytest.mark.parametrize("draw", [{"temperature": 0.0}, {"temperature": 0.9, "top_k": 20}])
def test_what_arises_in_a_head_ends_every_stream_with_a_typed_error(head, value, draw):
    """The hidden states are finite, the logits are not: a head's weights were damaged."""
    damaged = small_checkpoint(5)
    hand = ByHand(damaged, slots=2, queue=0)
    weights = hand.runner.weights
    matrix = weights.lm_head if head == "lm_head" else weights.depth_heads[-1]
    heard = [
        say(hand.engine, hand.engine.open(sampling=Sampling(seed=1, **draw)), text)
        for text in TEXTS[:2]
    ]
    hand.round()
    hand.round()
    kept = matrix.clone()
    matrix[:, :] = value
    hand.run()
    assert all(isinstance(one.end.error, NumericError) for one in heard)
    matrix.copy_(kept)
    after = say(hand.engine, hand.engine.open(), TEXTS[2], max_seconds=0.8)
    hand.run()
    np.testing.assert_array_equal(after.codes, alone(small_checkpoint(5), TEXTS[2], 10))


def test_nan_left_in_a_row_harms_nobody_who_gets_it_next(small):
    """The stream is cancelled before its NaN is found; its row is given to other streams."""
    hand = ByHand(small, slots=1, queue=4)
    ((conversation, heard),) = _speaking(hand, 1)
    row = hand.seat(conversation).row
    written = int(hand.runner.state.position[row])
    assert written > 8
    for tensor in (*hand.runner.state.keys, *hand.runner.state.values):
        tensor[row, :, 3:written] = float("nan")
    hand.engine.cancel(heard.id)
    hand.round()
    for number in range(4):
        after = say(hand.engine, hand.engine.open(), TEXTS[number], max_seconds=0.8)
        hand.run()
        np.testing.assert_array_equal(after.codes, alone(small, TEXTS[number], 10))


@pytest.mark.parametrize("wrong", [0, 3, 7])
def test_sound_that_is_not_finite_is_never_handed_out(small, wrong):
    """Frames before it are delivered, wherever in a chunk it is."""
    hand = ByHand(small, slots=2, queue=0)
    (bad, heard), (_, beside) = _speaking(hand, 2, max_seconds=4.0)
    codec, before = hand.codec, 0
    row, original = hand.engine._conversations[bad].speaking.row, codec.decoder.decode

    def spoilt(codes, rows):
        nonlocal before
        sound = original(codes, rows)
        if row in rows and codes.shape[2] == 8:
            before = codec.decoder.frames[row] - 8
            sound[rows.index(row), wrong * 1920 + 5] = np.nan
            codec.decoder.decode = original
        return sound

    codec.decoder.decode = spoilt
    hand.run()
    assert isinstance(heard.end.error, NumericError)
    assert heard.frames() == before + wrong
    assert len(beside.codes) > before + 8
    np.testing.assert_array_equal(beside.codes, alone(small, TEXTS[1], len(beside.codes)))


@pytest.mark.parametrize("step", [1, 2, 7])
@pytest.mark.parametrize("part", ["draw", "advance", "read_all", "decode"])
def test_a_step_that_raises_fails_everybody_typed_and_the_engine_says_so(small, part, step, caplog):
    engine = started(small, slots=2, queue=4)
    rounds = engine._rounds
    device = rounds._delivery._codec if part == "decode" else rounds._runner
    original, calls = getattr(device, part), 0

    def breaking(*arguments):
        nonlocal calls
        calls += 1
        if calls >= step:
            raise RuntimeError("device lost")
        return original(*arguments)

    setattr(device, part, breaking)
    conversations = [engine.open() for _ in range(5)]
    heard = []
    for conversation in conversations:
        # After the failure the engine refuses requests with the same error.
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
    while hand.drawn_of(heard) < 7:
        hand.round()
    assert len(heard.audio) < 7, "some of it is drawn and not decoded"
    # With equal logits the first code wins in every codebook: an end frame.
    hand.runner.weights.lm_head.zero_()
    for head in hand.runner.weights.depth_heads:
        head.zero_()
    hand.run()
    assert isinstance(heard.end, Done)
    assert (heard.reason, heard.end.frames, heard.frames()) == (Reason.END, 7, 7)
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
