"""When drawn frames are decoded, and how many in one call of the codec. Numbers only, no tensors.

Eight frames in one call take far less time than eight calls, because each call reads all of the
codec's weights. But a frame that waits for others is heard later. So an utterance's first frame is
decoded at once; after that, as many frames are collected as were delivered before (1, 2, 4, then
8), so that no more is held back than there is to play. Nothing is held back for a live stream
whose lead is about to run out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .scheduler import Seat, State

LENGTHS = (1, 2, 4, 8)
"""Numbers of frames in one call of the codec; each has a CUDA graph."""

_MARGIN = 0.04
"""Seconds added to the time of three rounds."""

_FORGET = 0.98
"""Factor by which the weight of a slow round falls with each further round."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the codec: the next `frames` frames of each of `seats`."""

    frames: int
    seats: list[Seat]


class Chunks:
    """Decides after each step, for all seats, what is decoded."""

    def __init__(self) -> None:
        self._slowest = 0.0

    def round_took(self, seconds: float) -> None:
        """Note the duration of a round in which there was work, codec calls included."""
        self._slowest = max(seconds, self._slowest * _FORGET)

    @property
    def reserve(self) -> float:
        """Seconds of lead below which no frame is held back. A frame held back now is considered
        again a round later and delivered at that round's end: two rounds, and a third because each
        may take half as long again as any before. With two, and slow rounds soon forgotten, frames
        were late in one of 160 random courses near real time.
        """
        return 3 * self._slowest + _MARGIN

    def due(self, seats: Iterable[Seat], now: float, budget: int) -> list[Call]:
        """The calls to make now, the shortest first.

        Chunks that are full but not urgent are limited to `budget` frames, those with the least
        lead first: otherwise streams that began together would all be decoded in one round and
        delay every other stream.
        """
        counts: list[tuple[int, Seat]] = []
        full: list[tuple[float, Seat]] = []
        for seat in seats:
            if not seat.undecoded:
                continue
            lead = seat.play_end - now
            urgent = _live(seat) and lead <= self.reserve
            if urgent or not seat.delivered or _ends(seat):
                counts += [(length, seat) for length in pieces(seat.undecoded)]
            elif seat.undecoded >= min(LENGTHS[-1], seat.decoded):
                full.append((lead, seat))
        budget -= sum(length for length, _ in counts)
        for _, seat in sorted(full, key=lambda pair: pair[0]):
            if budget <= 0:
                break
            counts.append((pieces(seat.undecoded)[0], seat))
            budget -= counts[-1][0]
        return _together(counts)

    def wait(self, seats: Iterable[Seat], now: float) -> float | None:
        """Seconds until a frame is due even if no further frame is drawn; None: never."""
        leads = [
            seat.play_end - now
            for seat in seats
            if seat.undecoded and seat.delivered and _live(seat)
        ]
        return max(0.0, min(leads) - self.reserve) if leads else None


def _together(counts: list[tuple[int, Seat]]) -> list[Call]:
    """Groups the seats by chunk length into one call each; a seat may be in several calls."""
    calls: list[Call] = []
    for frames in LENGTHS:
        remaining = [seat for length, seat in counts if length == frames]
        while remaining:
            once = list({id(seat): seat for seat in remaining}.values())
            calls.append(Call(frames, once))
            for seat in once:
                remaining.remove(seat)
    return calls


def pieces(count: int) -> list[int]:
    """Splits `count` into the fewest of `LENGTHS`, the longest first."""
    pieces: list[int] = []
    for length in reversed(LENGTHS):
        pieces += [length] * (count // length)
        count %= length
    return pieces


def _live(seat: Seat) -> bool:
    return seat.job is not None and seat.job.live


def _ends(seat: Seat) -> bool:
    return seat.job is not None and seat.job.state is State.ENDING
