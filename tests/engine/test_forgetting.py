"""A deleted voice leaves nothing in the engine, even while it is in use."""

from __future__ import annotations

import pytest

from tests.engine.tools import ByHand, say, voice


@pytest.fixture
def hand(small):
    return ByHand(small, slots=2, queue=4)


def speak(hand, conversation):
    heard = say(hand.engine, conversation, "Say this.", max_seconds=0.4)
    hand.run()
    assert heard.reason is not None


def kept(hand):
    assert set(hand.runner._voices) <= set(hand.rounds._voices)
    return set(hand.rounds._voices)


def test_a_voice_that_nobody_speaks_in_is_forgotten_at_once(hand):
    for name in ("mine", "stored"):
        conversation = hand.engine.open(voice(name))
        speak(hand, conversation)
        hand.engine.close(conversation)
    hand.run()
    assert kept(hand) == {"mine", "stored"}
    hand.engine.forget_voice("mine")
    hand.engine.forget_voice("unknown")
    hand.run()
    assert kept(hand) == {"stored"}


def test_a_voice_in_use_is_spoken_with_to_the_end_of_its_last_conversation(hand):
    first, second = hand.engine.open(voice("mine")), hand.engine.open(voice("mine"))
    speak(hand, first)
    hand.engine.forget_voice("mine")
    speak(hand, second)
    hand.engine.close(first)
    hand.run()
    assert kept(hand) == {"mine"}
    hand.engine.close(second)
    hand.run()
    assert kept(hand) == set()


def test_a_voice_that_waits_for_a_sentence_to_end_is_forgotten_too(hand):
    conversation = hand.engine.open()
    heard = say(hand.engine, conversation, "Say this.", max_seconds=2.0)
    while not heard.audio:
        hand.round()
    hand.engine.set_voice(conversation, voice("mine"))
    hand.round()
    hand.engine.forget_voice("mine")
    hand.run()
    speak(hand, conversation)
    assert kept(hand) == {"mine"}
    hand.engine.close(conversation)
    hand.run()
    assert kept(hand) == set()
