"""When audio is decoded and in chunks of what size, computed without tensors."""

from __future__ import annotations

import random

import pytest

from csm_tts_plugin.config import FRAME_SECONDS
from csm_tts_plugin.engine.chunks import LENGTHS, Chunks, pieces
from csm_tts_plugin.engine.scheduler import Job, Scheduler, Seat, State

PLENTY = 10_000


def speaking(scheduler: Scheduler, name: str, *, live: bool = True) -> Seat:
    seat = scheduler.open(name)
    scheduler.admit(seat, Job(name, live=live), retry_after=1.0)
    seat.jobs[0].state = State.SPEAKING
    return seat


@pytest.fixture
def scheduler():
    return Scheduler(slots=32, queue=0, rows=32, piece=1, max_lead_s=2.0)


def decode(scheduler: Scheduler, chunks: Chunks, now: float, budget: int = PLENTY) -> list:
    """What is due at `now`, decoded and delivered at once: [(frames, names of the seats)]"""
    calls = chunks.due(scheduler.seats(), now, budget)
    for call in calls:
        for seat in call.seats:
            scheduler.frames_decoding(seat, call.frames)
            for _ in range(call.frames):
                scheduler.frame_delivered(seat, now)
    return [(call.frames, [seat.id for seat in call.seats]) for call in calls]


@pytest.mark.parametrize("live", [True, False])
def test_the_first_frame_waits_for_nobody_and_chunks_then_double_up_to_eight(scheduler, live):
    seat, chunks, made = speaking(scheduler, "a", live=live), Chunks(), []
    for number in range(40):
        scheduler.frame_drawn(seat)
        made += [frames for frames, _ in decode(scheduler, chunks, now=number * 0.02)]
    assert made == [1, 1, 2, 4, 8, 8, 8, 8]


def test_nothing_is_held_back_of_a_live_stream_whose_lead_comes_to_its_end(scheduler):
    seat, chunks, made = speaking(scheduler, "a"), Chunks(), []
    for number in range(20):  # one frame per frame duration
        chunks.round_took(FRAME_SECONDS)
        scheduler.frame_drawn(seat)
        made += [frames for frames, _ in decode(scheduler, chunks, now=number * FRAME_SECONDS)]
    assert made == [1] * 20


def test_speech_that_nobody_listens_to_live_is_made_in_full_chunks_however_slow(scheduler):
    seat, chunks, made = speaking(scheduler, "a", live=False), Chunks(), []
    for number in range(32):
        chunks.round_took(1.0)
        scheduler.frame_drawn(seat)
        made += [frames for frames, _ in decode(scheduler, chunks, now=number * 1.0)]
    assert made == [1, 1, 2, 4, 8, 8, 8]


def test_a_resting_stream_is_decoded_before_its_lead_ends_though_nothing_is_drawn(scheduler):
    seat, chunks, now = speaking(scheduler, "a"), Chunks(), 0.0
    for _ in range(19):
        scheduler.frame_drawn(seat)
        decode(scheduler, chunks, now)
    assert seat.undecoded == 3
    wait = chunks.wait(scheduler.seats(), now)
    assert wait is not None
    assert 0 < wait < seat.play_end
    assert not decode(scheduler, chunks, now + wait - 0.001)
    assert decode(scheduler, chunks, now + wait + 0.001) == [(1, ["a"]), (2, ["a"])]
    assert chunks.wait(scheduler.seats(), now) is None


def test_an_utterance_that_ends_is_decoded_to_its_end_at_once(scheduler):
    seat, chunks = speaking(scheduler, "a"), Chunks()
    for _ in range(16):
        scheduler.frame_drawn(seat)
        decode(scheduler, chunks, 0.0)
    for _ in range(7):
        scheduler.frame_drawn(seat)
    scheduler.last_drawn(seat)
    assert decode(scheduler, chunks, 0.0) == [(1, ["a"]), (2, ["a"]), (4, ["a"])]


def test_streams_that_are_due_share_a_call_and_the_shortest_comes_first(scheduler):
    old, older, new = (speaking(scheduler, name) for name in ("old", "older", "new"))
    chunks = Chunks()
    for _ in range(16):
        for seat in (old, older):
            scheduler.frame_drawn(seat)
        decode(scheduler, chunks, 0.0)
    for _ in range(8):
        for seat in (old, older):
            scheduler.frame_drawn(seat)
    scheduler.frame_drawn(new)
    assert decode(scheduler, chunks, 0.0) == [(1, ["new"]), (8, ["old", "older"])]


def test_what_is_merely_full_is_spread_over_rounds_the_least_lead_first(scheduler):
    seats, chunks = [speaking(scheduler, str(number)) for number in range(24)], Chunks()
    for seat in seats:
        seat.undecoded = seat.undelivered = 8
        seat.decoded = seat.delivered = 8
        seat.play_end = 1.0 + int(seat.id) * 0.01
    taken = [names for _ in range(8) for _, names in decode(scheduler, chunks, 0.0, budget=24)]
    assert [len(names) for names in taken] == [3] * 8
    assert [name for names in taken for name in names] == [str(number) for number in range(24)]


def test_every_number_of_frames_is_a_few_calls():
    for count in range(1, 60):
        assert sum(pieces(count)) == count
        assert set(pieces(count)) <= set(LENGTHS)
        assert len(pieces(count)) <= count // 8 + 3


def test_no_frame_is_late_that_would_not_be_late_without_chunks(seed):
    """Simulates rounds of any length, also longer than any before. A frame costs the same in a
    chunk or alone, so chunks save nothing and can only cause delays. On average a fifth of the time
    is spare: closer to real time, a series of slow rounds may exceed any bounded reserve."""
    rng = random.Random(seed)
    for _ in range(60):
        pace = rng.uniform(0.005, 0.065)
        rounds = [pace * rng.choice([1.0, 1.0, 1.0, 0.3, 1.5]) for _ in range(80)]
        assert late(rounds, Chunks()) <= late(rounds, OneByOne())


class OneByOne(Chunks):
    def due(self, seats, now, budget):
        for seat in seats:
            seat.decoded = 0
        return super().due(seats, now, budget)


def late(rounds: list[float], chunks: Chunks) -> int:
    """Number of frames delivered too late for playback that started with the first one."""
    scheduler = Scheduler(slots=1, queue=0, rows=1, piece=1, max_lead_s=2.0)
    seat, now, count, start, delivered = speaking(scheduler, "a"), 0.0, 0, 0.0, 0
    for seconds in rounds:
        now += seconds
        chunks.round_took(seconds)
        scheduler.frame_drawn(seat)
        for frames, _ in decode(scheduler, chunks, now):
            start = start if delivered else now
            count += sum(
                now > start + number * FRAME_SECONDS + 1e-9
                for number in range(delivered, delivered + frames)
            )
            delivered += frames
    return count
