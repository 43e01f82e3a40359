"""Watermarking between the codec and the sinks: when frames may be held back for the watermark.

The marker looks ahead by three frames, and first audio must not become later. So the first frames
are delivered without a watermark, and frames are held back once a live stream has enough lead. A
stream that never gets that lead is watermarked from frame `LATEST` on all the same: a gap of a
frame or two is better than speech that cannot be detected. For speech that is not live only the
number of frames counts, so that the same seed gives the same file.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..audio.watermark import DELAY, Fade, Marker
from ..config import FRAME_SAMPLES, FRAME_SECONDS, WATERMARK_LEAD_S

LATEST = 16
"""The most frames of a live stream without a watermark: 1.28 s."""

PLAIN = 4
"""Frames without a watermark at the beginning of speech that is not live."""


def waits_at(*, live: bool, goes_on: bool, made: int, frames: int, lead_s: float) -> int | None:
    """How many of the next `frames` are delivered unmarked before frames are held back; None: all.

    `goes_on`: the utterance follows another sentence of its reply. `made`: frames before these.
    `lead_s`: seconds of audio delivered and not yet played.
    """
    if live and lead_s + frames * FRAME_SECONDS >= WATERMARK_LEAD_S:
        return 0
    plain = max(0, (LATEST if live else PLAIN) - made)
    if goes_on and not live:
        plain = 0
    return plain if plain < frames else None


class Marking:
    """The watermark as a `sound.Stage`."""

    held = DELAY

    def __init__(self, rows: int, device: torch.device | str) -> None:
        """Raises ModelLoadError where the weights are missing or damaged."""
        self._marker = Marker(rows, device)
        self._fades = [Fade() for _ in range(rows)]

    @torch.inference_mode()
    def __call__(
        self,
        samples: Tensor,
        rows: Sequence[int],
        last: Sequence[bool],
        waits: Sequence[int | None],
    ) -> list[Tensor]:
        fades = [self._fades[row] for row in rows]
        out: list[list[Tensor]] = [[] for _ in rows]
        if samples.shape[1]:
            marked = self._marker(samples, rows)
            for part, plain, mark, fade, wait in zip(
                out, samples, marked, fades, waits, strict=True
            ):
                part.append(fade.push(plain, mark, wait))
        ending = [at for at, fade in enumerate(fades) if last[at] and fade.waits]
        if ending:
            rest = self._marker.finish([rows[at] for at in ending])
            for at, mark in zip(ending, rest, strict=True):
                out[at].append(fades[at].finish(mark))
        nothing = samples[0, :0]
        return [torch.cat(parts) if len(parts) > 1 else next(iter(parts), nothing) for parts in out]

    def reset(self, row: int) -> None:
        self._marker.reset(row)
        self._fades[row] = Fade()


class MarkedStream:
    """Watermarks one stream of speech in chunks of whole frames, except its
    first `PLAIN` frames.
    """

    def __init__(self, device: torch.device | str) -> None:
        """Raises ModelLoadError where the weights are missing or damaged."""
        self._stage, self._made, self._device = Marking(1, device), 0, device

    def push(self, chunk: Tensor) -> Tensor:
        """Samples [n * 1920] -> the samples to deliver now; after the first chunks three frames
        behind the input.
        """
        frames = len(chunk) // FRAME_SAMPLES
        wait = waits_at(live=False, goes_on=False, made=self._made, frames=frames, lead_s=0.0)
        self._made += frames
        return self._stage(chunk[None], [0], [False], [wait])[0]

    def finish(self) -> Tensor:
        """The samples that were held back."""
        return self._stage(torch.zeros(1, 0, device=self._device), [0], [True], [None])[0]
