"""Converts audio of any rate and channels to mono float32 at 24 kHz, in
pieces and within limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

import numpy as np
import soxr

from ..config import SAMPLE_RATE
from .bounds import Bounds, check_format, check_length, check_longest, check_values

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

PIECE_FRAMES = 65_536
_CANCELLED = 0.05
"""If the mean of all channels has less than this share of the loudest channel's energy (-13 dB),
the channels cancel each other (opposite phase) or most are empty.
"""


class Source(Protocol):
    rate: int
    channels: int
    promised: int | None
    """Number of frames according to the header, None if it does not say."""

    def pieces(self) -> Iterator[Samples]:
        """float32 [frames, channels]"""

    def close(self) -> None: ...


def mono_of(opened: Callable[[], Source], bounds: Bounds) -> Samples:
    """The mean of the channels, or the loudest one where they cancel each other: float32 [n] at
    24 kHz. Reads in pieces, because many channels and high rates would need far more memory than
    the result.

    Raises AudioError.
    """
    with closing(opened()) as source:
        samples, loudest = _read(source, bounds, None)
    if loudest is not None:
        with closing(opened()) as source:
            samples, _ = _read(source, bounds, loudest)
    return samples


def _read(source: Source, bounds: Bounds, channel: int | None) -> tuple[Samples, int | None]:
    """The mean or one channel, and the number of the channel to use instead, or None."""
    check_format(source.rate, source.channels)
    if source.promised is not None:
        check_length(source.promised, source.rate, bounds)
    resampler = soxr.ResampleStream(source.rate, SAMPLE_RATE, 1, dtype="float32")
    pieces: list[Samples] = []
    energies, energy, read = np.zeros(source.channels), 0.0, 0
    for piece in source.pieces():
        read += len(piece)
        check_longest(read, source.rate, bounds)
        check_values(piece)
        mono = piece.mean(axis=1) if channel is None else piece[:, channel]
        energies += np.square(piece, dtype=np.float64).sum(axis=0)
        energy += float(np.square(mono, dtype=np.float64).sum())
        pieces.append(resampler.resample_chunk(np.clip(mono, -1.0, 1.0)))
    check_length(read, source.rate, bounds)
    pieces.append(resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    loudest = int(energies.argmax())
    cancelled = channel is None and energy < _CANCELLED * energies[loudest]
    return np.clip(np.concatenate(pieces), -1.0, 1.0), loudest if cancelled else None


class AtHand:
    """Samples in memory, [frames, channels]."""

    def __init__(self, samples: Samples, rate: int) -> None:
        self._samples = samples
        self.rate, self.channels = rate, samples.shape[1]
        self.promised: int | None = len(samples)

    def pieces(self) -> Iterator[Samples]:
        for at in range(0, len(self._samples), PIECE_FRAMES):
            yield self._samples[at : at + PIECE_FRAMES]

    def close(self) -> None:
        pass
