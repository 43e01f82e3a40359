"""Frames computed by `frame.c`: any rows, shared among the threads that PyTorch may use.

Each thread computes some of the rows from the first to the last operation, so that threads never
wait for each other within a frame.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_int64, c_void_p
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..steps import Steps
from ..weights import PackedCsm
from .layout import Layout, unsuited

if TYPE_CHECKING:
    from ..frame import Batch, FrameState

_WORTH = 4
"""Rows for which a further thread is worth waking up: fewer only share the same weights."""


class NativeSteps(Steps):
    """`Steps` that computes whole frames of `state` in C. Raises ValueError if it cannot."""

    by_index = True

    def __init__(self, weights: PackedCsm, state: FrameState, library: ctypes.CDLL) -> None:
        super().__init__(weights)
        for name in ("most_rows", "panel", "has_head", "depth_scratch", "backbone_scratch"):
            getattr(library, name).restype = c_int64
        panel = library.panel()
        if (reason := unsuited(weights, panel)) is not None:
            raise ValueError(reason)
        for layer in (*weights.layers, *weights.depth_layers):
            if not library.has_head(c_int64(layer.head_dim)):
                raise ValueError(f"heads of {layer.head_dim} numbers")
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
        first, second = torch.empty_like(sound), torch.empty_like(sound)

        def head(begin: int, count: int, memory: Tensor) -> None:
            self._library.first_logits(
                byref(layout.backbone),
                byref(layout.state),
                c_int64(count),
                _at(rows, begin),
                _at(memory),
                _at(logits, begin),
            )

        if shape_logits is not None:
            self._share(batch.count, head)
            logits = shape_logits(logits).contiguous()

        def draw(begin: int, count: int, memory: Tensor) -> None:
            if shape_logits is None:
                head(begin, count, memory)
            self._library.draw_first(
                byref(layout.state),
                c_int64(count),
                _at(rows, begin),
                _at(logits, begin),
                c_int64(weights.codes),
                c_int64(weights.codebooks),
                _at(memory),
                _at(first, begin),
            )
            self._depth(rows, begin, count, memory, second, None)

        self._share(batch.count, draw)
        torch.minimum(first, second, out=sound)
        return state.codes.index_select(0, rows), sound.bool()

    def read_frame(self, state: FrameState, batch: Batch, length: int) -> None:
        layout, rows = self._own(state), self._rows(batch)

        def read(begin: int, count: int, memory: Tensor) -> None:
            self._library.read_frame(
                byref(layout.backbone),
                byref(layout.state),
                c_int64(count),
                _at(rows, begin),
                _at(memory),
            )

        self._share(batch.count, read)

    def told(self, state: FrameState, batch: Batch) -> Tensor:
        """The depth decoder's logits of all codebooks but the first, given the codes in the rows'
        states: [B, K - 1, codes]. To be compared with PyTorch's.
        """
        self._own(state)
        rows, weights = self._rows(batch), self.weights
        logits = torch.empty(batch.count, weights.codebooks - 1, weights.codes)
        sound = torch.empty(batch.count, dtype=torch.uint8)
        self._share(
            batch.count,
            lambda begin, count, memory: self._depth(rows, begin, count, memory, sound, logits),
        )
        return logits

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
            _at(rows, begin),
            _at(memory),
            _at(sound, begin),
            None if told is None else _at(told, begin),
        )

    def _own(self, state: FrameState) -> Layout:
        if state is not self._state:
            raise ValueError("these kernels were made for the memory of another state")
        return self._layout

    def _rows(self, batch: Batch) -> Tensor:
        index = torch.arange(batch.count) if batch.index is None else batch.index
        assert index.is_contiguous()
        assert index.device.type == "cpu"
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

        waiting = []
        if self._helpers is not None:
            waiting = [self._helpers.submit(some, memory) for memory in self._scratch[1:workers]]
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


def _at(tensor: Tensor, item: int = 0) -> c_void_p:
    """The address of `tensor[item]`."""
    return c_void_p(tensor.data_ptr() + item * tensor.stride(0) * tensor.element_size())
