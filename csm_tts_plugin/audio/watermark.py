"""Streaming watermark: Perth's marking network with state, for many rows at once.

The network's receptive field is 150 ms on each side, plus 32 ms for the spectrum, so watermarked
samples are `DELAY` frames behind the input; `Fade` chooses what is delivered until then. Rows are
independent of each other, and any split into calls gives the samples of one call over the whole
with silence before and after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import FRAME_SAMPLES
from .perth import (
    BANDS,
    DEPTH,
    KERNEL,
    RANGE_DB,
    REACH,
    STEP,
    WINDOW,
    Convolutions,
    Spectrum,
    load_weights,
    part,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

DELAY = 3
"""Frames by which the output is behind the input: 214 ms of context, in whole frames."""

_PAST = DELAY * FRAME_SAMPLES
_BEHIND = 9 * STEP
"""The first new window begins this many samples before the new input, so that the last one ends
within it; the watermarked output ends where the newest complete window begins."""
_PIECES = -(-WINDOW // STEP)
"""Steps that a window overlaps, the last one partly."""
STRENGTH = 1.25
"""Factor on the changes of level, in decibels, that Perth makes. The first frames of speech are not
marked here, and with Perth's own strength 3 of 120 short sentences were not detected after Opus at
16 kbit/s. It costs 0.15 of PESQ."""
_DB = 0.05 * 2.302585092994046
"""Factor from decibels to the natural logarithm of the amplitude."""


class Marker:
    """Watermarks up to `rows` streams. All state is kept per row; see `state`."""

    def __init__(self, rows: int, device: torch.device | str = "cpu") -> None:
        """Raises ModelLoadError if the weights are missing or damaged."""
        device = torch.device(device)
        self._net = Convolutions(part(load_weights("marker.safetensors"), "marker"), device)
        self._spectrum = Spectrum(device)
        rest = self._net.at_rest()
        self._rest = [layer.expand(KERNEL - 1, -1) for layer in rest]

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, device=device)

        self._sound = zeros(_PAST)
        self._spectra = zeros(REACH, 2 * BANDS)
        self._tail = zeros(_PIECES - 1, STEP)
        self._seen = [layer.expand(rows, -1, -1).clone() for layer in self._rest]
        self.state = [self._sound, self._spectra, self._tail, *self._seen]

    @torch.inference_mode()
    def __call__(self, samples: Tensor, rows: Sequence[int]) -> Tensor:
        """Samples [B, n * 1920] of `rows` -> the same number, watermarked, `DELAY` frames behind"""
        first = rows[0]
        if list(rows) == list(range(first, first + len(rows))):
            return self._mark(samples, [one[first : first + len(rows)] for one in self.state])
        index = torch.tensor(list(rows), device=self._sound.device)
        parts = [one[index] for one in self.state]
        result = self._mark(samples, parts)
        for state, new in zip(self.state, parts, strict=True):
            state.index_copy_(0, index, new)
        return result

    @torch.inference_mode()
    def finish(self, rows: Sequence[int]) -> Tensor:
        """The last samples [len(rows), DELAY * 1920] of streams that end. Call `reset` after it."""
        return self(self._sound.new_zeros(len(rows), _PAST), rows)

    @torch.inference_mode()
    def reset(self, row: int) -> None:
        """Clear the state of `row`: another stream begins in it."""
        for state in (self._sound, self._spectra, self._tail):
            state[row].zero_()
        for seen, rest in zip(self._seen, self._rest, strict=True):
            seen[row].copy_(rest)

    def _mark(self, samples: Tensor, state: list[Tensor]) -> Tensor:
        sound, spectra, tail, *seen = state
        length = samples.shape[1]
        steps = length // STEP
        whole = torch.cat([sound, samples], dim=1)
        begin = _PAST - _BEHIND
        windows = whole[:, begin : begin + (steps - 1) * STEP + WINDOW].unfold(1, WINDOW, STEP)
        new = self._spectrum.of(windows)
        change = self._change(self._spectrum.loudness(new), seen)
        held = torch.cat([spectra, new], dim=1)
        marks = self._spectrum.sound(held[:, :steps] * torch.cat([change, change], dim=2))
        added = self._added(marks, tail)
        result = whole[:, :length] + added[:, :steps].flatten(1)
        sound.copy_(whole[:, length:])
        spectra.copy_(held[:, steps:])
        tail.copy_(added[:, steps:])
        return result

    def _change(self, loudness: Tensor, seen: list[Tensor]) -> Tensor:
        """The factors for the bands of the windows REACH steps back, minus 1: [B, steps, BANDS]"""
        x = self._net.first(loudness)
        for layer in range(1, DEPTH + 1):
            past = seen[layer - 1]
            x = torch.cat([past, x], dim=1)
            past.copy_(x[:, x.shape[1] - KERNEL + 1 :])
            x = self._net.over_time(layer, x)
        return torch.expm1(self._net.last(x) * (STRENGTH * RANGE_DB * _DB))

    @staticmethod
    def _added(marks: Tensor, tail: Tensor) -> Tensor:
        """Overlap-add of windows [B, steps, WINDOW] -> [B, steps + _PIECES - 1, STEP]"""
        batch, steps, _ = marks.shape
        total = marks.new_zeros(batch, steps + _PIECES - 1, STEP)
        total[:, : _PIECES - 1] = tail
        for piece in range(_PIECES):
            over = marks[:, :, piece * STEP : (piece + 1) * STEP]
            total[:, piece : piece + steps, : over.shape[2]] += over
        return total


class Fade:
    """Chooses the output of one stream: unmarked samples until it may be delayed, then watermarked
    ones.

    From then on all samples are watermarked, `DELAY` frames behind the input; the watermark is
    faded in over one frame. Tensors [n * 1920] on any device.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        """The frame over which the watermark is faded in, until it was delivered."""
        self._skipped = 0
        """Watermarked frames still to come whose unmarked samples were delivered."""
        self.waits = False

    def push(self, plain: Tensor, marked: Tensor, wait: int | None) -> Tensor:
        """The next frames `plain` and the output of `Marker` for them -> the samples to deliver.

        `wait`: how many of them are delivered unmarked before the stream is delayed; None: all. It
        has no effect once the stream is delayed.
        """
        if self.waits:
            return self._out(marked)
        if wait is None:
            return plain
        self.waits, self._skipped = True, DELAY + wait
        begin = wait * FRAME_SAMPLES
        self._first = plain[begin : begin + FRAME_SAMPLES].clone()
        out = self._out(marked)
        return torch.cat([plain[:begin], out]) if wait else out

    def finish(self, marked: Tensor) -> Tensor:
        """The output of `Marker.finish` -> the last samples. Only for a stream that `waits`."""
        return self._out(marked)

    def _out(self, marked: Tensor) -> Tensor:
        skipped = min(self._skipped, len(marked) // FRAME_SAMPLES)
        self._skipped -= skipped
        out = marked[skipped * FRAME_SAMPLES :]
        if self._first is None or not len(out):
            return out
        share = torch.linspace(0.0, 1.0, FRAME_SAMPLES, device=out.device)
        first = torch.lerp(self._first, out[:FRAME_SAMPLES], share)
        self._first = None
        return torch.cat([first, out[FRAME_SAMPLES:]])


def marked(samples: Samples) -> Samples:
    """Samples [n], float32, 24 kHz -> the same, watermarked from the first to the last."""
    frames = -(-len(samples) // FRAME_SAMPLES)
    padded = torch.zeros(1, (frames + DELAY) * FRAME_SAMPLES)
    padded[0, : len(samples)] = torch.from_numpy(samples)
    result = Marker(1)(padded, [0])[0, _PAST : _PAST + len(samples)]
    return result.numpy()
