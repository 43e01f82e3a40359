"""The engine's state of one conversation: voice, turns, and the queue of utterances."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field

from ..errors import CsmError
from .api import (
    Codes,
    Done,
    Event,
    Failed,
    Reason,
    Samples,
    Sampling,
    Sink,
    Timings,
    Turn,
    VoicePrompt,
)
from .context import Context, Positions
from .guards import Guard
from .runner import Draw
from .scheduler import Job, Seat

log = logging.getLogger("csm_tts_plugin.engine")

Ending = Reason | CsmError

DEFAULT_SPEAKER = "agent"
"""The speaker's name without reference audio."""


@dataclass(slots=True, eq=False)
class Utterance:
    """A scheduler's job with its text, its sink and the state of its audio."""

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
    row: int | None = None
    """Its row in the codec's state."""
    drawn: int = 0
    """Number of frames drawn by the model."""
    frames: int = 0
    """Number of frames delivered as audio."""
    undecoded: deque[Codes] = field(default_factory=deque)
    undelivered: deque[Codes] = field(default_factory=deque)
    """Codes of frames that were given to the codec and are not delivered."""
    rest: list[Samples] = field(default_factory=list)
    """Decoded samples that do not fill a frame yet."""
    calls: int = 0
    """Codec calls whose samples have not been fetched yet."""
    checked: int = 0
    """Number of frames whose level the guard has examined."""
    limit: int | None = None
    """Frame count at which the guard ended it; more may have been drawn in the meantime."""
    ending: Ending | None = None
    """Why no further frame is drawn."""
    closed: bool = False
    """The model's end frame is in the context."""
    flushed: bool = False
    """The codec has been told that no frame follows."""
    cancelled: bool = False
    """Set by the caller's thread at a cancellation, so that no further frame is delivered."""

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def delivered(self) -> bool:
        """Whether it has ended and all of its audio was delivered."""
        last = self.drawn if self.limit is None else self.limit
        return self.ending is not None and self.frames >= last

    def hand(self, event: Event) -> None:
        """Pass `event` to the sink. An exception of the sink is logged and goes no further."""
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
    """A turn as it entered the context. `codes` [n, K]; None for the engine's own utterances."""

    name: str
    text: str
    codes: Codes | None
    ours: bool
    utterance: str = ""
    """The utterance's id if the engine spoke it."""


@dataclass(slots=True, eq=False)
class Conversation:
    """`records` correspond to the turns of `context`, which a change of voice
    rebuilds from them.
    """

    seat: Seat
    context: Context
    sampling: Sampling
    voice: VoicePrompt | None = None
    utterances: dict[str, Utterance] = field(default_factory=dict)
    records: deque[Record] = field(default_factory=deque)
    waiting_turns: list[Turn] = field(default_factory=list)
    """Turns that arrived while an utterance was being spoken; they are added after it."""
    waiting_cuts: dict[str, int] = field(default_factory=dict)
    """Frames heard of earlier utterances, reported while another one was being spoken."""
    waiting_voice: list[VoicePrompt | None] = field(default_factory=list)
    """Voices set while an utterance was being spoken; the last one counts."""
    speakers: dict[str, int] = field(default_factory=dict)
    broken: CsmError | None = None
    """Why its reference could not be encoded; its utterances fail with this error."""

    @property
    def id(self) -> str:
        return self.seat.id

    @property
    def voice_key(self) -> str:
        return self.voice.key if self.voice else ""

    @property
    def voice_name(self) -> str:
        return self.voice.speaker if self.voice else DEFAULT_SPEAKER

    @property
    def speaking(self) -> Utterance | None:
        """The utterance whose text is in the context, None when it is silent."""
        job = self.seat.job
        utterance = self.utterances.get(job.id) if job else None
        return utterance if utterance and utterance.started else None

    def must_speak(self) -> Utterance:
        """`speaking` of a conversation that takes part in a step, where it cannot be None."""
        utterance = self.speaking
        if utterance is None:
            raise RuntimeError("a seat that steps has no utterance")
        return utterance

    def speaker(self, name: str) -> int:
        """The model's speaker number of `name`: 0 for the voice, others in order of appearance."""
        if not self.speakers:
            self.speakers[self.voice_name] = 0
        return self.speakers.setdefault(name, len(self.speakers))

    def add_turn(self, record: Record, positions: Positions) -> None:
        self.records.append(record)
        self.context.add_turn(positions)
        self.refresh()

    def drop_turn(self) -> None:
        """Remove the last turn."""
        if self.records:
            self.records.pop()
            self.context.drop_turn()
        self.refresh()

    def keep_heard(self, utterance: str, frames: int, end: Positions) -> None:
        """Keep the first `frames` frames of a finished utterance; with 0 its
        whole turn is removed.
        """
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
        """Drop the oldest turns until `need` positions fit. Raises RequestError if they cannot."""
        try:
            self.context.make_room(need)
        finally:
            while len(self.records) > len(self.context.turns):
                self.records.popleft()
            self.refresh()

    def fit(self) -> None:
        """Keep the newest turns that have room beside the reference. A single turn that is too long
        is removed.
        """
        while True:
            try:
                return self.make_room(0)
            except CsmError as error:
                log.warning("a turn was left out of the conversation: %s", error)
                self.drop_turn()

    def refresh(self) -> None:
        """Tell the scheduler how many positions are to be prefilled."""
        self.seat.unread = self.context.pending
