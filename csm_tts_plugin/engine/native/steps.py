"""Frames computed by `frame.c`: any rows, shared among the threads that PyTorch may use.

Each thread computes some of the rows from the first to the last operation, so that threads never
wait for each other within a frame.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from ctypes import byref, c_int64
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..steps import Steps
from ..weights import PackedCsm
from .layout import Layout, unsuited
from .memory import address

if TYPE_CHECKING:
    from ..frame import Batch, FrameState

_WORTH = 4
"""Rows for which a further thread is woken up: each thread reads all weights."""


class NativeSteps(Steps):
    """`Steps` that computes whole frames of `state` in C. Raises ValueError if it cannot."""

    by_index = True

    def __init__(self, weights: PackedCsm, state: FrameState, library: ctypes.CDLL) -> None:
        super().__init__(weights)
        for name in ("most_rows", "panel", "has_head", "depth_scratch", "backbone_scratch"):
            getattr(library, name).restype = c_int64
        panel = library.panel()
        reason = unsuited(weights, panel, lambda dim: bool(library.has_head(c_int64(dim))))
        if state.context >= len(weights.cos):
            reason = f"there is no rotation for a context of {state.context} positions"
        if reason is not None:
            raise ValueError(reason)
        self._library, self._most = library, library.most_rows()
        self._layout = layout = Layout(weights, state, panel)
        self._state = state
        self._scratch_size = max(
            library.depth_scratch(byref(layout.depth)),
            library.backbone_scratch(byref(layout.backbone)),
        )
        self._scratch: list[Tensor] = []
        self._threads = torch.get_num_threads()
        self._helpers: ThreadPoolExecutor | None = None
        if self._threads > 1:
            self._helpers = ThreadPoolExecutor(self._threads - 1, "csm-frame")

    def draw_frame(
        self,
        state: FrameState,
        batch: Batch,
        candidates: int,
        shape_logits: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        weights, layout = self.weights, self._own(state)
        rows = self._rows(batch)
        logits = torch.empty(batch.count, weights.codes)
        sound = torch.empty(batch.count, dtype=torch.uint8)
        if shape_logits is not None:
            self._share(batch.count, partial(self._head, rows, logits=logits))
            shaped = shape_logits(logits)
            if shaped.shape != logits.shape:
                raise ValueError(
                    f"logits of shape {tuple(shaped.shape)}, not {tuple(logits.shape)}"
                )
            logits = shaped.float().contiguous()

        def draw(begin: int, count: int, memory: Tensor) -> None:
            if shape_logits is None:
                self._head(rows, begin, count, memory, logits)
            self._library.draw_first(
                byref(layout.state),
                c_int64(count),
                address(rows, begin),
                address(logits, begin),
                c_int64(weights.codes),
                c_int64(weights.codebooks),
                address(memory),
                address(sound, begin),
            )
            self._depth(rows, begin, count, memory, sound, None)

        self._share(batch.count, draw)
        return state.codes.index_select(0, rows), sound.bool()

    def read_frame(self, state: FrameState, batch: Batch, length: int) -> None:
        layout, rows = self._own(state), self._rows(batch)

        def read(begin: int, count: int, memory: Tensor) -> None:
            self._library.read_frame(
                byref(layout.backbone),
                byref(layout.state),
                c_int64(count),
                address(rows, begin),
                address(memory),
            )

        self._share(batch.count, read)

    def told(self, state: FrameState, batch: Batch) -> Tensor:
        """The logits of all codebooks for the codes in the rows' states: [B, K, codes]. To be
        compared with PyTorch's.
        """
        self._own(state)
        rows, weights = self._rows(batch), self.weights
        first = torch.empty(batch.count, weights.codes)
        others = torch.empty(batch.count, weights.codebooks - 1, weights.codes)
        sound = torch.empty(batch.count, dtype=torch.uint8)

        def tell(begin: int, count: int, memory: Tensor) -> None:
            self._head(rows, begin, count, memory, first)
            self._depth(rows, begin, count, memory, sound, others)

        self._share(batch.count, tell)
        return torch.cat([first[:, None], others], dim=1)

    def _head(self, rows: Tensor, begin: int, count: int, memory: Tensor, logits: Tensor) -> None:
        layout = self._layout
        self._library.first_logits(
            byref(layout.backbone),
            byref(layout.state),
            c_int64(count),
            address(rows, begin),
            address(memory),
            address(logits, begin),
        )

    def _depth(
        self,
        rows: Tensor,
        begin: int,
        count: int,
        memory: Tensor,
        sound: Tensor,
        told: Tensor | None,
    ) -> None:
        layout = self._layout
        self._library.draw_depth(
            byref(layout.depth),
            byref(layout.state),
            c_int64(count),
            address(rows, begin),
            address(memory),
            address(sound, begin),
            None if told is None else address(told, begin),
        )

    def _own(self, state: FrameState) -> Layout:
        if state is not self._state:
            raise ValueError("these kernels were made for the memory of another state")
        return self._layout

    def _rows(self, batch: Batch) -> Tensor:
        """The numbers of the rows; in C a wrong one would be a write to other memory."""
        index = torch.arange(batch.count) if batch.index is None else batch.index
        if not 0 <= int(index.min()) <= int(index.max()) < self._state.rows:
            raise IndexError(f"rows {index.tolist()}, of {self._state.rows}")
        return index

    def _share(self, count: int, work: Callable[[int, int, Tensor], None]) -> None:
        """Call `work(begin, count, scratch memory)` for parts of [0, count), on all threads."""
        parts = deque(shares(count, self._most, self._threads))
        workers = min(len(parts), self._threads)
        while len(self._scratch) < workers:
            self._scratch.append(torch.empty(self._scratch_size))

        def some(memory: Tensor) -> None:
            while True:
                try:
                    part = parts.popleft()
                except IndexError:
                    return
                work(*part, memory)

        waiting: list[Future[None]] = []
        with suppress(RuntimeError):  # no thread is left while the interpreter ends
            for memory in self._scratch[1:workers]:
                assert self._helpers is not None
                waiting.append(self._helpers.submit(some, memory))
        some(self._scratch[0])
        for one in waiting:
            one.result()


def shares(count: int, most: int, threads: int) -> list[tuple[int, int]]:
    """Divides `count` rows into parts (begin, count) of nearly equal size, at most `most` each: as
    many for each thread.
    """
    number = max(-(-count // most), min(threads, count // _WORTH), 1)
    if number > threads:
        number = -(-number // threads) * threads
    bounds = [count * part // number for part in range(number + 1)]
    return [(begin, end - begin) for begin, end in pairwise(bounds)]
