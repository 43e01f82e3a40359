"""The recording of `make call` places the agent's audio at the time of playback."""

from __future__ import annotations

import numpy as np

from scripts.caller_recording import RATE, TICK, placed


def arrivals(times_ms: list[int]) -> list[tuple[int, np.ndarray]]:
    """A frame of 10 ms at each of these times."""
    return [(ms * RATE // 1000, np.ones(TICK, np.int16)) for ms in times_ms]


def starts_ms(times_ms: list[int]) -> list[int]:
    return [at * 1000 // RATE for at, _ in placed(arrivals(times_ms))]


def test_frames_that_come_as_they_are_played_follow_one_another():
    assert starts_ms([10, 22, 30, 45, 50]) == [0, 10, 20, 30, 40]


def test_a_burst_after_the_caller_was_held_up_is_put_where_it_was_played():
    held_up = [10, 20, *[500] * 48, 510, 520]
    assert starts_ms(held_up) == [10 * number for number in range(52)]


def test_no_frame_is_put_after_the_time_at_which_it_came():
    times = [10, 20, 400, 400, 400, 410, 1000, 1000, 1010]
    for start, came in zip(starts_ms(times), times, strict=True):
        assert start + 10 <= came


def test_where_nothing_was_played_a_gap_stays():
    assert starts_ms([10, 20, 300, 310]) == [0, 10, 290, 300]


def test_nothing_heard_is_nothing_placed():
    assert placed([]) == []
