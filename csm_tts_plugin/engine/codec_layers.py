"""Convolutions with memory, as matrix products over [rows, time, channels].

PyTorch's convolutions rearrange their weights in every call, which for the few positions of a frame
costs more than the arithmetic. Here a convolution is one product over its taps. The inputs before a
call's first one are kept in a state with one row for each utterance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of the layers' states that a call works on, in the order of its batch.

    `index` [B] on the device; `numbers` are the same on the host, None inside a captured graph.
    """

    index: Tensor
    numbers: tuple[int, ...] | None = None

    @classmethod
    def of(cls, numbers: Sequence[int], device: torch.device) -> Rows:
        return cls(torch.tensor(numbers, device=device), tuple(numbers))

    @property
    def run(self) -> slice | None:
        """These rows as one slice of the state if they are contiguous, else None."""
        numbers = self.numbers
        if numbers is None or numbers != tuple(range(numbers[0], numbers[0] + len(numbers))):
            return None
        return slice(numbers[0], numbers[0] + len(numbers))

    def part(self, begin: int, end: int) -> Rows:
        """The rows of items [begin, end) of the batch."""
        numbers = None if self.numbers is None else self.numbers[begin:end]
        return Rows(self.index[begin:end], numbers)

    def take(self, state: Tensor) -> Tensor:
        """[rows, ...] -> [B, ...]"""
        run = self.run
        return state.index_select(0, self.index) if run is None else state[run]

    def put(self, state: Tensor, value: Tensor) -> None:
        """[B, ...] into [rows, ...]"""
        run = self.run
        if run is None:
            state.index_copy_(0, self.index, value)
        else:
            state[run] = value


def elu(x: Tensor, out: Tensor) -> None:
    """Writes ELU of x to `out`, which may be a view.

    PyTorch's own takes three times as long on a CPU, for a precision of `expm1` that is not needed:
    the absolute error here is 6e-8. The clamp at -80 avoids denormals, with which `exp` takes
    twenty times as long.
    """
    if x.device.type == "cpu":
        torch.clamp(x, min=-80.0, max=0.0, out=out)
        torch.maximum(out.exp_().sub_(1.0), x, out=out)
    else:
        out.copy_(F.elu(x))


class CausalConv(nn.Module):
    """A causal convolution or transposed convolution, with the ELU before it where there is one.
    Both are the same product: the transposed one has `stride` outputs per position.
    """

    past: Tensor

    def __init__(self, source: Any, rows: int, *, activated: bool) -> None:
        super().__init__()
        conv = source.conv
        transposed = isinstance(conv, nn.ConvTranspose1d)
        self.weight, self.offsets = _pack_transposed(conv) if transposed else _pack(conv)
        """[taps, in, out], and the padded position at which each tap looks first."""
        self.stride: int = conv.stride[0] if transposed else 1
        self.bias = None if conv.bias is None else conv.bias.data.repeat(self.stride)
        self.memory = max(self.offsets)
        self.activated = activated
        taps, width, out = self.weight.shape
        self._narrow = taps * out <= width
        past = torch.zeros(
            rows, self.memory, width, dtype=self.weight.dtype, device=self.weight.device
        )
        self.register_buffer("past", past, persistent=False)
        self.native: Callable[[Tensor, Rows, Tensor | None], Tensor] | None = None
        """What computes this layer instead, with the same state."""

    def forward(self, x: Tensor, rows: Rows, onto: Tensor | None = None) -> Tensor:
        """[B, T, in] -> [B, T * stride, out]; `onto`: what the result is added to, in place."""
        if self.native is not None:
            return self.native(x, rows, onto)
        batch, length, width = x.shape
        padded = x.new_empty(batch, self.memory + length, width)
        new = padded[:, self.memory :]
        if self.activated:
            elu(x, new)
        else:
            new.copy_(x)
        if self.memory:
            padded[:, : self.memory] = rows.take(self.past)
            rows.put(self.past, padded[:, length:])
        y = self._product(padded, length, onto)
        return y.view(batch, length * self.stride, -1)

    def _product(self, padded: Tensor, length: int, onto: Tensor | None) -> Tensor:
        batch = padded.shape[0]
        if self._narrow and onto is None:
            return self._shifted(padded, length)
        if batch == 1 and padded.device.type == "cpu":
            # On a CPU without copying the input for each tap; on CUDA one launch is worth the copy.
            inputs = [padded[0, at : at + length] for at in self.offsets]
            weights = list(self.weight)
        else:
            cut = [padded[:, at : at + length] for at in self.offsets]
            inputs = [torch.cat(cut, dim=-1).view(batch * length, -1)]
            weights = [self.weight.view(-1, self.weight.shape[-1])]
        if onto is None:
            y = _product(inputs[0], weights[0], self.bias)
            inputs, weights = inputs[1:], weights[1:]
        else:
            y = onto.view(batch * length, -1)
            if self.bias is not None:
                y += self.bias
        for part, weight in zip(inputs, weights, strict=True):
            y.addmm_(part, weight)
        return y

    def _shifted(self, padded: Tensor, length: int) -> Tensor:
        """For few output channels: multiply by all taps first, then add the shifted results."""
        products = (padded[:, None] @ self.weight).unbind(dim=1)
        y = sum(p[:, at : at + length] for p, at in zip(products, self.offsets, strict=True))
        assert isinstance(y, Tensor)
        return y if self.bias is None else y + self.bias


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def _pack(conv: nn.Conv1d) -> tuple[Tensor, list[int]]:
    """The weight as [taps, in, out]; the layer's own weight becomes a view of it."""
    packed = conv.weight.data.permute(2, 1, 0).contiguous()
    conv.weight.data = packed.permute(2, 1, 0)
    return packed, [tap * conv.dilation[0] for tap in range(conv.kernel_size[0])]


def _pack_transposed(conv: nn.ConvTranspose1d) -> tuple[Tensor, list[int]]:
    """The weight as [taps, in, stride * out], the newest input first: output t * stride + j is the
    sum over the taps r of input t - r times weight j + r * stride.
    """
    weight, stride = conv.weight.data, conv.stride[0]
    taps = -(-conv.kernel_size[0] // stride)
    weight = F.pad(weight, (0, taps * stride - conv.kernel_size[0]))
    width, out, _ = weight.shape
    packed = weight.view(width, out, taps, stride).permute(2, 0, 3, 1)
    return packed.reshape(taps, width, stride * out).contiguous(), list(reversed(range(taps)))


class DepthwiseUpsample(nn.Module):
    """A transposed convolution with one filter for each channel."""

    past: Tensor

    def __init__(self, source: Any, rows: int) -> None:
        super().__init__()
        conv: nn.ConvTranspose1d = source.conv
        self.stride = conv.stride[0]
        taps = -(-conv.kernel_size[0] // self.stride)
        weight = F.pad(conv.weight.data[:, 0], (0, taps * self.stride - conv.kernel_size[0]))
        self.weight = weight.view(-1, taps, self.stride).permute(1, 2, 0).contiguous()
        """[taps, stride, channels], the newest input first."""
        self.bias = conv.bias
        past = torch.zeros(
            rows, taps - 1, weight.shape[0], dtype=weight.dtype, device=weight.device
        )
        self.register_buffer("past", past, persistent=False)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """[B, T, C] -> [B, T * stride, C]"""
        batch, length, width = x.shape
        padded = torch.cat([rows.take(self.past), x], dim=1)
        rows.put(self.past, padded[:, length:])
        y: Tensor | None = None
        for age, weight in enumerate(self.weight):
            begin = padded.shape[1] - length - age
            part = padded[:, begin : begin + length, None]
            y = part * weight if y is None else torch.addcmul(y, part, weight)
        assert y is not None
        y = y.view(batch, length * self.stride, width)
        return y if self.bias is None else y + self.bias


class ResnetBlock(nn.Module):
    def __init__(self, source: Any, rows: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convolutions(source.block, rows))
        shortcut = source.shortcut
        self.shortcut = (
            CausalConv(shortcut, rows, activated=False) if hasattr(shortcut, "conv") else None
        )

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """[B, T, C] -> [B, T, C]; x itself may be changed."""
        *first, last = self.convs
        y = x
        for conv in first:
            y = conv(y, rows)
        if self.shortcut is not None:
            x = self.shortcut(x, rows)
        return last(y, rows, onto=x)  # type: ignore[no-any-return]


def convolutions(layers: Any, rows: int) -> list[nn.Module]:
    """Streaming versions of a list of SEANet layers; an ELU is merged into the layer after it."""
    twins: list[nn.Module] = []
    activated = False
    for layer in layers:
        if isinstance(layer, nn.ELU):
            activated = True
            continue
        if hasattr(layer, "block"):
            twins.append(ResnetBlock(layer, rows))
        else:
            twins.append(CausalConv(layer, rows, activated=activated))
        activated = False
    return twins


def upsampling(source: Any, rows: int) -> nn.Module:
    """The transposed convolution from the frame rate to the transformer's rate."""
    conv: nn.ConvTranspose1d = source.conv
    if conv.groups == conv.in_channels == conv.out_channels:
        return DepthwiseUpsample(source, rows)
    return CausalConv(source, rows, activated=False)
