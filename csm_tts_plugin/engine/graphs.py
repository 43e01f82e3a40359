"""CUDA graphs over the two halves of a frame: one launch instead of some 2,000.

Drawing a frame depends on the batch size alone, the backbone's step also on the number of attended
positions; so there is one graph per batch size and one per (batch size, length). Batches are padded
up to a captured size: the padding rows belong to conversations that are not speaking, whose
positions are set before they are used again.

All graphs share one memory pool and never run at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import EngineError

_WARM_UPS = 2


def batch_sizes(slots: int) -> list[int]:
    """The captured batch sizes for `slots` streams: close for few streams, at most 32 apart."""
    small = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    sizes = [size for size in small if size < slots]
    sizes += range(96, slots, 32)
    return [*sizes, slots]


def padded(count: int, sizes: list[int]) -> int:
    """The smallest captured size of at least `count`."""
    return next(size for size in sizes if size >= count)


def lengths(longest: int) -> list[int]:
    """The captured numbers of attended positions: powers of two from 256, then `longest`."""
    steps = [256 << step for step in range(16)]
    return [*(length for length in steps if length < longest), longest]


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph and its output tensors."""

    graph: torch.cuda.CUDAGraph
    outputs: tuple[Tensor, ...]


class GraphSet:
    """Graphs by key, captured on one stream from one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # One stream for all graphs: each stream has a workspace of cuBLAS.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graphs: dict[tuple[object, ...], Captured] = {}
        self.seconds = 0.0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def capture(self, key: tuple[object, ...], work: Callable[[], tuple[Tensor, ...]]) -> None:
        """Capture `work`. Its output tensors are the same at each replay."""
        began, before = time.monotonic(), torch.cuda.mem_get_info()[0]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                outputs = work()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise EngineError(
                f"Capturing a CUDA graph failed ({reason}): set CSM_CUDA_GRAPHS=0 to run without."
            ) from error
        self._graphs[key] = Captured(graph, outputs)
        self.seconds += time.monotonic() - began
        self.bytes += before - torch.cuda.mem_get_info()[0]

    def replay(self, key: tuple[object, ...]) -> tuple[Tensor, ...]:
        captured = self._graphs[key]
        captured.graph.replay()
        return captured.outputs
