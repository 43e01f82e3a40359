"""One call as the engine sees it: a voice, turns, and utterances waiting to be spoken."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field

from ..errors import CsmError
from .api import Codes, Done, Event, Failed, Reason, Sampling, Sink, Timings, Turn, VoicePrompt
from .context import Context, Positions
from .guards import Guard
from .runner import Draw
from .scheduler import Job, Seat

log = logging.getLogger("csm_tts_plugin.engine")

NOBODY = "agent"
"""Who speaks where there is no reference voice."""


@dataclass(slots=True, eq=False)
class Utterance:
    """A job with what is needed to speak it."""

    job: Job
    prompt: Positions
    """Its text, as positions."""
    sink: Sink
    draw: Draw
    guard: Guard
    accepted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    read: float = 0.0
    first_audio: float = 0.0
    frames: int = 0

    @property
    def id(self) -> str:
        return self.job.id

    def hand(self, event: Event) -> None:
        """Give `event` to whoever listens; a listener that raises harms nobody else."""
        try:
            self.sink(event)
        except Exception:
            log.exception("a listener failed")

    def fail(self, error: CsmError) -> None:
        self.hand(Failed(self.id, error))

    def done(self, reason: Reason) -> Done:
        now = time.monotonic()

        def since(moment: float) -> float:
            return (moment or now) - self.accepted

        timings = Timings(
            since(self.started), since(self.read), since(self.first_audio), now - self.accepted
        )
        return Done(self.id, self.frames, reason, timings)


@dataclass(frozen=True, slots=True)
class Record:
    """A turn as it entered the context. `codes` [n, K]; None for what the engine spoke itself."""

    name: str
    text: str
    codes: Codes | None
    ours: bool
    utterance: str = ""
    """Which of ours it is."""


@dataclass(slots=True, eq=False)
class Conversation:
    """`records` stand beside the turns of `context`: a change of voice writes them anew."""

    seat: Seat
    context: Context
    sampling: Sampling
    voice: VoicePrompt | None = None
    utterances: dict[str, Utterance] = field(default_factory=dict)
    records: deque[Record] = field(default_factory=deque)
    waiting_turns: list[Turn] = field(default_factory=list)
    """Turns that came while an utterance was being spoken; they follow it."""
    waiting_cuts: dict[str, int] = field(default_factory=dict)
    """What was heard of earlier utterances, told while another one was being spoken."""
    waiting_voice: list[VoicePrompt | None] = field(default_factory=list)
    """A voice that came while an utterance was being spoken; the last one counts."""
    speakers: dict[str, int] = field(default_factory=dict)
    broken: CsmError | None = None
    """Why its voice cannot be had; what it is asked to say fails with this."""

    @property
    def id(self) -> str:
        return self.seat.id

    @property
    def voice_key(self) -> str:
        return self.voice.key if self.voice else ""

    @property
    def voice_name(self) -> str:
        return self.voice.speaker if self.voice else NOBODY

    @property
    def speaking(self) -> Utterance | None:
        """The utterance whose text has joined the context."""
        job = self.seat.job
        utterance = self.utterances.get(job.id) if job else None
        return utterance if utterance and utterance.started else None

    def speaker(self, name: str) -> int:
        """The model's number for `name`: the voice is 0, others follow in order of appearance."""
        if not self.speakers:
            self.speakers[self.voice_name] = 0
        return self.speakers.setdefault(name, len(self.speakers))

    def add_turn(self, record: Record, positions: Positions) -> None:
        self.records.append(record)
        self.context.add_turn(positions)
        self.refresh()

    def drop_turn(self) -> None:
        """The last turn never was."""
        if self.records:
            self.records.pop()
            self.context.drop_turn()
        self.refresh()

    def keep_heard(self, utterance: str, frames: int, end: Positions) -> None:
        """Of an utterance that is over the first `frames` stay, and nothing at all of none."""
        for at, record in enumerate(self.records):
            if record.utterance == utterance:
                made = len(self.context.turns[at]) - 2
                if not frames:
                    del self.records[at]
                    self.context.take_out(at)
                elif frames < made:
                    self.context.cut_turn(at, frames, end)
                return self.refresh()

    def make_room(self, need: int) -> None:
        """Drop the oldest turns until `need` positions fit. Raises RequestError where nothing
        helps.
        """
        try:
            self.context.make_room(need)
        finally:
            while len(self.records) > len(self.context.turns):
                self.records.popleft()
            self.refresh()

    def fit(self) -> None:
        """Keep of the turns what has room beside the voice: the newest, unless one alone is too
        long.
        """
        while True:
            try:
                return self.make_room(0)
            except CsmError as error:
                log.warning("a turn was left out of the conversation: %s", error)
                self.drop_turn()

    def refresh(self) -> None:
        """Tell the scheduler how much there is to read."""
        self.seat.unread = self.context.pending
