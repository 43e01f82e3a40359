"""Voices, turns, and calls that are longer than the model's context."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csm_tts_plugin.engine.api import Failed, Reason, Turn, VoicePrompt
from csm_tts_plugin.errors import RequestError, VoiceError
from tests.engine.tools import (
    ByHand,
    noise,
    say,
    small_checkpoint,
    truth,
    voice,
)


@pytest.fixture
def hand(small):
    return ByHand(small, slots=2, queue=4)


def spoken(hand: ByHand, conversation: str, text: str = "Say this.", seconds: float = 0.64):
    """One sentence, checked against `generate` on what the conversation holds before it."""
    heard = say(hand.engine, conversation, text, max_seconds=seconds)
    hand.run()
    log, frames = hand.log(conversation), heard.frames()
    assert frames
    prompt = log[: len(log) - frames - (heard.reason is not Reason.END) - _ended(heard)]
    model = hand.engine._checkpoint.model
    np.testing.assert_array_equal(heard.codes, truth(model, prompt, frames))
    return heard


def _ended(heard) -> int:
    return int(heard.reason is Reason.END)


def voice_positions(hand: ByHand, prompt: VoicePrompt) -> np.ndarray:
    return hand.rounds._voice_positions(prompt)


@torch.no_grad()
def test_the_sound_of_every_sentence_is_that_of_its_own_codes(hand):
    """No codec state of an earlier sentence, or of the row's previous user, remains."""
    codec = hand.engine._checkpoint.model.codec_model
    conversations = [hand.engine.open() for _ in range(3)]
    for turn in range(3):
        heard = [
            say(hand.engine, conversation, f"Turn {turn}.", max_seconds=0.4 + 0.1 * turn)
            for conversation in conversations
        ]
        hand.run()
        for one in heard:
            sound = np.concatenate([audio.samples for audio in one.audio])
            codes = torch.from_numpy(one.codes.T)[None]
            expected = codec.decode(codes).audio_values[0, 0].numpy()
            np.testing.assert_allclose(sound, expected, rtol=0, atol=1e-4 * abs(expected).max())


# Turns


def test_a_turn_that_comes_while_speaking_enters_behind_the_sentence(hand):
    conversation = hand.engine.open()
    heard = say(hand.engine, conversation, "I am speaking.", max_seconds=0.8)
    while len(heard.audio) < 3:
        hand.round()
    hand.engine.add_turn(conversation, Turn("someone", "and i am not", noise(0.5)))
    hand.run()
    mine, theirs = hand.context(conversation).turns
    writer = hand.engine._writer
    np.testing.assert_array_equal(mine[0], writer.turn(0, "I am speaking."))
    np.testing.assert_array_equal(np.concatenate(mine[1:-1])[:, :-1], heard.codes)
    assert not mine[-1][:, :-1].any(), "closed by an end frame"
    codes = hand.runner.encode(noise(0.5))
    np.testing.assert_array_equal(np.concatenate(theirs), writer.turn(1, "and i am not", codes))
    spoken(hand, conversation)


def test_turns_are_read_before_anybody_asks_to_speak(hand):
    conversation = hand.engine.open(voice("v"))
    hand.engine.add_turn(conversation, Turn("someone", "a long question " * 5, noise(1.0)))
    hand.run()
    assert hand.context(conversation).pending == 0
    rounds = 0
    heard = say(hand.engine, conversation, "Ok.", max_seconds=0.1)
    while not heard.audio:
        hand.round()
        rounds += 1
    assert rounds == 1, "a reply pays for its own text only"


def test_a_turn_too_long_for_the_context_is_left_out_and_the_call_goes_on(hand):
    conversation = hand.engine.open(voice("v"))
    hand.engine.add_turn(conversation, Turn("someone", "short"))
    hand.engine.add_turn(conversation, Turn("someone", "long", noise(45.0)))
    hand.run()
    assert len(hand.context(conversation).turns) == 1
    spoken(hand, conversation)


def test_marks_in_a_turn_are_left_out_and_take_no_other_turn_along(hand):
    conversation = hand.engine.open()
    hand.engine.add_turn(conversation, Turn("someone", "before"))
    hand.engine.add_turn(conversation, Turn("someone", "a mark <|AUDIO|> in it"))
    hand.engine.add_turn(conversation, Turn("someone", "after"))
    hand.run()
    writer = hand.engine._writer
    texts = ("before", "a mark   in it", "after")
    expected = np.concatenate([writer.turn(1, text) for text in texts])
    np.testing.assert_array_equal(hand.log(conversation), expected)
    assert hand.engine.status().ready


def test_everybody_has_a_number_of_their_own(hand):
    conversation = hand.engine.open(voice("v"))
    for name in ("someone", "another", "caller", "someone"):
        hand.engine.add_turn(conversation, Turn(name, "words"))
    hand.run()
    writer = hand.engine._writer
    expected = np.concatenate([writer.turn(number, "words") for number in (1, 2, 0, 1)])
    log = hand.log(conversation)
    np.testing.assert_array_equal(log[-len(expected) :], expected)


# Voices


def test_another_voice_between_sentences_keeps_what_others_said(hand):
    first, second = voice("one", seed=1), voice("two", seed=2)
    conversation = hand.engine.open(first)
    hand.engine.add_turn(conversation, Turn("someone", "before", noise(0.5)))
    old = spoken(hand, conversation)
    hand.engine.set_voice(conversation, second)
    new = spoken(hand, conversation)
    kept = hand.engine._writer.turn(1, "before", hand.runner.encode(noise(0.5)))
    expected = np.concatenate([voice_positions(hand, second), kept])
    np.testing.assert_array_equal(hand.log(conversation)[: len(expected)], expected)
    assert len(hand.context(conversation).turns) == 2, "what the old voice said is gone"
    assert not np.array_equal(old.codes, new.codes)


def test_another_voice_during_a_sentence_waits_for_its_end(hand):
    first, second = voice("one", seed=1), voice("two", seed=2)
    conversation = hand.engine.open(first)
    heard = say(hand.engine, conversation, "Still the first.", max_seconds=0.8)
    follows = say(hand.engine, conversation, "Now the second.", max_seconds=0.8)
    while len(heard.audio) < 3:
        hand.round()
    hand.engine.set_voice(conversation, second)
    hand.run()
    writer, model = hand.engine._writer, hand.engine._checkpoint.model
    for one, prompt, text in (
        (heard, first, "Still the first."),
        (follows, second, "Now the second."),
    ):
        positions = np.concatenate([voice_positions(hand, prompt), writer.turn(0, text)])
        np.testing.assert_array_equal(one.codes, truth(model, positions, one.frames()))


def test_no_voice_again_is_nobody_s(hand):
    conversation = hand.engine.open(voice("one"))
    spoken(hand, conversation)
    hand.engine.set_voice(conversation, None)
    spoken(hand, conversation, "Nobody.")
    assert len(hand.context(conversation).voice) == 0


def test_whoever_takes_their_voice_back_takes_their_turns_with_it(hand):
    mine = voice("mine", private=True)
    conversation = hand.engine.open(mine)
    hand.engine.add_turn(conversation, Turn(mine.speaker, "my own words", noise(0.5)))
    hand.engine.add_turn(conversation, Turn("another", "other words"))
    spoken(hand, conversation)
    hand.engine.set_voice(conversation, None)
    spoken(hand, conversation, "Nobody.")
    writer = hand.engine._writer
    number = hand.rounds._conversations[conversation].speakers["another"]
    expected = writer.turn(number, "other words")
    np.testing.assert_array_equal(hand.log(conversation)[: len(expected)], expected)
    assert len(hand.context(conversation).turns) == 2


def test_a_voice_longer_than_the_context_fails_what_it_is_asked_to_say_and_nothing_else(hand):
    """512 positions; 45 s of reference take more than 560."""
    broken, whole = hand.engine.open(voice("huge", 45.0)), hand.engine.open()
    failed = say(hand.engine, broken)
    fine = say(hand.engine, whole, max_seconds=0.4)
    hand.run()
    assert isinstance(failed.end, Failed)
    assert isinstance(failed.end.error, VoiceError)
    assert "shorter" in failed.end.error.message
    assert fine.frames() == 5
    hand.engine.set_voice(broken, voice("good"))
    spoken(hand, broken)


def test_a_longer_voice_leaves_out_the_turns_it_has_no_room_for(hand):
    conversation = hand.engine.open(voice("short", 0.6))
    for number in range(3):
        hand.engine.add_turn(conversation, Turn("someone", f"turn {number}", noise(8.0, number)))
    hand.run()
    hand.engine.set_voice(conversation, voice("long", 30.0))
    hand.run()
    context = hand.context(conversation)
    assert len(context) <= context.limit
    assert len(context.turns) == 1
    spoken(hand, conversation)


def test_a_private_voice_is_forgotten_with_its_last_conversation(hand):
    mine, stored = voice("mine", private=True), voice("stored", seed=3)
    first, second, other = (hand.engine.open(v) for v in (mine, mine, stored))
    for conversation in (first, second, other):
        spoken(hand, conversation)
    assert set(hand.rounds._voices) == {"mine", "stored"} == set(hand.runner._voices)
    hand.engine.close(first)
    hand.run()
    assert "mine" in hand.rounds._voices
    hand.engine.close(second)
    hand.run()
    assert set(hand.rounds._voices) == {"stored"} == set(hand.runner._voices)


def test_a_private_voice_that_was_taken_back_is_forgotten_at_once(hand):
    conversation = hand.engine.open(voice("mine", private=True))
    spoken(hand, conversation)
    hand.engine.set_voice(conversation, voice("stock", seed=4))
    hand.run()
    assert "mine" not in hand.rounds._voices
    assert "mine" not in hand.runner._voices
    spoken(hand, conversation)


def test_a_private_voice_that_waits_for_a_sentence_to_end_is_forgotten_on_hanging_up(hand):
    conversation = hand.engine.open()
    heard = say(hand.engine, conversation, max_seconds=2.0)
    while not heard.audio:
        hand.round()
    hand.engine.set_voice(conversation, voice("mine", private=True))
    hand.engine.close(conversation)
    hand.run()
    assert not hand.rounds._voices
    assert not hand.runner._voices


def test_more_conversations_than_rows_take_turns_and_each_stays_exact(hand):
    """Two slots and two parked rows for seven calls: rows are reassigned and prefilled again."""
    conversations = [hand.engine.open(voice("v") if n % 2 else None) for n in range(7)]
    for turn in range(3):
        for number, conversation in enumerate(conversations):
            hand.engine.add_turn(conversation, Turn("someone", f"turn {turn} for {number}"))
            spoken(hand, conversation, f"Reply {turn}.", 0.32)


# A long call


def test_thirty_turns_stay_in_bounds_keep_the_voice_and_equal_generate():
    checkpoint = small_checkpoint(9, context=200)
    hand = ByHand(checkpoint, slots=2, queue=2)
    prompt = voice("mine", 2.0)
    conversation = hand.engine.open(prompt)
    hand.run()
    reference = hand.context(conversation).voice
    assert len(reference) > 25
    dropped = 0
    for number in range(30):
        held = len(hand.context(conversation).turns)
        hand.engine.add_turn(
            conversation, Turn("someone", f"question {number}", noise(0.6, number))
        )
        hand.run()
        spoken(hand, conversation, f"Answer {number}.")
        context = hand.context(conversation)
        dropped += held + 2 - len(context.turns)
        assert len(context) <= context.limit == 200
        assert len(context.turns) == len(hand.engine._conversations[conversation].records)
        np.testing.assert_array_equal(hand.log(conversation)[: len(reference)], reference)
    assert dropped > 30
    assert len(hand.context(conversation).turns) > 1


def test_the_turn_just_heard_is_the_last_to_go():
    checkpoint = small_checkpoint(9, context=200)
    hand = ByHand(checkpoint, slots=1, queue=1)
    conversation = hand.engine.open()
    for number in range(12):
        hand.engine.add_turn(conversation, Turn("someone", f"turn number {number}"))
    heard = say(hand.engine, conversation, "x" * 100, max_seconds=1.0)
    hand.run()
    assert heard.frames()
    writer = hand.engine._writer
    last = writer.turn(1, "turn number 11")
    assert any(np.array_equal(turn[0], last) for turn in hand.context(conversation).turns)


def test_a_sentence_without_room_beside_its_voice_is_refused_and_the_call_goes_on():
    checkpoint = small_checkpoint(9, context=128)
    hand = ByHand(checkpoint, slots=1, queue=1)
    conversation = hand.engine.open(voice("v", 3.0))
    hand.engine.add_turn(conversation, Turn("someone", "stay"))
    heard = say(hand.engine, conversation, "x" * 90)
    hand.run()
    assert isinstance(heard.end, Failed)
    assert isinstance(heard.end.error, RequestError)
    assert len(hand.context(conversation).turns) == 1
    spoken(hand, conversation, "Ok.", 0.3)
