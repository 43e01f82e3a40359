"""An interrupted reply stays in the conversation only as far as it was heard."""

from __future__ import annotations

import numpy as np
import pytest

from csm_tts_plugin.engine.api import Reason, Turn
from tests.engine.tools import ByHand, noise, say, truth, voice


@pytest.fixture
def hand(small):
    return ByHand(small, slots=2, queue=4)


def spoken_turn(hand, text, codes) -> np.ndarray:
    """The turn as expected in the log: text, these frames, end frame."""
    return hand.engine._writer.turn(0, text, codes)


def check_next(hand, conversation) -> None:
    """The next sentence is what `generate` says after exactly this log."""
    before = hand.log(conversation)
    heard = say(hand.engine, conversation, "And next.", max_seconds=0.4)
    hand.run()
    prompt = np.concatenate([before, hand.engine._writer.turn(0, "And next.")])
    model = hand.engine._checkpoint.model
    np.testing.assert_array_equal(heard.codes, truth(model, prompt, heard.frames()))


def test_what_was_made_ahead_of_its_playing_goes_with_a_cancel(hand):
    conversation = hand.engine.open()
    heard = say(hand.engine, conversation, "A sentence.", max_seconds=4.0, live=True)
    while len(heard.audio) < 20:
        hand.round()
    hand.now += 0.8 + 0.01  # ten frames have been played, and a little of the next one
    hand.engine.cancel(heard.id)
    hand.run()
    assert heard.reason is Reason.CANCELLED
    expected = spoken_turn(hand, "A sentence.", heard.codes[:11])
    np.testing.assert_array_equal(hand.log(conversation), expected)
    check_next(hand, conversation)


def test_a_sentence_of_which_nothing_was_played_was_never_said(hand):
    conversation = hand.engine.open()
    first = say(hand.engine, conversation, "The first.", max_seconds=0.4, live=True)
    second = say(hand.engine, conversation, "The second.", max_seconds=4.0, live=True)
    while len(second.audio) < 3:
        hand.round()
    hand.engine.cancel(second.id)
    hand.run()
    np.testing.assert_array_equal(
        hand.log(conversation), spoken_turn(hand, "The first.", first.codes)
    )
    check_next(hand, conversation)


def test_what_is_told_later_cuts_what_was_made_to_its_end(hand):
    conversation = hand.engine.open(voice("v"))
    first = say(hand.engine, conversation, "The first.", max_seconds=0.8)
    second = say(hand.engine, conversation, "The second.", max_seconds=0.8)
    hand.run()
    hand.engine.add_turn(conversation, Turn("somebody", "breaks in", noise(0.5)))
    hand.run()
    voice_part = len(hand.context(conversation).voice)
    theirs = hand.context(conversation).turns[-1][0]
    hand.engine.keep_heard(conversation, first.id, 4)
    hand.engine.keep_heard(conversation, second.id, 0)
    hand.engine.keep_heard(conversation, "unknown", 0)
    hand.engine.keep_heard("unknown", first.id, 0)
    hand.run()
    mine = spoken_turn(hand, "The first.", first.codes[:4])
    log = hand.log(conversation)[voice_part:]
    np.testing.assert_array_equal(log, np.concatenate([mine, theirs]))
    assert len(hand.context(conversation)) == voice_part + len(log)
    names = [record.name for record in hand.engine._conversations[conversation].records]
    assert names == ["caller", "somebody"]
    check_next(hand, conversation)


def test_what_is_told_while_the_next_sentence_is_spoken_waits_for_its_end(hand):
    conversation = hand.engine.open()
    first = say(hand.engine, conversation, "The first.", max_seconds=0.8)
    hand.run()
    second = say(hand.engine, conversation, "The second.", max_seconds=0.8)
    while len(second.audio) < 2:
        hand.round()
    hand.engine.keep_heard(conversation, first.id, 3)
    hand.run()
    parts = [("The first.", first.codes[:3]), ("The second.", second.codes)]
    expected = np.concatenate([spoken_turn(hand, text, codes) for text, codes in parts])
    np.testing.assert_array_equal(hand.log(conversation), expected)
    check_next(hand, conversation)


@pytest.mark.parametrize("frames", [10, 11, 10_000])
def test_what_was_heard_to_its_end_stays_whole(hand, frames):
    conversation = hand.engine.open()
    heard = say(hand.engine, conversation, "A sentence.", max_seconds=0.8)
    hand.run()
    log = hand.log(conversation)
    hand.engine.keep_heard(conversation, heard.id, frames)
    hand.run()
    assert heard.frames() == 10
    np.testing.assert_array_equal(hand.log(conversation), log)


def test_what_is_not_listened_to_live_is_kept_as_made(hand):
    conversation = hand.engine.open()
    heard = say(hand.engine, conversation, "A sentence.", max_seconds=4.0)
    while len(heard.audio) < 6:
        hand.round()
    hand.engine.cancel(heard.id)
    hand.run()
    expected = spoken_turn(hand, "A sentence.", heard.codes)
    np.testing.assert_array_equal(hand.log(conversation), expected)
