"""Forwards one utterance from the engine to a client: resampled, numbered and counted."""

from __future__ import annotations

import time
from typing import Protocol

from ..audio.resample import StreamResampler, to_pcm16
from ..config import SAMPLE_RATE
from ..engine.api import Audio, Done, Event, Failed, Samples
from ..errors import CsmError
from ..wire.protocol import AudioHeader, DoneMessage, ErrorMessage, encode
from .metrics import Metrics
from .outbox import Outbox


class Owner(Protocol):
    """The session that a relay reports to."""

    def ended(self, relay: Relay) -> None: ...

    def fail(self, error: CsmError) -> None: ...


class Relay:
    """Receives an utterance's events on the event loop; `id` is the client's name for it.

    `first`: no utterance of the conversation is before it. `deadline_s`: seconds for its first
    audio, from the time when it is next to speak. `parent`: the client's trace span.
    """

    def __init__(
        self,
        id: str,
        rate: int,
        owner: Owner,
        outbox: Outbox,
        metrics: Metrics,
        *,
        first: bool,
        deadline_s: float,
        parent: str | None = None,
    ) -> None:
        self.id = id
        self.deadline_s = deadline_s
        self.engine_id: str | None = None
        self._first = first
        self._parent = parent
        self._rate = rate
        self._owner = owner
        self._outbox = outbox
        self._metrics = metrics
        self._resampler = StreamResampler(SAMPLE_RATE, rate)
        self._seq = 0
        self._silenced = False
        self._detached = False
        self._began = time.monotonic()
        self._heard: float | None = None

    @property
    def begun(self) -> bool:
        """Whether audio of it has arrived."""
        return self._heard is not None

    def silence(self) -> None:
        """Send no more of its audio; its end is still reported."""
        self._silenced = True

    def detach(self) -> None:
        """Report nothing any more, because the session has ended."""
        self._detached = True

    def receive(self, event: Event) -> None:
        if isinstance(event, Done):
            self._metrics.ended(event, first=self._first, parent=self._parent)
        if self._detached:
            return
        match event:
            case Audio():
                began = self._began if self._first else None
                self._heard = self._metrics.heard(began, self._heard)
                self._send(self._resampler.push(event.samples), event.frame)
            case Done():
                self._send(self._resampler.flush(), event.frames)
                self._end(event)
            case Failed():
                self._metrics.errors.labels(event.error.code).inc()
                self._outbox.put(encode(ErrorMessage.of(event.error, self.id)))
                self._owner.ended(self)

    def _send(self, samples: Samples, frame: int) -> None:
        if self._silenced or len(samples) == 0:
            return
        header = AudioHeader(self.id, self._seq, frame, len(samples))
        self._seq += 1
        seconds = len(samples) / self._rate
        try:
            self._outbox.put_sound(encode(header), to_pcm16(samples), seconds, self.id)
        except CsmError as error:
            self._silenced = True
            self._owner.fail(error)

    def _end(self, done: Done) -> None:
        reason, timings = str(done.reason), done.timings
        seconds = {
            "queued": timings.queued,
            "prefill": timings.prefill,
            "first_audio": timings.first_audio,
            "total": timings.total,
        }
        self._outbox.put(encode(DoneMessage(self.id, done.frames, reason, seconds)))
        self._owner.ended(self)
