"""Scheduling: which prompts are prefilled and which streams take the next frame step.

Works on rows, positions and frames as numbers, without tensors and without a clock of its own. A
*seat* is the scheduler's record of a conversation; it may hold a KV row of the device. A frame step
works on rows [0, B), so seats that step are swapped to the front, unless steps take rows by index;
the others keep their rows behind them until a row is needed. Each round, `plan` gives the pieces of
prompts to prefill, within one budget, and one set of seats to step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from ..config import FRAME_SECONDS
from ..errors import BusyError


class State(Enum):
    WAITING = auto()
    """For a slot."""
    READING = auto()
    """Its prompt."""
    SPEAKING = auto()
    ENDING = auto()
    """Its last frame is drawn; audio is still to be delivered."""


@dataclass(slots=True, eq=False)
class Job:
    """The scheduler's record of one utterance."""

    id: str
    live: bool = True
    more: bool = False
    due: bool = True
    """Whether all earlier requests for its conversation are done."""
    state: State = State.WAITING
    arrival: int = 0


@dataclass(slots=True, eq=False)
class Seat:
    """The scheduler's record of one conversation. `unread`: number of positions to prefill;
    `play_end`: time at which the delivered audio will have been played.
    """

    id: str
    unread: int = 0
    row: int | None = None
    jobs: deque[Job] = field(default_factory=deque)
    continues: bool = False
    """Its last utterance was asked for with `more`: the reply goes on."""
    paused: bool = False
    play_end: float = 0.0
    used: int = 0
    # Frames of the running job:
    undecoded: int = 0
    """Drawn frames not given to the codec yet."""
    undelivered: int = 0
    """Drawn frames not delivered as audio yet."""
    decoded: int = 0
    delivered: int = 0

    @property
    def job(self) -> Job | None:
        return self.jobs[0] if self.jobs else None

    def ahead(self, now: float) -> float:
        """Seconds of audio that are drawn and not played."""
        delivered = self.play_end - now
        if not self.undelivered:
            return delivered
        return max(delivered, 0.0) + self.undelivered * FRAME_SECONDS


@dataclass(frozen=True, slots=True)
class Begin:
    """Changes at the start of a round, which the caller carries out before `plan`.

    `evicted` seats lost their row; `placed` seats got a row without their content; `started` seats
    got a slot, so that their job's text is now added to the context.
    """

    evicted: list[Seat]
    placed: list[Seat]
    started: list[Seat]


@dataclass(frozen=True, slots=True)
class Read:
    """Prefill the next `count` positions of `seat`."""

    seat: Seat
    count: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One round: swap rows, prefill pieces of prompts, then one frame for `step`, rows [0, B).

    The seats' rows are those after the swaps. No seat is in `reads` twice.
    """

    swaps: list[tuple[int, int]]
    reads: list[Read]
    step: list[Seat]

    @property
    def rows(self) -> list[int]:
        """The rows of `step`, in its order."""
        return [_row(seat) for seat in self.step]

    @property
    def idle(self) -> bool:
        return not self.reads and not self.step


class Scheduler:
    """Owns all seats, rows and job states; every change of them is a method of this class."""

    def __init__(
        self,
        *,
        slots: int,
        queue: int,
        rows: int,
        piece: int,
        max_lead_s: float,
        pad: Callable[[int], int] = lambda count: count,
        by_index: bool = False,
    ) -> None:
        """`piece`: the most positions, of all prompts together, that are prefilled between two
        frames of other streams. `pad`: number of seats -> number of rows that their step runs over;
        no other seat with a slot may be in the padding. `by_index`: a step may work on any rows;
        rows are never swapped.
        """
        if rows < slots:
            raise ValueError("every slot needs a row")
        self.slots, self.queue = slots, queue
        self._piece, self._max_lead, self._pad = piece, max_lead_s, pad
        self._by_index = by_index
        self._resume_lead = max_lead_s - FRAME_SECONDS
        self._rows: list[Seat | None] = [None] * rows
        self._seats: dict[str, Seat] = {}
        self._clock = 0

    # Seats ----------------------------------------------------------------------------------------

    def seats(self) -> Iterable[Seat]:
        return self._seats.values()

    def open(self, id: str) -> Seat:
        seat = self._seats[id] = Seat(id)
        return seat

    def close(self, seat: Seat) -> None:
        """Free the seat's row. Its jobs must have been removed before."""
        self._release(seat)
        self._seats.pop(seat.id, None)

    def _release(self, seat: Seat) -> None:
        if seat.row is not None:
            self._rows[seat.row] = None
            seat.row = None

    # Jobs -----------------------------------------------------------------------------------------

    def admit(self, seat: Seat, job: Job, *, retry_after: float) -> None:
        """Queue `job`. Raises BusyError when `seat` would be one conversation too many.

        A reply under way may exceed the limit by as many as there are slots, because a refusal in
        the middle of a reply is worse than a late reply.
        """
        limit = self.slots + self.queue + (self.slots if seat.continues else 0)
        if not seat.jobs and self.busy() >= limit:
            raise BusyError(
                f"All {self.slots} slots speak and {self.queue} conversations wait; try again "
                "soon.",
                retry_after=retry_after,
            )
        self._clock += 1
        job.arrival = self._clock
        seat.jobs.append(job)

    def busy(self) -> int:
        """Conversations with something to say."""
        return sum(1 for seat in self._seats.values() if seat.jobs)

    def running(self) -> int:
        """Number of occupied slots."""
        return sum(1 for seat in self._seats.values() if _runs(seat))

    def waiting(self) -> int:
        return self.busy() - self.running()

    def remove(self, seat: Seat, job: Job) -> None:
        """The job is over or was cancelled before it began."""
        if seat.job is job:
            seat.continues = job.more
            seat.undecoded = seat.undelivered = seat.decoded = seat.delivered = 0
        seat.jobs.remove(job)

    def frame_drawn(self, seat: Seat) -> None:
        seat.undecoded += 1
        seat.undelivered += 1

    def frames_decoding(self, seat: Seat, count: int) -> None:
        seat.undecoded -= count
        seat.decoded += count

    def frame_delivered(self, seat: Seat, now: float) -> None:
        """The audio of one more frame was delivered at time `now`."""
        seat.play_end = max(seat.play_end, now) + FRAME_SECONDS
        seat.undelivered -= 1
        seat.delivered += 1

    def last_drawn(self, seat: Seat) -> None:
        """No further frame of its job will be drawn; drawn frames are still to be delivered."""
        if seat.job is not None:
            seat.job.state, seat.paused = State.ENDING, False

    def silence(self, seat: Seat, now: float) -> None:
        """Discard audio that was generated but not played (barge-in)."""
        seat.play_end = now

    # Planning -------------------------------------------------------------------------------------

    def begin(self) -> Begin:
        """Assign slots and rows."""
        changes = Begin([], [], [])
        self._start_waiting(changes)
        for seat in self._behind():
            if seat.row is None and None in self._rows:
                self._place(seat, changes)
        return changes

    def plan(self, now: float) -> Plan:
        self._pace(now)
        step = self._runnable()
        reads = self._next_reads(idle=not step)
        # A prompt that ends with this piece: its first frame is drawn in the same round.
        ending = [r.seat for r in reads if r.count == r.seat.unread and _reads(r.seat)]
        step += [seat for seat in ending if not seat.paused]
        swaps = [] if self._by_index else self._to_front(step)
        return Plan(swaps, reads, sorted(step, key=_row))

    def read_done(self, read: Read) -> None:
        seat = read.seat
        seat.unread -= read.count
        job = seat.job
        if not seat.unread and job is not None and job.state is State.READING:
            job.state = State.SPEAKING

    def next_event(self, now: float) -> float | None:
        """Seconds until a paused seat must continue; None if no seat is paused."""
        leads = [seat.ahead(now) for seat in self._seats.values() if seat.paused]
        return max(0.0, min(leads) - self._resume_lead) if leads else None

    def least_lead(self, now: float) -> float | None:
        """The least lead of all speaking seats, in seconds of audio."""
        leads = [s.play_end - now for s in self._seats.values() if s.delivered and _runs(s)]
        return min(leads) if leads else None

    def _pace(self, now: float) -> None:
        """Pause live streams whose lead is large enough.

        As soon as one paused stream must continue, all continue whose lead allows it, so that they
        share frame steps instead of each needing its own.
        """
        for seat in self._seats.values():
            live = _paced(seat)
            seat.paused = live and (seat.paused or seat.ahead(now) >= self._max_lead)
        resting = [seat for seat in self._seats.values() if seat.paused]
        if any(seat.ahead(now) <= self._resume_lead for seat in resting):
            for seat in resting:
                seat.paused = seat.ahead(now) >= self._max_lead

    def _start_waiting(self, changes: Begin) -> None:
        """Give free slots to waiting seats: replies under way first, then by arrival."""
        free = self.slots - self.running()
        if free <= 0:
            return
        waiting = [seat for seat in self._seats.values() if _waits(seat)]
        waiting.sort(key=lambda seat: (not seat.continues, seat.jobs[0].arrival))
        for seat in waiting[:free]:
            if seat.row is None:
                self._place(seat, changes)
            seat.jobs[0].state = State.READING
            self._touch(seat)
            changes.started.append(seat)

    def _next_reads(self, *, idle: bool) -> list[Read]:
        """Pieces to prefill: first prompts of seats about to speak, by arrival; context of silent
        seats only if there are none.
        """
        reading = [seat for seat in self._seats.values() if _reads(seat)]
        if reading:
            return _share(sorted(reading, key=lambda s: s.jobs[0].arrival), self._piece)
        quiet = [seat for seat in self._behind() if seat.row is not None]
        return _share(quiet, self._piece if idle else max(1, self._piece // 2))

    def _behind(self) -> list[Seat]:
        """Silent seats whose context is not completely prefilled, the least recently used first."""
        behind = [seat for seat in self._seats.values() if seat.unread and not _runs(seat)]
        return sorted(behind, key=lambda seat: seat.used)

    def _runnable(self) -> list[Seat]:
        return [
            seat
            for seat in self._seats.values()
            if seat.job is not None and seat.job.state is State.SPEAKING and not seat.paused
        ]

    def _place(self, seat: Seat, changes: Begin) -> None:
        """Give `seat` a row: a free one, else that of the least recently used silent seat."""
        if None not in self._rows:
            quiet = [s for s in self._rows if s is not None and not _runs(s)]
            victim = min(quiet, key=lambda s: (bool(s.jobs), s.used))
            self._release(victim)
            changes.evicted.append(victim)
        row = max(row for row, holder in enumerate(self._rows) if holder is None)
        self._rows[row] = seat
        seat.row = row
        self._touch(seat)
        changes.placed.append(seat)

    def _touch(self, seat: Seat) -> None:
        self._clock += 1
        seat.used = self._clock

    def _to_front(self, step: list[Seat]) -> list[tuple[int, int]]:
        """Move the seats of `step` to rows [0, len(step)), and other seats with a slot out of the
        padding behind them. Returns the swaps in order.
        """
        chosen = set(map(id, step))
        holes = [r for r in range(len(step)) if id(self._rows[r]) not in chosen]
        outside = [seat for seat in step if _row(seat) >= len(step)]
        swaps = [(hole, _row(seat)) for hole, seat in zip(holes, outside, strict=True)]
        for a, b in swaps:
            self._exchange(a, b)
        padding = range(len(step), self._pad(len(step)) if step else 0)
        for row in padding:
            if self._taken(row):
                away = next(r for r in range(padding.stop, len(self._rows)) if not self._taken(r))
                self._exchange(row, away)
                swaps.append((row, away))
        return swaps

    def _taken(self, row: int) -> bool:
        holder = self._rows[row]
        return holder is not None and _runs(holder)

    def _exchange(self, a: int, b: int) -> None:
        self._rows[a], self._rows[b] = self._rows[b], self._rows[a]
        for row in (a, b):
            holder = self._rows[row]
            if holder is not None:
                holder.row = row


def _share(seats: list[Seat], budget: int) -> list[Read]:
    """Divides a budget of positions among `seats`, the first ones first."""
    reads: list[Read] = []
    for seat in seats:
        if not budget:
            break
        reads.append(Read(seat, min(seat.unread, budget)))
        budget -= reads[-1].count
    return reads


def _runs(seat: Seat) -> bool:
    return seat.job is not None and seat.job.state is not State.WAITING


def _paced(seat: Seat) -> bool:
    return _runs(seat) and seat.jobs[0].live and seat.jobs[0].state is not State.ENDING


def _waits(seat: Seat) -> bool:
    return seat.job is not None and seat.job.state is State.WAITING and seat.job.due


def _reads(seat: Seat) -> bool:
    return seat.job is not None and seat.job.state is State.READING


def _row(seat: Seat) -> int:
    if seat.row is None:
        raise RuntimeError("a seat that works has no row")
    return seat.row
