"""A change of voice within a call: its cost, and that the old voice is released."""

from __future__ import annotations

import numpy as np
import pytest

from csm_tts_plugin.engine.api import Turn
from tests.engine.tools import ByHand, noise, say, voice

MINE, BETTER, STOCK = (
    voice("mine", private=True, seed=1),
    voice("better", 2.0, private=True, seed=2),
    voice("stock", seed=3),
)


@pytest.fixture
def hand(small):
    return ByHand(small, slots=2, queue=4)


@pytest.fixture
def read(hand, monkeypatch):
    """The number of positions of each prefilled piece."""
    counts = []
    original = hand.runner.read_all

    def reading(prompts):
        counts.extend(len(positions) for _, _, positions in prompts)
        original(prompts)

    monkeypatch.setattr(hand.runner, "read_all", reading)
    return counts


def length(hand, prompt) -> int:
    return len(hand.rounds._voice_positions(prompt))


def until_first_frame(hand, heard) -> None:
    while not heard.audio:
        assert not heard.over
        hand.round()


def speak(hand, conversation, text="Say this.", seconds=0.4):
    heard = say(hand.engine, conversation, text, max_seconds=seconds)
    hand.run()
    assert heard.frames()
    return heard


def test_a_voice_that_is_told_between_replies_is_read_before_the_next_one(hand, read):
    conversation = hand.engine.open(STOCK)
    hand.engine.add_turn(conversation, Turn("somebody", "a turn that stays", noise(1.0)))
    speak(hand, conversation)
    for prompt in (MINE, BETTER, STOCK):
        hand.engine.set_voice(conversation, prompt)
        hand.run()
        read.clear()
        heard = say(hand.engine, conversation, "Now in another voice.", max_seconds=0.4)
        until_first_frame(hand, heard)
        assert sum(read) == len(hand.engine._writer.turn(0, "Now in another voice."))
        hand.run()


def test_a_voice_that_is_told_within_a_reply_costs_one_prefill_and_its_return_none(hand, read):
    conversation = hand.engine.open(STOCK)
    hand.engine.add_turn(conversation, Turn("somebody", "a turn that stays", noise(1.0)))
    hand.run()
    stays = len(hand.log(conversation)) - length(hand, STOCK)
    text = len(hand.engine._writer.turn(0, "The next."))
    for prompt, cost in ((MINE, length(hand, MINE)), (STOCK, 0)):
        first = say(hand.engine, conversation, "The first.", max_seconds=0.8)
        follows = say(hand.engine, conversation, "The next.", max_seconds=0.4)
        until_first_frame(hand, first)
        hand.engine.set_voice(conversation, prompt)
        read.clear()
        until_first_frame(hand, follows)
        assert sum(read) == cost + stays + text
        hand.run()


def test_the_same_voice_again_changes_nothing(hand, read):
    conversation = hand.engine.open(MINE)
    speak(hand, conversation)
    log = hand.log(conversation)
    hand.engine.set_voice(conversation, MINE)
    hand.run()
    read.clear()
    hand.run()
    assert not read
    np.testing.assert_array_equal(hand.log(conversation), log)


def test_nothing_of_a_voice_given_up_is_left_in_its_row(hand):
    conversation = hand.engine.open(MINE)
    hand.engine.add_turn(conversation, Turn(MINE.speaker, "what I said", noise(2.0)))
    speak(hand, conversation)
    row = hand.rounds._conversations[conversation].seat.row
    assert any(cache[row].any() for cache in hand.runner.state.keys)
    hand.engine.set_voice(conversation, None)
    hand.run()
    assert not any(cache[row].any() for cache in hand.runner.state.keys)
    assert not any(cache[row].any() for cache in hand.runner.state.values)
    assert not hand.rounds._voices
    assert not hand.runner._voices


def test_turns_that_wait_for_a_sentence_to_end_go_with_the_voice_given_up_meanwhile(hand):
    for before, meanwhile in ((MINE, None), (STOCK, MINE)):
        conversation = hand.engine.open(before)
        heard = say(hand.engine, conversation, "A sentence.", max_seconds=0.8)
        until_first_frame(hand, heard)
        if meanwhile is not None:
            hand.engine.set_voice(conversation, meanwhile)
        hand.engine.add_turn(conversation, Turn(MINE.speaker, "what I said", noise(0.5)))
        hand.engine.add_turn(conversation, Turn("somebody", "what they said"))
        hand.engine.set_voice(conversation, None)
        hand.run()
        names = [record.name for record in hand.rounds._conversations[conversation].records]
        assert names == ["somebody"]
        hand.engine.close(conversation)
        hand.run()
