"""The scheduler's invariants under random traffic, without tensors."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from csm_tts_plugin.engine.scheduler import Scheduler, Seat
from csm_tts_plugin.errors import BusyError
from tests.engine.device import Device


def test_it_needs_no_tensor_library():
    code = (
        "import sys, csm_tts_plugin.engine.scheduler; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Traffic(RuleBasedStateMachine):
    """Arrivals, cancels, ends, turns and hang-ups in any order."""

    @initialize(
        slots=st.integers(1, 4),
        queue=st.integers(0, 4),
        spare=st.integers(0, 3),
        pad=st.booleans(),
        by_index=st.booleans(),
    )
    def build(self, slots, queue, spare, pad, by_index):
        # Padded steps need spare rows, to which the rows of others are moved.
        sizes = [slots] if pad else None
        rows = 2 * slots if pad else slots + spare
        self.device = Device(slots, queue, rows, sizes, by_index=by_index)

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
        seat = self._pick(index)
        try:
            self.device.say(seat, prompt, live=live, more=more)
        except BusyError:
            assert self.device.scheduler.busy() >= self.device.places(seat)

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
        """Without further requests and with enough time, every utterance is served."""
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
    """All of its containers are empty."""
    parts = vars(scheduler).values()
    return not any(any(part) for part in parts if isinstance(part, (list, dict, set, tuple)))
