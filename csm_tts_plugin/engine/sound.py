"""Decodes codes to audio on the device, for any number of utterances, beside the model.

On a CUDA device the codec has a CUDA stream of its own. Its input comes from the host, so it does
not wait for what the model has queued, and it runs while the backbone processes the same frame.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import FRAME_SAMPLES
from .api import Codes, Samples
from .chunks import LENGTHS
from .codec_layers import Rows
from .devices import Mailbox, Staging, on_device, settle
from .graphs import GraphSet, batch_sizes, padded
from .mimi import MimiDecoder

log = logging.getLogger("csm_tts_plugin.engine")


class Stage(Protocol):
    """A processing step between the codec and the sinks, such as the watermark.

    It may hold samples back to look ahead: it returns as many samples as it is given, but not in
    the same call. As long as it has returned nothing of an utterance, each frame is decoded and
    passed to it as soon as the frame is drawn.
    """

    held: int
    """The most frames of an utterance that it holds back."""

    def __call__(
        self,
        samples: Tensor,
        rows: Sequence[int],
        last: Sequence[bool],
        waits: Sequence[int | None],
    ) -> Sequence[Tensor]:
        """The next samples [B, n] of the utterances in `rows` -> the samples of each to deliver.

        `last`: these are the utterance's last samples; all that was held back is returned. n may be
        0. `waits`: how many of these frames must be returned at once before any may be held back;
        None: all of them. It has no effect after the first frame that is held back.
        """

    def reset(self, row: int) -> None:
        """Clear the state of `row`: another utterance begins in it."""


class Chunk:
    """The result of one codec call. The first access waits for it."""

    def __init__(
        self, fetch: Callable[[], tuple[npt.NDArray[Any], ...]], lengths: list[int]
    ) -> None:
        self._fetch, self._lengths = fetch, lengths

    @cached_property
    def _arrays(self) -> tuple[npt.NDArray[Any], ...]:
        return self._fetch()

    @property
    def samples(self) -> list[Samples]:
        """Samples [n] of each row, float32"""
        return np.split(self._arrays[0], np.cumsum(self._lengths)[:-1])

    @property
    def levels(self) -> npt.NDArray[np.float32]:
        """[B, T]: root mean square of each decoded frame; NaN or Inf if one of its samples is."""
        return self._arrays[1]


class Codec:
    """The codec's decoder and the stage after it, with a row for each utterance being spoken."""

    def __init__(
        self,
        codec: Any,
        rows: int,
        *,
        graphs: bool = False,
        stage: Stage | None = None,
        kernels: bool = True,
    ) -> None:
        """`codec`: a MimiModel; `rows`: the most utterances at a time; `graphs`: capture CUDA
        graphs; `kernels`: try our own kernels (on a CPU).
        """
        self.device = codec.device
        settle(self.device)
        # One more row, for the padding of captured batches.
        self.decoder = MimiDecoder(codec, rows + 1, LENGTHS[-1])
        self.stage = stage
        self._rows, self._free = rows, set(range(rows))
        self._most = max(rows, LENGTHS[-1])
        self._use_kernels = kernels
        self.path = "PyTorch"
        """Which kernels compute the convolutions, in words."""
        self._use_graphs, self._graphs = graphs, None if not graphs else GraphSet()
        self.runs_behind = self.device.type == "cuda"
        """Whether calls are only queued."""
        if self.runs_behind:
            self._lay_out()

    @on_device
    def _lay_out(self) -> None:
        """Allocate the buffers that a CUDA device needs."""
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        numbers = self._most * self.decoder.codebooks + 2 * self._rows
        self._staging = Staging(8 * numbers, self.device)
        self._inputs = torch.zeros(numbers, dtype=torch.int64, device=self.device)
        frames = self._most + self._rows * (self.stage.held if self.stage else 0)
        self._mailbox = Mailbox(frames * (4 * FRAME_SAMPLES + 4) + 64, self.device)

    # Rows -----------------------------------------------------------------------------------------

    def take(self) -> int:
        """Reserve a row, which begins from silence."""
        # The lowest one: contiguous rows are processed without copying their state.
        row = min(self._free)
        self._free.remove(row)
        return row

    @on_device
    def give(self, row: int) -> None:
        """Release a row whose utterance is over."""
        self._behind(lambda: self._reset(row))
        self._free.add(row)

    def _reset(self, row: int) -> None:
        self.decoder.reset(row)
        if self.stage is not None:
            self.stage.reset(row)

    # Work -----------------------------------------------------------------------------------------

    def most_rows(self, frames: int) -> int:
        """The most rows of one call with `frames` frames."""
        return max(1, min(self._rows, self._most // max(1, frames)))

    @on_device
    def decode(
        self,
        rows: Sequence[int],
        codes: Codes,
        last: Sequence[bool],
        waits: Sequence[int | None] | None = None,
    ) -> Chunk:
        """Decode the next frames of `rows`: codes [B, K, T] with T one of `LENGTHS` or 0. `last`:
        these frames end their utterances. `waits`: see `Stage`; by default no stream begins to hold
        samples back.
        """
        allowed = [None] * len(rows) if waits is None else waits
        chunk: Chunk = self._behind(lambda: self._decode(rows, codes, last, allowed))
        return chunk

    def _behind(self, work: Callable[[], Any]) -> Any:
        if not self.runs_behind:
            return work()
        with torch.cuda.stream(self._stream):
            return work()

    def _decode(
        self,
        rows: Sequence[int],
        codes: Codes,
        last: Sequence[bool],
        waits: Sequence[int | None],
    ) -> Chunk:
        frames = codes.shape[2]
        if not frames:
            samples = torch.zeros(len(rows), 0, device=self.device)
            levels = samples
        elif self.runs_behind:
            samples, levels = self._on_cuda(rows, codes)
        else:
            samples = self.decoder.decode(torch.from_numpy(codes), rows)
            levels = _levels(samples, frames)
        parts: Sequence[Tensor] = samples.unbind(0)
        if self.stage is not None:
            parts = self.stage(samples, rows, last, waits)
        lengths = [len(part) for part in parts]
        together = samples.flatten() if self.stage is None else torch.cat(list(parts))
        if self.runs_behind:
            return Chunk(self._mailbox.send((together, levels)), lengths)
        arrays = together.numpy(), levels.numpy()
        return Chunk(lambda: arrays, lengths)

    def _on_cuda(self, rows: Sequence[int], codes: Codes) -> tuple[Tensor, Tensor]:
        """Samples [B, n] and levels [B, T]"""
        batch, _, frames = codes.shape
        size = batch
        if self._graphs is not None:
            size = padded(batch, batch_sizes(self.most_rows(frames)))
        numbers = np.zeros((size, self.decoder.codebooks * frames + 2), np.int64)
        numbers[batch:, 0] = self._rows
        numbers[:batch, 0] = rows
        numbers[:batch, 1] = [self.decoder.begin(row) for row in rows]
        numbers[:batch, 2:] = codes.reshape(batch, -1)
        self._inputs[: numbers.size].copy_(self._staging.send(numbers.reshape(-1)))
        self.decoder.count(rows, frames)
        key = (size, frames)
        outputs = self._graphs.replay(key) if self._graphs is not None else self._work(*key)
        return outputs[0][:batch], outputs[1][:batch]

    def _work(self, size: int, frames: int) -> tuple[Tensor, ...]:
        """Decode `_inputs`: row, first position and codes of each item of the batch."""
        width = self.decoder.codebooks * frames + 2
        numbers = self._inputs[: size * width].view(size, width)
        codes = numbers[:, 2:].reshape(size, -1, frames)
        samples = self.decoder(codes, Rows(numbers[:, 0].contiguous()), numbers[:, 1])
        return samples, _levels(samples, frames)

    @on_device
    def warm_up(self, on_progress: Callable[[str], None] = lambda text: None) -> None:
        """Run everything once, because first calls are slow. `on_progress` gets
        what is being done.
        """
        if self._graphs is not None:
            self._capture(self._graphs, on_progress)
        if self._use_kernels and not self.runs_behind:
            from .native.codec import choose

            self.path = choose(self.decoder)
            log.info("codec: %s", self.path)
        row = self.take()
        for frames in LENGTHS:
            codes = np.zeros((1, self.decoder.codebooks, frames), np.int64)
            _ = self.decode([row], codes, [False]).levels
        self.give(row)

    def _capture(self, graphs: GraphSet, on_progress: Callable[[str], None]) -> None:
        """Capture all graphs, the largest first so that smaller ones reuse its memory."""
        keys = [
            (size, frames) for frames in LENGTHS for size in batch_sizes(self.most_rows(frames))
        ]
        for key in sorted(keys, key=lambda key: -key[0] * key[1]):
            # The rows do not matter: their state is cleared before an utterance begins.
            graphs.capture(key, partial(self._work, *key))
        for row in range(self._rows):
            self._reset(row)
        on_progress(
            f"captured {len(graphs)} graphs of the codec in {graphs.seconds:.0f} s, "
            f"{graphs.bytes / 2**20:.0f} MiB"
        )


def _levels(samples: Tensor, frames: int) -> Tensor:
    """[B, T * 1920] -> [B, T]"""
    return samples.view(len(samples), frames, -1).square().mean(dim=-1).sqrt()
