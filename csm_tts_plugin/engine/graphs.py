"""CUDA graphs over the two halves of a frame: one launch instead of some 2,000.

Drawing a frame depends on the batch alone, reading it on the batch and on how many positions
attention looks at; so there is one graph per batch size and one per (batch size, length). Batches
are padded up to a captured size: the rows in between belong to conversations that are not speaking,
whose cursors are set anew before they are used again.

All graphs share one pool of memory and never run at the same time.
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
    """The captured batch sizes for `slots` streams: dense where few speak, at most 32 apart."""
    small = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    sizes = [size for size in small if size < slots]
    sizes += range(96, slots, 32)
    return [*sizes, slots]


def padded(count: int, sizes: list[int]) -> int:
    """The smallest captured size that holds `count`."""
    return next(size for size in sizes if size >= count)


def lengths(context: int) -> list[int]:
    """How many positions attention may look at: powers of two from 256, then all."""
    steps = [256 << step for step in range(16)]
    return [*(length for length in steps if length < context + 1), context + 1]


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph and what it writes."""

    graph: torch.cuda.CUDAGraph
    outputs: tuple[Tensor, ...]


class GraphSet:
    """Graphs by key, captured on one stream out of one pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[object, ...], Captured] = {}
        self.seconds = 0.0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def capture(self, key: tuple[object, ...], work: Callable[[], tuple[Tensor, ...]]) -> None:
        """Record `work`, whose outputs stay where they are from replay to replay."""
        began, before = time.monotonic(), torch.cuda.memory_allocated()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = work()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise EngineError(
                f"Capturing a CUDA graph failed ({reason}): set CSM_CUDA_GRAPHS=0 to run without."
            ) from error
        self._graphs[key] = Captured(graph, outputs)
        self.seconds += time.monotonic() - began
        self.bytes += torch.cuda.memory_allocated() - before

    def replay(self, key: tuple[object, ...]) -> tuple[Tensor, ...]:
        captured = self._graphs[key]
        captured.graph.replay()
        return captured.outputs
