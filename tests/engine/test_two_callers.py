"""Two calls at once, each with its caller's voice: no caller ever hears the other one's voice.

Codes identify the voice: greedy codes depend on the reference audio, the text and what was said
before, and on nothing else. What a voice says in a single call is therefore the reference for what
it says next to another call, with changes of voice, cancels, and calls that end and begin again.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.engine.tools import ByHand, say, voice

TEXTS = ("One more.", "Two of us.", "And three.")
SECONDS = 0.4
"""Length of each utterance: five frames."""
LONGEST = 2
"""Utterances in one voice before it changes; limits the number of possible histories."""


class Alone:
    """What each voice says in a single call; each case is generated once."""

    def __init__(self, checkpoint):
        self.hand = ByHand(checkpoint, slots=1, queue=0)
        self.known = {}

    def codes(self, spoken_in, said):
        """Codes [n, K] of the last of `said`, in a conversation of its own."""
        key = (spoken_in and spoken_in.key, said)
        if key not in self.known:
            conversation = self.hand.engine.open(spoken_in)
            for text in said:
                heard = say(self.hand.engine, conversation, text, max_seconds=SECONDS)
                self.hand.run()
            self.known[key] = heard.codes
            self.hand.engine.close(conversation)
            self.hand.run()
        return self.known[key]


class Caller:
    """A call with random actions; `heard` is the current utterance."""

    def __init__(self, engine, rng, number, alone):
        self.engine, self.rng, self.alone = engine, rng, alone
        names = (f"first of {number}", f"better of {number}")
        self.voices = [
            voice(name, private=True, seed=10 * number + n) for n, name in enumerate(names)
        ]
        self.voices.append(None)  # the stock voice, which both share
        self.conversation = None
        self.heard = self.spoken_in = None
        self.said = ()
        self.counts = {"whole": 0, "cancelled": 0, "switched": 0, "reopened": 0}

    def act(self):
        if self.heard is not None:
            self.during()
        elif self.conversation is None or self.rng.random() < 0.1:
            self.reopen()
        elif len(self.said) == LONGEST or self.rng.random() < 0.2:
            self.switch()
        else:
            self.said += (self.rng.choice(TEXTS),)
            self.cancelled = False
            self.heard = say(self.engine, self.conversation, self.said[-1], max_seconds=SECONDS)

    def during(self):
        if self.heard.over:
            self.check()
        elif self.rng.random() < 0.04:
            self.engine.cancel(self.heard.id)
            self.cancelled = True
        elif self.rng.random() < 0.04:
            self.switch()  # takes effect with the next utterance

    def reopen(self):
        if self.conversation is not None:
            self.engine.close(self.conversation)
        self.wanted = self.spoken_in = self.rng.choice(self.voices)
        self.conversation = self.engine.open(self.wanted)
        self.said = ()
        self.counts["reopened"] += 1

    def switch(self):
        self.wanted = self.rng.choice([v for v in self.voices if v is not self.wanted])
        self.engine.set_voice(self.conversation, self.wanted)
        self.counts["switched"] += 1
        if self.heard is None:
            self.settle()

    def settle(self):
        """The requested voice applies to the next utterance, and nothing was said in it yet."""
        if self.wanted is not self.spoken_in:
            self.spoken_in, self.said = self.wanted, ()

    def check(self):
        codes = self.heard.codes if self.heard.audio else np.empty((0, 4), np.int64)
        truth = self.alone.codes(self.spoken_in, self.said)
        np.testing.assert_array_equal(codes, truth[: len(codes)])
        assert self.cancelled or len(codes) == len(truth)
        assert not self.heard.strays
        self.counts["cancelled" if self.cancelled else "whole"] += 1
        self.heard = None
        if self.cancelled:
            self.reopen()  # how much of it was heard is random, and would be context
        self.settle()

    @property
    def spoken(self):
        return self.counts["whole"] + self.counts["cancelled"]


@pytest.fixture(scope="module")
def alone(small):
    return Alone(small)


def test_a_voice_marks_what_is_said_in_it(alone):
    """Otherwise the test below could not distinguish them."""
    voices = [v for n in (1, 2) for v in Caller(None, None, n, alone).voices]
    for text in TEXTS:
        spoken = {alone.codes(v, (text,)).tobytes() for v in voices}
        assert len(spoken) == 5, "two voices of each caller, and the stock voice of both"


@pytest.mark.parametrize("spoken_in", [None, voice("same", private=True)])
def test_the_same_voice_again_forgets_nothing_that_was_said(small, alone, spoken_in):
    hand = ByHand(small, slots=1, queue=0)
    conversation = hand.engine.open(spoken_in)
    for text in TEXTS[:2]:
        heard = say(hand.engine, conversation, text, max_seconds=SECONDS)
        hand.run()
        hand.engine.set_voice(conversation, spoken_in)
    np.testing.assert_array_equal(heard.codes, alone.codes(spoken_in, TEXTS[:2]))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.soak)])
def test_two_calls_at_once_never_hear_each_others_voice(small, alone, seed, count):
    rng, hand = random.Random(seed), ByHand(small, slots=2, queue=2)
    callers = [Caller(hand.engine, rng, number, alone) for number in (1, 2)]
    while sum(caller.spoken for caller in callers) < count:
        for caller in rng.sample(callers, 2):
            caller.act()
        hand.round()
    for caller in callers:
        print(caller.counts)
        assert min(caller.counts.values()) >= count // 100
        hand.engine.close(caller.conversation)
    hand.run()
    assert hand.free()
    assert not hand.rounds._voices, "private voices go with the calls that they belong to"
