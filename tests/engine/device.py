"""A device without tensors: it runs the scheduler's plans and checks their invariants."""

from __future__ import annotations

from collections import defaultdict

import pytest

from csm_tts_plugin.config import FRAME_SECONDS
from csm_tts_plugin.engine.scheduler import Job, Plan, Scheduler, Seat, State
from csm_tts_plugin.errors import BusyError

PIECE = 16
LEAD = 1.0


class Device:
    """Carries out plans like the engine, but without tensors: rows hold names, positions are
    counted.

    All checks of a round are here, so that hypothesis and the long random run check the same.
    """

    def __init__(
        self,
        slots: int,
        queue: int,
        rows: int,
        sizes: list[int] | None = None,
        *,
        by_index: bool = False,
    ) -> None:
        """`sizes`: the possible batch sizes of a step. `by_index`: a step may use any rows."""
        self.by_index = by_index
        self.sizes = sizes or list(range(1, slots + 1))
        self.scheduler = Scheduler(
            slots=slots,
            queue=queue,
            rows=rows,
            piece=PIECE,
            max_lead_s=LEAD,
            pad=self.padded,
            by_index=by_index,
        )
        self.slots, self.queue = slots, queue
        self.rows: list[str | None] = [None] * rows
        self.held: dict[str, int] = {}
        """Number of positions in the row of each seat that has a row."""
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
        room = bool(seat.jobs) or self.scheduler.busy() < self.places(seat)
        if not room:
            with pytest.raises(BusyError) as refusal:
                self.scheduler.admit(seat, job, retry_after=1.5)
            assert refusal.value.retry_after == 1.5
            raise refusal.value
        self.scheduler.admit(seat, job, retry_after=1.5)
        self.prompts[job.id] = prompt
        self.order[seat.id].append(job.id)
        return job

    def places(self, seat: Seat) -> int:
        """How many may be busy before `seat` is refused."""
        return self.slots + self.queue + (self.slots if seat.continues else 0)

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
        assert sum(read.count for read in plan.reads) <= PIECE
        assert len({id(read.seat) for read in plan.reads}) == len(plan.reads)
        for read in plan.reads:
            seat, count = read.seat, read.count
            assert 0 < count <= seat.unread
            assert self.rows[seat.row] == seat.id
            self.held[seat.id] += count
            self.scheduler.read_done(read)
            assert seat.unread == self._pending(seat)
        stepped = [seat.row for seat in plan.step]
        if self.by_index:
            assert not plan.swaps
            assert stepped == sorted(set(stepped))
            stepped = []
        assert stepped == list(range(len(stepped)))
        padding = range(len(stepped), self.padded(len(stepped)) if stepped else 0)
        bystanders = [self.seats[self.rows[row]] for row in padding if self.rows[row] is not None]
        assert not any(s.jobs and s.jobs[0].state is State.SPEAKING for s in bystanders)
        for seat in plan.step:
            assert self.rows[seat.row] == seat.id, "the row holds somebody else's positions"
            assert seat.unread == 0, "a frame was drawn before the prompt was read"
            assert seat.jobs[0].state is State.SPEAKING
            self.length[seat.id] += 1
            self.held[seat.id] += 1
            self.frames[seat.jobs[0].id] += 1
            self.scheduler.frame_drawn(seat)
            self.scheduler.frames_decoding(seat, 1)
            self.scheduler.frame_delivered(seat, self.now)
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
        assert scheduler.busy() <= 2 * self.slots + self.queue
        assert set(map(id, scheduler.seats())) == set(map(id, self.seats.values()))
        placed = {seat.id: seat.row for seat in self.seats.values() if seat.row is not None}
        assert placed == {name: row for row, name in enumerate(self.rows) if name is not None}
        for seat in self.seats.values():
            assert [job.id for job in seat.jobs] == self.order[seat.id]
            assert sum(job.state is not State.WAITING for job in seat.jobs) <= 1
            if seat.jobs and seat.jobs[0].state is not State.WAITING:
                assert seat.row is not None
