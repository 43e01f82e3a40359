"""Guards end speech that does not end by itself, and report the reason."""

from __future__ import annotations

import numpy as np
import pytest

from csm_tts_plugin.engine.api import Reason
from csm_tts_plugin.engine.guards import Guard, frames_for
from tests.engine.tools import ByHand, say

LOUD, QUIET = 0.1, 1e-4
THREE_SECONDS = 38
"""The smallest number of frames that lasts three seconds."""


def codes(number: int) -> np.ndarray:
    return np.full(4, number, np.int64)


def run(guard: Guard, frames) -> tuple[int, Reason | None]:
    """After how many frames it ended, and why."""
    for count, (number, level) in enumerate(frames, start=1):
        if guard.is_silent(level):
            return count, Reason.SILENCE
        reason = guard.drawn(codes(number))
        if reason is not None:
            return count, reason
    return count, None


def test_silence_ends_after_three_seconds():
    frames = ((number, QUIET) for number in range(500))
    assert run(Guard(1_000), frames) == (THREE_SECONDS, Reason.SILENCE)


def test_a_pause_that_is_broken_by_one_loud_frame_is_no_silence():
    frames = ((n, LOUD if n % (THREE_SECONDS - 1) == 0 else QUIET) for n in range(500))
    assert run(Guard(1_000), frames) == (500, None)


@pytest.mark.parametrize("period", range(1, 9))
def test_the_same_frames_over_and_over_end_after_three_seconds(period):
    frames = ((number % period, LOUD) for number in range(500))
    assert run(Guard(1_000), frames) == (THREE_SECONDS + period, Reason.LOOP)


def test_a_loop_that_begins_late_is_found():
    frames = [(1_000 + number, LOUD) for number in range(50)] + [(7, LOUD)] * 60
    assert run(Guard(1_000), frames) == (50 + THREE_SECONDS + 1, Reason.LOOP)


def test_speech_that_goes_on_differently_is_no_loop():
    rng = np.random.default_rng(0)
    assert run(Guard(10_000), ((int(n), LOUD) for n in rng.integers(0, 3, 2_000))) == (2_000, None)


def test_the_limit_counts_frames_that_were_made():
    assert run(Guard(7), ((number, LOUD) for number in range(99))) == (7, Reason.LENGTH)


def test_the_limit_grows_with_the_text_and_max_seconds_only_lowers_it():
    short, long = frames_for("Hi.", None), frames_for("Hi. " * 50, None)
    assert 12 <= short < long
    assert frames_for("Hi. " * 50, 1.0) == 13
    assert frames_for("Hi.", 1e6) == short
    assert frames_for("Hi.", 1e-9) == 1


def test_the_length_of_the_text_ends_speech_that_never_would(small):
    hand = ByHand(small, slots=1, queue=0)
    heard = say(hand.engine, hand.engine.open(), "Hi.")
    hand.run()
    if heard.reason is Reason.LENGTH:
        assert heard.frames() == frames_for("Hi.", None)
    else:
        assert heard.reason in (Reason.LOOP, Reason.SILENCE)
        assert heard.frames() >= THREE_SECONDS


@pytest.mark.parametrize(("seconds", "frames"), [(0.01, 1), (0.08, 1), (0.081, 2), (0.8, 10)])
def test_max_seconds_ends_at_the_frame_that_reaches_it(small, seconds, frames):
    hand = ByHand(small, slots=1, queue=0)
    heard = say(hand.engine, hand.engine.open(), max_seconds=seconds)
    hand.run()
    assert (heard.frames(), heard.reason) == (frames, Reason.LENGTH)


def test_a_loop_ends_the_utterance_and_not_the_conversation(small):
    hand = ByHand(small, slots=1, queue=0)
    conversation = hand.engine.open()
    heard = say(hand.engine, conversation, "x" * 60)
    frame = None
    original = hand.runner.draw

    def stuck(*arguments):
        nonlocal frame
        frame = frame or original(*arguments)
        return frame

    hand.runner.draw = stuck
    hand.run()
    assert heard.reason is Reason.LOOP
    assert heard.frames() == THREE_SECONDS + 1
    hand.runner.draw = original
    after = say(hand.engine, conversation, max_seconds=0.4)
    hand.run()
    assert after.frames() == 5
