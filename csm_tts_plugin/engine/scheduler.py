"""Who works next. Knows rows, positions and frames as numbers; touches no tensor and no clock of
its own.

A *seat* is a conversation's place; it may hold a row of the device. Rows [0, B) are the ones that a
frame step works on, so seats that step are swapped to the front; the others keep their rows behind
as long as nobody needs them more. Each round `plan` gives at most one bounded piece of prompt to
read and one set of seats to step.
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


@dataclass(slots=True, eq=False)
class Job:
    """One utterance, as the scheduler sees it."""

    id: str
    live: bool = True
    more: bool = False
    due: bool = True
    """What was asked of its conversation before it has been done."""
    state: State = State.WAITING
    arrival: int = 0


@dataclass(slots=True, eq=False)
class Seat:
    """One conversation. `unread`: positions to be read; `play_end`: when its sound runs out."""

    id: str
    unread: int = 0
    row: int | None = None
    jobs: deque[Job] = field(default_factory=deque)
    continues: bool = False
    """Its last utterance said that the reply goes on."""
    paused: bool = False
    play_end: float = 0.0
    used: int = 0
    started: bool = False
    """The running job has delivered a frame."""

    @property
    def job(self) -> Job | None:
        return self.jobs[0] if self.jobs else None


@dataclass(frozen=True, slots=True)
class Begin:
    """What changed hands at the start of a round, for the caller to carry out before `plan`.

    `evicted` seats lost their row; `placed` seats were given one that holds nothing of theirs;
    `started` seats got a slot, so that their job's text now joins the conversation.
    """

    evicted: list[Seat]
    placed: list[Seat]
    started: list[Seat]


@dataclass(frozen=True, slots=True)
class Read:
    """Read the next `count` positions of `seat`."""

    seat: Seat
    count: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One round: swap rows, read a piece of a prompt, then one frame for `step`, rows [0, B).

    The seats' rows are those after the swaps.
    """

    swaps: list[tuple[int, int]]
    read: Read | None
    step: list[Seat]

    @property
    def idle(self) -> bool:
        return self.read is None and not self.step


class Scheduler:
    """Every change of seats, rows and job states happens here."""

    def __init__(
        self,
        *,
        slots: int,
        queue: int,
        rows: int,
        piece: int,
        max_lead_s: float,
        pad: Callable[[int], int] = lambda count: count,
    ) -> None:
        """`piece`: the most positions read between two frames of others. `pad`: the number of rows
        that a step of so many seats really runs over; no other seat with a slot may stand in the
        padding."""
        if rows < slots:
            raise ValueError("every slot needs a row")
        self.slots, self.queue = slots, queue
        self._piece, self._max_lead, self._pad = piece, max_lead_s, pad
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
        """Frees the row. Its jobs must have been taken out before."""
        self._release(seat)
        self._seats.pop(seat.id, None)

    def _release(self, seat: Seat) -> None:
        if seat.row is not None:
            self._rows[seat.row] = None
            seat.row = None

    # Jobs -----------------------------------------------------------------------------------------

    def admit(self, seat: Seat, job: Job, *, retry_after: float) -> None:
        """Queue `job`; BusyError when `seat` would be one conversation too many.

        A reply under way is let in where a new one is not, for half a reply is worse than a late
        one: up to as many beyond the limit as there are slots.
        """
        limit = self.slots + self.queue + (self.slots if seat.continues else 0)
        if not seat.jobs and self.busy() >= limit:
            raise BusyError(
                f"All {self.slots} slots speak and {self.queue} utterances wait; try again soon.",
                retry_after=retry_after,
            )
        self._clock += 1
        job.arrival = self._clock
        seat.jobs.append(job)

    def busy(self) -> int:
        """Conversations with something to say."""
        return sum(1 for seat in self._seats.values() if seat.jobs)

    def running(self) -> int:
        """Slots taken."""
        return sum(1 for seat in self._seats.values() if _runs(seat))

    def waiting(self) -> int:
        return self.busy() - self.running()

    def remove(self, seat: Seat, job: Job) -> None:
        """The job is over, or shall not begin."""
        if seat.job is job:
            seat.continues, seat.started = job.more, False
        seat.jobs.remove(job)

    def frame_made(self, seat: Seat, now: float) -> None:
        """One more frame of `seat` went out at `now`."""
        seat.play_end = max(seat.play_end, now) + FRAME_SECONDS
        seat.started = True

    def silence(self, seat: Seat, now: float) -> None:
        """What was made but not played is thrown away (barge-in)."""
        seat.play_end = now

    # Planning -------------------------------------------------------------------------------------

    def begin(self) -> Begin:
        """Hand out slots and rows."""
        changes = Begin([], [], [])
        self._start_waiting(changes)
        for seat in self._behind():
            if seat.row is None and None in self._rows:
                self._place(seat, changes)
        return changes

    def plan(self, now: float) -> Plan:
        self._pace(now)
        step = self._runnable()
        read = self._next_read(idle=not step)
        if read is not None and read.count == read.seat.unread and _reads(read.seat):
            # The prompt ends with this piece: its first frame is made in the same round.
            step = step if read.seat.paused else [*step, read.seat]
        swaps = self._to_front(step)
        return Plan(swaps, read, sorted(step, key=_row))

    def read_done(self, read: Read) -> None:
        seat = read.seat
        seat.unread -= read.count
        job = seat.job
        if not seat.unread and job is not None and job.state is State.READING:
            job.state = State.SPEAKING

    def next_event(self, now: float) -> float | None:
        """Seconds until a paused seat must go on; None when nothing will happen by itself."""
        leads = [seat.play_end - now for seat in self._seats.values() if seat.paused]
        return max(0.0, min(leads) - self._resume_lead) if leads else None

    def least_lead(self, now: float) -> float | None:
        """Seconds of sound that the speaking seat with the least of it has left."""
        leads = [s.play_end - now for s in self._seats.values() if s.started and _runs(s)]
        return min(leads) if leads else None

    def _pace(self, now: float) -> None:
        """A live stream far enough ahead of its playing rests.

        As soon as one of those that rest must go on, all go on whose lead allows it: streams fall
        into step and share one frame step where each would else need one of its own.
        """
        for seat in self._seats.values():
            live = _runs(seat) and seat.jobs[0].live
            seat.paused = live and (seat.paused or seat.play_end - now >= self._max_lead)
        resting = [seat for seat in self._seats.values() if seat.paused]
        if any(seat.play_end - now <= self._resume_lead for seat in resting):
            for seat in resting:
                seat.paused = seat.play_end - now >= self._max_lead

    def _start_waiting(self, changes: Begin) -> None:
        """Give free slots to those who wait: replies under way first, then by arrival."""
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

    def _next_read(self, *, idle: bool) -> Read | None:
        """Prompts of those about to speak first; context of the others when nobody has to."""
        reading = [seat for seat in self._seats.values() if _reads(seat)]
        if reading:
            seat = min(reading, key=lambda s: s.jobs[0].arrival)
            return Read(seat, min(seat.unread, self._piece))
        for seat in self._behind():
            if seat.row is not None:
                count = self._piece if idle else max(1, self._piece // 2)
                return Read(seat, min(seat.unread, count))
        return None

    def _behind(self) -> list[Seat]:
        """Quiet seats whose context is not all read yet, the longest unused first."""
        behind = [seat for seat in self._seats.values() if seat.unread and not _runs(seat)]
        return sorted(behind, key=lambda seat: seat.used)

    def _runnable(self) -> list[Seat]:
        return [
            seat
            for seat in self._seats.values()
            if seat.job is not None and seat.job.state is State.SPEAKING and not seat.paused
        ]

    def _place(self, seat: Seat, changes: Begin) -> None:
        """A row for `seat`: an empty one, else that of whoever has been quiet the longest."""
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
        """Move the seats of `step` to rows [0, len(step)), and whoever else has a slot out of the
        padding behind them; the swaps to make, in order."""
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


def _runs(seat: Seat) -> bool:
    return seat.job is not None and seat.job.state is not State.WAITING


def _waits(seat: Seat) -> bool:
    return seat.job is not None and seat.job.state is State.WAITING and seat.job.due


def _reads(seat: Seat) -> bool:
    return seat.job is not None and seat.job.state is State.READING


def _row(seat: Seat) -> int:
    if seat.row is None:
        raise RuntimeError("a seat that works has no row")
    return seat.row
