"""The codec's convolutions computed by `codec.c`."""

from __future__ import annotations

import ctypes
import logging
from ctypes import byref, c_int64, c_void_p
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codec_layers import CausalConv
from .build import BuildError, shared
from .memory import address, near, no_slower, panels

if TYPE_CHECKING:
    from ..codec_layers import Rows
    from ..mimi import MimiDecoder


_ERROR = 1e-4
"""Largest accepted difference of samples, relative to the largest sample."""
_TRIED = ((1, 1), (1, 8), (4, 2))
"""Rows and frames of the calls that are compared and timed."""

log = logging.getLogger("csm_tts_plugin.engine")


def choose(decoder: MimiDecoder) -> str:
    """Let the C kernels compute the convolutions of a decoder whose rows are all unused, if they
    are right and not slower. Returns in words what computes them.
    """
    convs = [module for module in decoder.modules() if isinstance(module, CausalConv)]
    if any(conv.weight.dtype != torch.float32 for conv in convs):
        return "PyTorch (no own kernels: the codec is not in float32)"
    try:
        library = shared()
    except BuildError as error:
        return f"PyTorch (no own kernels: {error})"
    try:
        reason = _compare(decoder, convs, [NativeConv(conv, library) for conv in convs])
    except Exception as error:
        log.warning("the C kernels of the codec fail", exc_info=True)
        reason = f"they raise {type(error).__name__}"
    finally:
        for row in range(len(decoder.frames)):
            decoder.reset(row)
    if reason is None:
        return "C kernels"
    _use(convs, None)
    return f"PyTorch (no own kernels: {reason})"


def _compare(decoder: MimiDecoder, convs: list[CausalConv], own: list[NativeConv]) -> str | None:
    """Why `own` should not be used; None: they may."""
    generator = torch.Generator().manual_seed(1)
    for rows, frames in _TRIED:
        if rows > len(decoder.frames):
            continue
        shape = rows, decoder.codebooks, frames
        codes = torch.randint(decoder.codebook_size, shape, generator=generator)

        def work(used: list[NativeConv] | None, codes: Tensor = codes) -> Tensor:
            _use(convs, used)
            for row in range(len(codes)):
                decoder.reset(row)
            return decoder.decode(codes, range(len(codes)))

        if not near(work(own), work(None), _ERROR):
            return "their results differ from PyTorch's"
        if not no_slower(partial(work, own), partial(work, None)):
            return f"PyTorch is faster for {rows} rows of {frames} frames"
    _use(convs, own)
    return None


def _use(convs: list[CausalConv], own: list[NativeConv] | None) -> None:
    for number, conv in enumerate(convs):
        conv.native = None if own is None else own[number]


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
            panels(conv.weight, panel, panel // 2),
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
        calls.conv_fill(
            conv, *sizes, address(rows.index), address(x), address(self._past), address(memory)
        )
        y = onto
        if y is None:
            y = torch.empty(batch, length * self._stride, self._width)
        calls.conv_product(conv, *sizes, address(memory), address(y), c_int64(onto is not None))
        return y
