"""From drawn frames to the sinks: codec, guards on the audio, then one `Audio` event per frame.

Runs on the engine's thread only. How many frames are decoded at once depends on time (`chunks.py`),
but the delivered frames, their order and their end do not.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..config import FRAME_SAMPLES
from ..errors import NumericError
from .api import Audio, Codes, Reason, Samples
from .chunks import LENGTHS, Chunks
from .conversation import Conversation, Ending, Utterance
from .marking import waits_at
from .scheduler import Scheduler, Seat
from .sound import Chunk, Codec


@dataclass(frozen=True, slots=True)
class _Sent:
    """A codec call whose samples have not been examined yet."""

    chunk: Chunk
    frames: int
    whose: list[tuple[Seat, Utterance]]


class Delivery:
    def __init__(
        self,
        codec: Codec,
        scheduler: Scheduler,
        lock: threading.Condition,
        find: Callable[[Seat], Conversation],
    ) -> None:
        self._codec, self._scheduler, self._lock, self._find = codec, scheduler, lock, find
        self._chunks = Chunks()
        self._sent: list[_Sent] = []

    # Utterances -----------------------------------------------------------------------------------

    def begin(self, utterance: Utterance) -> None:
        utterance.row = self._codec.take()

    def drop(self, utterance: Utterance) -> None:
        """The utterance is over; frames that were not delivered are dropped."""
        if utterance.row is not None:
            self._codec.give(utterance.row)
            utterance.row = None

    def drawn(self, seat: Seat, utterance: Utterance, codes: Codes) -> None:
        """The model has drawn one more frame of `utterance`."""
        utterance.undecoded.append(codes.copy())
        utterance.drawn += 1
        with self._lock:
            self._scheduler.frame_drawn(seat)

    def end(self, seat: Seat, utterance: Utterance, ending: Ending) -> None:
        """No further frame will be drawn."""
        utterance.ending = ending
        with self._lock:
            self._scheduler.last_drawn(seat)

    # Rounds ---------------------------------------------------------------------------------------

    def round_took(self, seconds: float) -> None:
        self._chunks.round_took(seconds)

    def wait(self, now: float) -> float | None:
        """Seconds until a frame must be decoded; None: not before another frame is drawn. The lock
        is held.
        """
        return 0.0 if self._sent else self._chunks.wait(self._scheduler.seats(), now)

    def decode(self, now: float, stepping: int) -> bool:
        """Give the codec the frames that are due, while `stepping` streams
        draw. False: none were.
        """
        with self._lock:
            seats = list(self._scheduler.seats())
            calls = self._chunks.due(seats, now, budget=max(stepping, LENGTHS[-1]))
        for call in calls:
            most = self._codec.most_rows(call.frames)
            for begin in range(0, len(call.seats), most):
                self._decode(call.frames, call.seats[begin : begin + most])
        self._flush(seats)
        return bool(calls)

    def collect(self) -> None:
        """Deliver the samples of all codec calls, waiting for those that are not done."""
        while self._sent:
            self._deliver(self._sent.pop(0))

    def _decode(self, frames: int, seats: list[Seat]) -> None:
        # A sink may cancel another utterance while frames are delivered to it.
        whose = [(seat, utterance) for seat in seats if (utterance := self._speaking(seat))]
        whose = [(seat, one) for seat, one in whose if len(one.undecoded) >= frames]
        if not whose:
            return
        codes, last, waits = [], [], []
        now = time.monotonic()
        for seat, utterance in whose:
            waits.append(_waits(seat, frames, now))
            taken = [utterance.undecoded.popleft() for _ in range(frames)]
            utterance.undelivered.extend(taken)
            codes.append(np.stack(taken, axis=1))
            utterance.flushed = utterance.ending is not None and not utterance.undecoded
            last.append(utterance.flushed)
            with self._lock:
                self._scheduler.frames_decoding(seat, frames)
        self._send(frames, whose, np.stack(codes), last, waits)

    def _flush(self, seats: list[Seat]) -> None:
        """Get held-back samples of utterances that ended with no frame left to decode."""
        if self._codec.stage is None:
            return
        ended = [
            (seat, one)
            for seat in seats
            if (one := self._speaking(seat)) and one.ending and not one.flushed
            if one.undelivered and not one.undecoded
        ]
        if ended:
            for _, utterance in ended:
                utterance.flushed = True
            nothing = np.zeros((len(ended), 1, 0), np.int64)
            self._send(0, ended, nothing, [True] * len(ended), [None] * len(ended))

    def _send(
        self,
        frames: int,
        whose: list[tuple[Seat, Utterance]],
        codes: Codes,
        last: list[bool],
        waits: list[int | None],
    ) -> None:
        rows = [one.row for _, one in whose if one.row is not None]
        assert len(rows) == len(whose)
        self._sent.append(_Sent(self._codec.decode(rows, codes, last, waits), frames, whose))
        if not self._codec.runs_behind:
            self.collect()

    def _speaking(self, seat: Seat) -> Utterance | None:
        utterance = self._find(seat).speaking
        return utterance if utterance is not None and utterance.row is not None else None

    # Audio ----------------------------------------------------------------------------------------

    def _deliver(self, sent: _Sent) -> None:
        chunk = sent.chunk
        for (seat, utterance), samples, levels in zip(
            sent.whose, chunk.samples, chunk.levels, strict=True
        ):
            if utterance.row is None:
                continue
            for level in levels:
                self._look(seat, utterance, float(level))
            self._hand_out(seat, utterance, samples)

    def _look(self, seat: Seat, utterance: Utterance, level: float) -> None:
        """Let the guard examine the level of the next frame."""
        if utterance.limit is not None:
            return
        utterance.checked += 1
        if not math.isfinite(level):
            utterance.checked -= 1
            error = NumericError("The codec produced NaN or Inf; this utterance ends here.")
            self._cut(seat, utterance, error)
        elif utterance.guard.is_silent(level) and not self._reached_length(utterance):
            self._cut(seat, utterance, Reason.SILENCE)

    @staticmethod
    def _reached_length(utterance: Utterance) -> bool:
        """Whether it ends with this frame by its length anyway."""
        return utterance.ending is Reason.LENGTH and utterance.checked == utterance.drawn

    def _cut(self, seat: Seat, utterance: Utterance, ending: Ending) -> None:
        """End it with the examined frame, however many were drawn in the meantime."""
        utterance.limit = utterance.checked
        utterance.undecoded.clear()
        self.end(seat, utterance, ending)
        with self._lock:
            seat.undecoded = 0

    def _hand_out(self, seat: Seat, utterance: Utterance, samples: Samples) -> None:
        sound = np.concatenate([*utterance.rest, samples]) if utterance.rest else samples
        for begin in range(0, len(sound) - FRAME_SAMPLES + 1, FRAME_SAMPLES):
            if utterance.cancelled or utterance.frames == utterance.limit:
                return
            self._hand_one(seat, utterance, sound[begin : begin + FRAME_SAMPLES])
        left = len(sound) % FRAME_SAMPLES
        utterance.rest = [sound[-left:]] if left else []

    def _hand_one(self, seat: Seat, utterance: Utterance, samples: Samples) -> None:
        now = time.monotonic()
        if not utterance.frames:
            utterance.first_audio = now
        codes = utterance.undelivered.popleft()
        number, utterance.frames = utterance.frames, utterance.frames + 1
        with self._lock:
            self._scheduler.frame_delivered(seat, now)
        utterance.hand(Audio(utterance.id, number, samples, codes))


def _waits(seat: Seat, frames: int, now: float) -> int | None:
    """How many of the next `frames` are delivered before the stage may hold samples back."""
    return waits_at(
        live=seat.jobs[0].live,
        goes_on=seat.continues,
        made=seat.decoded,
        frames=frames,
        lead_s=seat.play_end - now,
    )
