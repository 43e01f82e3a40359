"""Settings of PyTorch on a CUDA device, and copies between host and device.

Host memory is pinned and allocated once: a copy from or to other memory waits for everything that
the device has queued, and pinning more while streams play would interrupt them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGNED = 16
_STAGES = 4

F = TypeVar("F", bound=Callable[..., Any])


def settle(device: torch.device) -> None:
    """Change settings of the whole process, before anything runs on `device`."""
    if device.type != "cuda":
        return
    # cuDNN's attention makes a plan for each new shape, which takes 0.1 s and more, and each length
    # of a prompt is a new shape.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # TF32 has a mantissa of 10 bits: too few for the codec, like those of bfloat16.
    torch.backends.cudnn.allow_tf32 = False


def on_device(method: F) -> F:
    """Makes a method run in inference mode with `self.device` as current device, whatever thread
    calls it: events, streams and graphs belong to the current device, not to the tensors' device.
    """

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            if self.device.type != "cuda":
                return method(self, *args, **kwargs)
            with torch.cuda.device(self.device):
                return method(self, *args, **kwargs)

    return cast(F, run)


class Mailbox:
    """Pinned host memory to which a device writes results while the host goes on."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        """`capacity`: bytes of the largest results sent at once, each rounded up to 16 bytes."""
        on_cuda = device.type == "cuda"
        self._memory = torch.empty(capacity, dtype=torch.uint8, pin_memory=on_cuda)
        self._arrived: Any = torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]
        self._last: Callable[[], object] | None = None

    def send(self, outputs: Sequence[Tensor]) -> Callable[[], tuple[npt.NDArray[Any], ...]]:
        """Queue the copies. The returned function waits for them and returns the arrays, the same
        ones at every call.

        Results of an earlier `send` that nobody has fetched are fetched first, because their memory
        is overwritten.
        """
        if self._last is not None:
            self._last()
        hosts, start = [], 0
        for output in outputs:
            size = output.numel() * output.element_size()
            part = self._memory[start : start + size].view(output.dtype).view(output.shape)
            hosts.append(part.copy_(output, non_blocking=True))
            start += _rounded(size)
        if self._arrived is not None:
            self._arrived.record()

        @functools.cache
        def fetch() -> tuple[npt.NDArray[Any], ...]:
            if self._arrived is not None:
                self._arrived.synchronize()
            return tuple(host.numpy().copy() for host in hosts)

        self._last = fetch
        return fetch


def _rounded(size: int) -> int:
    """`size` rounded up to where the next result may begin."""
    return -(-size // _ALIGNED) * _ALIGNED


class Staging:
    """Copies arrays to the device through a few pinned buffers in turn, without waiting for it."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        """`capacity`: bytes of a buffer; larger arrays are sent in parts."""
        self._device, self._capacity, self._turn = device, capacity, 0
        self._stages: list[tuple[Tensor, Any]] = []
        if device.type == "cuda":
            self._stages = [
                (torch.empty(capacity, dtype=torch.uint8, pin_memory=True), torch.cuda.Event())  # type: ignore[no-untyped-call]
                for _ in range(_STAGES)
            ]

    def send(self, array: npt.NDArray[Any]) -> Tensor:
        """A tensor on the device; `array` may change as soon as this returns."""
        source = torch.from_numpy(np.ascontiguousarray(array))
        if not self._stages:
            return source.to(self._device, copy=True)
        there = torch.empty(source.shape, dtype=source.dtype, device=self._device)
        bytes_here = source.view(-1).view(torch.uint8)
        bytes_there = there.view(-1).view(torch.uint8)
        for start in range(0, len(bytes_here), self._capacity):
            part = slice(start, start + self._capacity)
            self._copy(bytes_here[part], bytes_there[part])
        return there

    def _copy(self, part: Tensor, place: Tensor) -> None:
        stage, free = self._stages[self._turn]
        self._turn = (self._turn + 1) % len(self._stages)
        free.synchronize()
        place.copy_(stage[: len(part)].copy_(part), non_blocking=True)
        free.record()
