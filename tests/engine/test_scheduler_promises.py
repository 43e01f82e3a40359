"""The scheduler's invariants, one at a time."""

from __future__ import annotations

import contextlib
import random

import pytest

from csm_tts_plugin.config import FRAME_SECONDS
from csm_tts_plugin.engine.scheduler import Scheduler
from csm_tts_plugin.errors import BusyError
from tests.engine.device import LEAD, PIECE, Device


def test_a_resting_stream_is_not_changed_by_a_padded_step():
    device = Device(slots=3, queue=0, rows=6, sizes=[3])
    resting, stepping = device.open(), device.open()
    device.say(resting, live=True)
    while device.round().step:
        pass
    device.say(stepping, live=False)
    for _ in range(4):
        assert device.round().step == [stepping]
    assert resting.row is not None
    assert resting.row >= 3


def test_a_prompt_read_while_its_stream_rests_is_not_changed_by_a_padded_step():
    """The first frame depends only on the state that prefill leaves in the row."""
    device = Device(slots=3, queue=0, rows=6, sizes=[3])
    stepping, seat = device.open(), device.open()
    device.say(stepping, live=False)
    job = device.say(seat, live=True)
    while seat.play_end - device.now < LEAD:
        device.round()
    assert seat.row == 1
    device.end(seat, job)
    device.say(seat, prompt=PIECE + 1, live=True)
    for _ in range(4):
        assert device.round().step == [stepping]
    assert seat.unread == 0
    device.now += LEAD
    assert seat in device.round().step


def test_exactly_slots_and_queue_are_accepted():
    device = Device(slots=4, queue=4, rows=8)
    accepted = 0
    for _ in range(64):
        with contextlib.suppress(BusyError):
            device.say(device.open())
            accepted += 1
    assert accepted == 8
    device.round()
    assert device.scheduler.running() == 4
    assert device.scheduler.waiting() == 4


def test_further_sentences_of_a_busy_conversation_take_no_further_place():
    device = Device(slots=1, queue=0, rows=1)
    seat = device.open()
    for _ in range(5):
        device.say(seat)
    assert device.scheduler.busy() == 1
    with pytest.raises(BusyError):
        device.say(device.open())


@pytest.mark.parametrize("more", [True, False], ids=["under way", "finished"])
def test_a_reply_under_way_goes_before_new_ones_and_a_finished_one_waits_its_turn(more):
    device = Device(slots=1, queue=5, rows=3)
    first, other = device.open(), device.open()
    job = device.say(first, more=more)
    device.round()
    device.say(other)
    device.say(first)
    device.end(first, job)
    device.round()
    assert device.speaking() == [first if more else other]


def test_a_reply_under_way_is_let_in_where_new_ones_are_refused():
    device = Device(slots=1, queue=1, rows=3)
    first, others = device.open(), [device.open() for _ in range(2)]
    job = device.say(first, more=True)
    device.round()
    device.end(first, job)
    for other in others:
        device.say(other)
    with pytest.raises(BusyError):
        device.say(device.open())
    device.say(first, more=True)
    with pytest.raises(BusyError):
        device.say(device.open())


def test_replies_under_way_are_not_let_in_without_bound():
    device = Device(slots=1, queue=0, rows=1)
    begun = [device.open() for _ in range(3)]
    for seat in begun:
        job = device.say(seat, more=True)
        device.round()
        device.end(seat, job)
    for seat in begun[:2]:
        device.say(seat, more=True)
    with pytest.raises(BusyError):
        device.say(begun[2], more=True)


def test_conversations_start_in_the_order_of_their_arrival():
    device = Device(slots=1, queue=9, rows=2)
    seats = [device.open() for _ in range(6)]
    random.Random(3).shuffle(seats)
    for seat in seats:
        device.say(seat)
    started = []
    for _ in seats:
        device.round()
        (speaking,) = device.speaking()
        started.append(speaking)
        device.end(speaking, speaking.jobs[0])
    assert started == seats


def test_a_sentence_waits_for_what_was_asked_of_its_conversation_before():
    device = Device(slots=2, queue=0, rows=2)
    early, late = device.open(), device.open()
    early_job = device.say(early)
    early_job.due = False
    device.say(late)
    device.round()
    assert device.speaking() == [late]
    early_job.due = True
    device.round()
    assert device.speaking() == [late, early] or device.speaking() == [early, late]


def test_prompts_are_read_in_pieces_while_others_speak():
    device = Device(slots=2, queue=0, rows=2)
    speaker, reader = device.open(), device.open()
    device.say(speaker, live=False)
    device.round()
    device.say(reader, prompt=PIECE * 3 + 1)
    for piece in (PIECE, PIECE, PIECE, 1):
        plan = device.round()
        assert [(read.seat, read.count) for read in plan.reads] == [(reader, piece)]
        assert speaker in plan.step, "nobody misses a frame for another's prompt"
    assert reader in plan.step, "the first frame comes with the last piece"


def test_several_prompts_share_what_a_round_may_read():
    """Otherwise the last of n callers would wait n rounds for first audio."""
    device = Device(slots=5, queue=0, rows=5)
    speaker = device.open()
    device.say(speaker, live=False)
    device.round()
    seats = [device.open() for _ in range(4)]
    for seat in seats:
        device.say(seat, prompt=PIECE // 2 - 1, live=False)
    plan = device.round()
    counts = [(read.seat, read.count) for read in plan.reads]
    assert counts == [(seats[0], PIECE // 2 - 1), (seats[1], PIECE // 2 - 1), (seats[2], 2)]
    assert set(map(id, plan.step)) == set(map(id, [speaker, seats[0], seats[1]]))
    plan = device.round()
    assert [read.seat for read in plan.reads] == seats[2:]
    assert set(map(id, plan.step)) == set(map(id, [speaker, *seats]))


def test_a_live_stream_rests_at_its_lead_and_goes_on_when_played():
    device = Device(slots=1, queue=0, rows=1)
    seat = device.open()
    device.say(seat, live=True)
    made = 0
    while device.round().step:
        made += 1
    assert LEAD <= made * FRAME_SECONDS <= LEAD + FRAME_SECONDS
    wait = device.scheduler.next_event(device.now)
    assert wait is not None
    assert 0 < wait < LEAD
    device.now += wait / 2
    assert not device.round().step
    device.now += wait
    assert device.round().step == [seat]


def test_a_sentence_begins_no_further_ahead_than_the_one_before_may_be():
    """Otherwise every short sentence of a long reply would add a frame to the lead."""
    device = Device(slots=1, queue=0, rows=1)
    seat = device.open()
    for _ in range(40):
        device.say(seat, live=True, more=True)
    while plan_step := device.round().step:
        device.end(plan_step[0], plan_step[0].jobs[0])
    assert seat.play_end - device.now <= LEAD + FRAME_SECONDS


def test_offline_speech_has_no_lead_to_keep():
    device = Device(slots=1, queue=0, rows=1)
    device.say(device.open(), live=False)
    assert all(device.round().step for _ in range(100))
    assert device.scheduler.next_event(device.now) is None


def test_a_resting_stream_keeps_its_slot_and_gives_its_row_to_nobody():
    device = Device(slots=2, queue=2, rows=2)
    resting, other = device.open(), device.open()
    device.say(resting, live=True)
    while device.round().step:
        pass
    device.say(other, live=False)
    for _ in range(5):
        assert device.round().step == [other]
    assert device.scheduler.running() == 2
    assert resting.row is not None
    device.now += LEAD
    assert set(map(id, device.round().step)) == {id(resting), id(other)}


def test_barge_in_lets_the_next_sentence_begin_at_once():
    device = Device(slots=1, queue=0, rows=1)
    seat = device.open()
    job = device.say(seat, live=True)
    while device.round().step:
        pass
    device.end(seat, job)
    device.scheduler.silence(seat, device.now)
    device.say(seat, live=True)
    assert device.round().step == [seat]


def test_the_row_of_whoever_was_quiet_the_longest_goes_first():
    device = Device(slots=1, queue=3, rows=2)
    old, young, new = device.open(), device.open(), device.open()
    for seat in (old, young, new):
        job = device.say(seat)
        device.round()
        device.end(seat, job)
    assert old.row is None
    assert young.row is not None
    assert new.row is not None


def test_the_row_of_a_conversation_about_to_speak_is_the_last_to_go():
    device = Device(slots=2, queue=3, rows=3)
    soon, quiet, third, new = (device.open() for _ in range(4))
    for seat in (soon, quiet, third):
        job = device.say(seat)
        device.round()
        device.end(seat, job)
    device.say(new)
    device.say(soon)
    device.round()
    assert quiet.row is None
    assert soon.row is not None


def test_context_is_read_while_nobody_needs_the_device():
    device = Device(slots=1, queue=1, rows=2)
    seat = device.open()
    device.hear(seat, PIECE * 2)
    device.round()
    device.round()
    assert seat.unread == 0
    assert device.round().idle


def test_every_slot_has_a_row_or_there_is_no_scheduler():
    with pytest.raises(ValueError, match="row"):
        Scheduler(slots=3, queue=0, rows=2, piece=1, max_lead_s=1.0)
