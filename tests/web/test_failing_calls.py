"""Failures in the browser are reported with cause and remedy."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.call, pytest.mark.timeout(600)]

AT_START = {
    "refused microphone": ("not allowed", "address bar"),
    "no microphone": ("no microphone", "Plug one in"),
    "no livekit": ("cannot be reached", "LiveKit"),
    "refused token": ("refused this call", "key"),
    "too many": ("Too many calls", "seconds"),
    "no page server": ("does not answer", "make web"),
}


@pytest.mark.parametrize("case", AT_START)
def test_a_call_that_cannot_start_says_why_and_can_be_tried_again(failures, case):
    told = failures[case]
    for words in AT_START[case]:
        assert words in told.words[0]
    assert told.phase == "idle"


def test_waiting_a_lost_line_an_absent_agent_and_one_that_leaves_are_told_apart(failures):
    waiting, lost, absent, left = failures["a lost line, and no agent"].words
    assert waiting == "Waiting for the agent"
    assert "Reconnecting" in lost
    assert "not here yet" in absent
    assert "has left" in left


def test_sound_that_the_browser_keeps_off_waits_for_a_click(failures):
    blocked, after = failures["blocked sound"].words
    assert "keeps the sound off" in blocked
    assert after == ""


def test_no_failure_ends_in_an_exception_of_the_page(failures):
    assert {case: told.errors for case, told in failures.items() if told.errors} == {}
