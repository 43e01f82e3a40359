"""The scheduler's promises under random traffic, without a tensor in sight."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from csm_tts_plugin.config import FRAME_SECONDS
from csm_tts_plugin.engine.scheduler import Job, Plan, Scheduler, Seat, State
from csm_tts_plugin.errors import BusyError

PIECE = 16
LEAD = 1.0


def test_it_needs_no_tensor_library():
    code = (
        "import sys, csm_tts_plugin.engine.scheduler; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Device:
    """What the engine does with a plan, on numbers only: rows hold names, positions are counted.

    Every check that a round was sound stands here, so that hypothesis and the long random run
    look at the same things.
    """

    def __init__(self, slots: int, queue: int, rows: int, sizes: list[int] | None = None) -> None:
        """`sizes`: a step runs over one of these numbers of rows."""
        self.sizes = sizes or list(range(1, slots + 1))
        self.scheduler = Scheduler(
            slots=slots, queue=queue, rows=rows, piece=PIECE, max_lead_s=LEAD, pad=self.padded
        )
        self.slots, self.queue = slots, queue
        self.rows: list[str | None] = [None] * rows
        self.held: dict[str, int] = {}
        """Positions that a row holds of each seat that has one."""
        self.seats: dict[str, Seat] = {}
        self.length: dict[str, int] = defaultdict(int)
        self.order: dict[str, list[str]] = defaultdict(list)
        self.finished: list[str] = []
        self.frames: dict[str, int] = defaultdict(int)
        self.prompts: dict[str, int] = {}
        self.now = 0.0
        self.count = 0

    def padded(self, count: int) -> int:
        return next(size for size in self.sizes if size >= count)

    # What callers and utterances do

    def open(self) -> Seat:
        self.count += 1
        seat = self.scheduler.open(f"seat {self.count}")
        self.seats[seat.id] = seat
        return seat

    def say(self, seat: Seat, prompt: int = 5, *, live: bool = True, more: bool = False) -> Job:
        self.count += 1
        job = Job(f"job {self.count}", live=live, more=more)
        room = bool(seat.jobs) or self.scheduler.busy() < self.slots + self.queue
        if not room:
            with pytest.raises(BusyError) as refusal:
                self.scheduler.admit(seat, job, retry_after=1.5)
            assert refusal.value.retry_after == 1.5
            raise refusal.value
        self.scheduler.admit(seat, job, retry_after=1.5)
        self.prompts[job.id] = prompt
        self.order[seat.id].append(job.id)
        return job

    def hear(self, seat: Seat, positions: int) -> None:
        """A turn of context, while nothing is spoken."""
        if seat.job is None or seat.job.state is State.WAITING:
            self.length[seat.id] += positions
            self._refresh(seat)

    def end(self, seat: Seat, job: Job) -> None:
        running = seat.job is job and job.state is not State.WAITING
        self.scheduler.remove(seat, job)
        if running:
            self.finished.append(job.id)
        self.order[seat.id].remove(job.id)

    def close(self, seat: Seat) -> None:
        for job in list(seat.jobs):
            self.end(seat, job)
        self.scheduler.close(seat)
        if seat.id in self.rows:
            self.rows[self.rows.index(seat.id)] = None
        del self.seats[seat.id]

    # Rounds

    def round(self) -> Plan:
        begin = self.scheduler.begin()
        for seat in begin.evicted:
            assert seat.job is None or seat.job.state is State.WAITING or seat in begin.placed
            self.rows[self.rows.index(seat.id)] = None
            self.held.pop(seat.id, None)
            self._refresh(seat)
        for seat in begin.placed:
            assert self.rows[seat.row] is None or self.rows[seat.row] == seat.id
            self.rows[seat.row] = seat.id
            self.held[seat.id] = 0
            self._refresh(seat)
        for seat in begin.started:
            assert seat.jobs[0].id == self.order[seat.id][0], "first come, first spoken"
            self.length[seat.id] += self.prompts[seat.jobs[0].id]
            self._refresh(seat)
        plan = self.scheduler.plan(self.now)
        self._carry_out(plan)
        return plan

    def _carry_out(self, plan: Plan) -> None:
        for a, b in plan.swaps:
            self.rows[a], self.rows[b] = self.rows[b], self.rows[a]
        if plan.read is not None:
            seat, count = plan.read.seat, plan.read.count
            assert 0 < count <= min(PIECE, seat.unread)
            assert self.rows[seat.row] == seat.id
            self.held[seat.id] += count
            self.scheduler.read_done(plan.read)
            assert seat.unread == self._pending(seat)
        assert [seat.row for seat in plan.step] == list(range(len(plan.step)))
        padding = range(len(plan.step), self.padded(len(plan.step)) if plan.step else 0)
        bystanders = [self.seats[self.rows[row]] for row in padding if self.rows[row] is not None]
        assert not any(s.jobs and s.jobs[0].state is State.SPEAKING for s in bystanders)
        for seat in plan.step:
            assert self.rows[seat.row] == seat.id, "the row holds somebody else's positions"
            assert seat.unread == 0, "a frame was drawn before the prompt was read"
            assert seat.jobs[0].state is State.SPEAKING
            self.length[seat.id] += 1
            self.held[seat.id] += 1
            self.frames[seat.jobs[0].id] += 1
            self.scheduler.frame_made(seat, self.now)
            if seat.jobs[0].live:
                assert seat.play_end - self.now <= LEAD + FRAME_SECONDS + 1e-9

    def _pending(self, seat: Seat) -> int:
        return self.length[seat.id] - self.held.get(seat.id, 0)

    def _refresh(self, seat: Seat) -> None:
        seat.unread = self._pending(seat)

    def speaking(self) -> list[Seat]:
        return [s for s in self.seats.values() if s.jobs and s.jobs[0].state is State.SPEAKING]

    def check(self) -> None:
        scheduler = self.scheduler
        assert 0 <= scheduler.running() <= self.slots
        assert scheduler.running() + scheduler.waiting() == scheduler.busy()
        assert scheduler.busy() <= self.slots + self.queue
        assert set(map(id, scheduler.seats())) == set(map(id, self.seats.values()))
        placed = {seat.id: seat.row for seat in self.seats.values() if seat.row is not None}
        assert placed == {name: row for row, name in enumerate(self.rows) if name is not None}
        for seat in self.seats.values():
            assert [job.id for job in seat.jobs] == self.order[seat.id]
            assert sum(job.state is not State.WAITING for job in seat.jobs) <= 1
            if seat.jobs and seat.jobs[0].state is not State.WAITING:
                assert seat.row is not None


class Traffic(RuleBasedStateMachine):
    """Arrivals, cancels, ends, turns and hang-ups in any order."""

    @initialize(
        slots=st.integers(1, 4), queue=st.integers(0, 4), spare=st.integers(0, 3), pad=st.booleans()
    )
    def build(self, slots, queue, spare, pad):
        # Padded steps need room to move others out of their way.
        sizes = [slots] if pad else None
        self.device = Device(slots, queue, 2 * slots if pad else slots + spare, sizes)

    def _pick(self, index: int, seats: list[Seat] | None = None) -> Seat:
        seats = list(self.device.seats.values()) if seats is None else seats
        return seats[index % len(seats)]

    @precondition(lambda self: len(self.device.seats) < 12)
    @rule()
    def open(self):
        self.device.open()

    @precondition(lambda self: self.device.seats)
    @rule(
        index=st.integers(0, 99),
        prompt=st.integers(1, 40),
        live=st.booleans(),
        more=st.booleans(),
    )
    def say(self, index, prompt, live, more):
        try:
            self.device.say(self._pick(index), prompt, live=live, more=more)
        except BusyError:
            assert self.device.scheduler.busy() == self.device.slots + self.device.queue

    @precondition(lambda self: self.device.seats)
    @rule(index=st.integers(0, 99), positions=st.integers(1, 60))
    def hear(self, index, positions):
        self.device.hear(self._pick(index), positions)

    @precondition(lambda self: any(seat.jobs for seat in self.device.seats.values()))
    @rule(index=st.integers(0, 99), which=st.integers(0, 99))
    def cancel(self, index, which):
        seat = self._pick(index, [s for s in self.device.seats.values() if s.jobs])
        self.device.end(seat, seat.jobs[which % len(seat.jobs)])

    @precondition(lambda self: self.device.speaking())
    @rule(index=st.integers(0, 99))
    def end(self, index):
        seat = self._pick(index, self.device.speaking())
        self.device.end(seat, seat.jobs[0])

    @precondition(lambda self: self.device.seats)
    @rule(index=st.integers(0, 99))
    def hang_up(self, index):
        self.device.close(self._pick(index))

    @rule(rounds=st.integers(1, 4), seconds=st.sampled_from([0.0, 0.01, 0.08, 0.5]))
    def work(self, rounds, seconds):
        for _ in range(rounds):
            self.device.now += seconds
            self.device.round()

    @invariant()
    def sound(self):
        if hasattr(self, "device"):
            self.device.check()

    def teardown(self):
        """Once callers are silent and have time to listen, everybody is served."""
        if not hasattr(self, "device"):
            return
        device = self.device
        owed = [job.id for seat in device.seats.values() for job in seat.jobs]
        for _ in range(3_000):
            device.now += 0.5
            for seat in device.round().step:
                if device.frames[seat.jobs[0].id] > 2:
                    device.end(seat, seat.jobs[0])
            device.check()
            if not device.scheduler.busy():
                break
        assert set(owed) <= set(device.finished), "somebody starved"


Traffic.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestTraffic = Traffic.TestCase


def test_a_long_random_run_loses_no_slot_and_grows_nowhere(seed):
    rng = random.Random(seed)
    device = Device(slots=4, queue=6, rows=7)
    for _ in range(6_000):
        device.now += rng.choice([0.0, 0.02, 0.08])
        seats = list(device.seats.values())
        if len(seats) < 15 and rng.random() < 0.2:
            seats.append(device.open())
        if seats and rng.random() < 0.3:
            with contextlib.suppress(BusyError):
                device.say(rng.choice(seats), rng.randrange(1, 50), live=rng.random() < 0.5)
        if seats and rng.random() < 0.1:
            device.hear(rng.choice(seats), rng.randrange(1, 80))
        if seats and rng.random() < 0.15:
            busy = [seat for seat in seats if seat.jobs]
            for seat in busy[:1]:
                device.end(seat, rng.choice(list(seat.jobs)))
        if seats and rng.random() < 0.05:
            device.close(rng.choice(seats))
        device.round()
        device.check()
    for seat in list(device.seats.values()):
        device.close(seat)
    scheduler = device.scheduler
    assert scheduler.busy() == scheduler.running() == 0
    assert not list(scheduler.seats())
    assert device.rows == [None] * 7
    assert _holds_nothing(scheduler)


def _holds_nothing(scheduler: Scheduler) -> bool:
    """No container in it still holds anything."""
    parts = vars(scheduler).values()
    return not any(any(part) for part in parts if isinstance(part, (list, dict, set, tuple)))


# Single promises


def test_who_rests_stands_clear_of_a_padded_step():
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


def test_a_prompt_read_while_its_stream_rests_stands_clear_of_a_padded_step():
    """What the model knows after the prompt is all that its first frame comes from."""
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


def test_a_reply_under_way_goes_before_new_ones():
    device = Device(slots=1, queue=5, rows=3)
    first, other = device.open(), device.open()
    job = device.say(first, more=True)
    device.round()
    device.say(other)
    device.say(first)
    device.end(first, job)
    device.round()
    assert device.speaking() == [first]


def test_a_finished_reply_waits_its_turn_again():
    device = Device(slots=1, queue=5, rows=3)
    first, other = device.open(), device.open()
    job = device.say(first, more=False)
    device.round()
    device.say(other)
    device.say(first)
    device.end(first, job)
    device.round()
    assert device.speaking() == [other]


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
        assert plan.read is not None
        assert (plan.read.seat, plan.read.count) == (reader, piece)
        assert speaker in plan.step, "nobody misses a frame for another's prompt"
    assert reader in plan.step, "the first frame comes with the last piece"


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
    """Else every short sentence of a long reply would add a frame to the lead."""
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
