"""The codec's convolutions computed by `codec.c`."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from ctypes import byref, c_int64, c_void_p
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codec_layers import CausalConv
from .build import BuildError, shared

if TYPE_CHECKING:
    from ..codec_layers import Rows
    from ..mimi import MimiDecoder


_ERROR = 1e-4
"""Largest accepted difference of samples, relative to the largest sample."""
_TRIED = ((1, 1), (1, 8), (4, 2))
"""Rows and frames of the calls that are compared and timed."""
_TURNS = 3


def choose(decoder: MimiDecoder) -> str:
    """Let the C kernels compute the convolutions of a decoder whose rows are all unused, if they
    are right and faster. Returns in words what computes them.
    """
    convs = [module for module in decoder.modules() if isinstance(module, CausalConv)]
    if any(conv.weight.dtype != torch.float32 for conv in convs):
        return "PyTorch (no own kernels: the codec is not in float32)"
    try:
        library = shared()
    except BuildError as error:
        return f"PyTorch (no own kernels: {error})"
    own = [NativeConv(conv, library) for conv in convs]
    calls = [call for call in _TRIED if call[0] <= len(decoder.frames)]
    right, theirs = _try(decoder, calls)
    _use(convs, own)
    sound, mine = _try(decoder, calls)
    reason = None
    for a, b in zip(sound, right, strict=True):
        # A difference of NaN is not less than anything.
        if not (a - b).abs().max() <= _ERROR * b.abs().max():
            reason = "their results differ from PyTorch's"
    reason = reason or ("they are slower" if sum(mine) > sum(theirs) else None)
    if reason is None:
        return "C kernels"
    _use(convs, [None] * len(convs))
    return f"PyTorch (no own kernels: {reason})"


def _use(convs: Sequence[CausalConv], own: Sequence[NativeConv | None]) -> None:
    for conv, native in zip(convs, own, strict=True):
        conv.native = native


def _try(
    decoder: MimiDecoder, calls: Sequence[tuple[int, int]]
) -> tuple[list[Tensor], list[float]]:
    """For each of `calls` the samples of random codes, and the least time of some turns."""
    generator = torch.Generator().manual_seed(1)
    sounds, times = [], []
    for rows, frames in calls:
        shape = rows, decoder.codebooks, frames
        codes = torch.randint(decoder.codebook_size, shape, generator=generator)
        taken = []
        for _ in range(_TURNS):
            began = time.perf_counter()
            sound = decoder.decode(codes, range(rows))
            taken.append(time.perf_counter() - began)
        sounds.append(sound)
        times.append(min(taken))
    for row in range(max(rows for rows, _ in calls)):
        decoder.reset(row)
    return sounds, times


class CConv(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("taps", "in", "out", "memory", "activated")),
        *((name, c_void_p) for name in ("offsets", "weight", "bias")),
    ]


class NativeConv:
    """Computes what a `CausalConv` computes, with its state."""

    def __init__(self, conv: CausalConv, library: ctypes.CDLL) -> None:
        taps, width, out = conv.weight.shape
        library.panel.restype = library.conv_scratch.restype = c_int64
        panel = library.panel()
        bias = torch.zeros(out) if conv.bias is None else conv.bias
        self._kept = [
            torch.tensor(conv.offsets),
            _panels(conv.weight, panel),
            F.pad(bias, (0, -out % panel)).contiguous(),
        ]
        offsets, weight, padded = (tensor.data_ptr() for tensor in self._kept)
        self._conv = CConv(
            taps, width, out, conv.memory, int(conv.activated), offsets, weight, padded
        )
        self._past, self._width = conv.past, out // conv.stride
        self._stride, self._library = conv.stride, library

    def __call__(self, x: Tensor, rows: Rows, onto: Tensor | None) -> Tensor:
        """See `CausalConv.forward`."""
        batch, length, _ = x.shape
        x, conv, calls = x.contiguous(), byref(self._conv), self._library
        sizes = c_int64(batch), c_int64(length)
        memory = torch.empty(calls.conv_scratch(conv, *sizes))
        calls.conv_fill(conv, *sizes, _at(rows.index), _at(x), _at(self._past), _at(memory))
        y = onto
        if y is None:
            y = torch.empty(batch, length * self._stride, self._width)
        calls.conv_product(conv, *sizes, _at(memory), _at(y), c_int64(onto is not None))
        return y


def _panels(weight: Tensor, panel: int) -> Tensor:
    """[taps, in, out] -> panels [taps, in, panel] one after the other; the last one is half as wide
    if that is enough.
    """
    out, half = weight.shape[2], panel // 2
    whole = F.pad(weight, (0, -out % half))
    parts = [part.contiguous().flatten() for part in torch.split(whole, panel, dim=2)]
    return torch.cat(parts)


def _at(tensor: Any) -> c_void_p:
    assert tensor.is_contiguous()
    return c_void_p(tensor.data_ptr())
