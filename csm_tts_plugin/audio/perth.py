"""Perth's watermarking networks and their short-time spectrum, on torch alone.

Perth (resemble-perth 1.0.1, MIT) has a network that changes the magnitudes of the 128 lowest bands,
up to 2 kHz, and another one that detects the change. It works at 32 kHz with windows of 2048 and
steps of 320 samples. Windows of 1536 and steps of 240 samples at 24 kHz have the same durations and
the same bands, so that audio need not be resampled.

The weights are those of its wheel, quantised to 8 bits with a scale for each output channel by
`scripts/convert_watermark.py`. Imports torch: import this module only when it is needed.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from torch import Tensor

from ..errors import ModelLoadError

BANDS = 128
"""Bands of 15.625 Hz, from 0 Hz."""
WINDOW, STEP = 1536, 240
"""Samples at 24 kHz: 64 ms and 10 ms."""
KERNEL = 7
"""Frames in the receptive field of a layer: 3 on each side."""
DEPTH = 5
"""Layers over time in each network."""
REACH = DEPTH * (KERNEL // 2)
"""Frames in a network's receptive field on each side: 150 ms."""
HEADROOM_DB, FLOOR_DB = 15.0, -180.0
"""Range of the networks' input: 0 at the floor, 1 at 15 dB."""
RANGE_DB = HEADROOM_DB - FLOOR_DB

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "watermark"
SHA256 = {
    "marker.safetensors": "0e480c370cd6d460a49c6f4fa183c79fee6cc997db1267b4b6ef25bd8f77acd9",
    "detector.safetensors": "833d00ab9d9a1a7f0955427fe7a878a39ac30d916ac42167504a843916e2bec5",
}
_SCALE = 2048 / WINDOW
"""Compensates that Perth's windows have more samples and so larger sums."""
_SLOPE = 0.01


class Convolutions:
    """One of Perth's stacks: a layer over the bands, five over time, and an output layer.

    Tensors are [B, T, channels], so that each layer is one matrix product.
    """

    def __init__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """`tensors` of each layer N: `N.weight` [out, in] or [out, KERNEL * in] int8, `N.scale`
        and `N.bias` [out].
        """
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        for number in range(DEPTH + 2):
            scale = tensors[f"{number}.scale"][:, None]
            weight = tensors[f"{number}.weight"].float() * scale
            self.weights.append(weight.T.contiguous().to(device))
            self.biases.append(tensors[f"{number}.bias"].to(device))

    @property
    def channels(self) -> int:
        return self.weights[0].shape[1]

    def first(self, x: Tensor) -> Tensor:
        """[B, T, BANDS] -> [B, T, channels]"""
        return _rectified(torch.matmul(x, self.weights[0]) + self.biases[0])

    def over_time(self, layer: int, x: Tensor) -> Tensor:
        """[B, T + KERNEL - 1, channels] -> [B, T, channels]; `layer` from 1 to DEPTH"""
        length = x.shape[1] - KERNEL + 1
        seen = torch.cat([x[:, at : at + length] for at in range(KERNEL)], dim=2)
        return _rectified(torch.matmul(seen, self.weights[layer]) + self.biases[layer])

    def last(self, x: Tensor) -> Tensor:
        """[B, T, channels] -> [B, T, out]"""
        return torch.matmul(x, self.weights[-1]) + self.biases[-1]

    def __call__(self, x: Tensor) -> Tensor:
        """[B, T, BANDS] -> [B, T, out], zero-padded at both ends, as in Perth"""
        x = self.first(x)
        side = KERNEL // 2
        for layer in range(1, DEPTH + 1):
            x = self.over_time(layer, F.pad(x, (0, 0, side, side)))
        return self.last(x)

    def at_rest(self) -> list[Tensor]:
        """The input of each layer over time after unlimited silence: [channels] each"""
        x = self.first(torch.zeros(1, 1, BANDS, device=self.weights[0].device))
        seen = []
        for layer in range(1, DEPTH + 1):
            seen.append(x[0, 0])
            x = self.over_time(layer, x.expand(1, KERNEL, -1))
        return seen


def _rectified(x: Tensor) -> Tensor:
    return F.leaky_relu(x, _SLOPE, inplace=True)


class Spectrum:
    """Transforms windows of samples to the BANDS lowest bands and back, each
    by one matrix product.
    """

    def __init__(self, device: torch.device) -> None:
        time = torch.arange(WINDOW, dtype=torch.float64)
        angles = 2 * math.pi / WINDOW * torch.outer(time, torch.arange(BANDS, dtype=torch.float64))
        window = torch.hann_window(WINDOW, dtype=torch.float64)[:, None]
        waves = torch.cat([angles.cos(), -angles.sin()], dim=1)
        weight = torch.full((2 * BANDS, 1), 2.0 / WINDOW, dtype=torch.float64)
        weight[0] = weight[BANDS] = 1.0 / WINDOW
        back = weight * waves.T * (window[:, 0] / _overlap(window[:, 0]))
        self.forward = (window * waves).float().to(device)
        self.backward = back.float().to(device)

    def of(self, windows: Tensor) -> Tensor:
        """[..., WINDOW] -> [..., 2 * BANDS]: real parts, then imaginary ones"""
        return torch.matmul(windows, self.forward)

    def sound(self, spectrum: Tensor) -> Tensor:
        """[..., 2 * BANDS] -> [..., WINDOW], to be added up at steps of STEP"""
        return torch.matmul(spectrum, self.backward)

    @staticmethod
    def loudness(spectrum: Tensor) -> Tensor:
        """[..., 2 * BANDS] -> [..., BANDS], the networks' input: 0 is silence"""
        real, imaginary = spectrum[..., :BANDS], spectrum[..., BANDS:]
        power = (real.square() + imaginary.square()) * _SCALE**2
        return (10.0 * power.clamp(min=10 ** (FLOOR_DB / 10)).log10() - FLOOR_DB) / RANGE_DB


def _overlap(window: Tensor) -> Tensor:
    """[WINDOW]: the sum of the squared windows that overlap a sample, by its place in a window."""
    square = F.pad(window.square(), (0, -WINDOW % STEP))
    total = square.view(-1, STEP).sum(dim=0)
    return total.repeat(-(-WINDOW // STEP))[:WINDOW]


def load_weights(name: str) -> dict[str, Tensor]:
    """The tensors of a file in `FOLDER`. Raises ModelLoadError if it is missing or damaged."""
    path = FOLDER / name
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != SHA256[name]:
            raise ValueError("its bytes are not those that were shipped")
        return read_tensors(data)
    except (OSError, ValueError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise ModelLoadError(
            f"The watermark's weights {name} cannot be read ({cause}): install the package again, "
            "or set CSM_WATERMARK=off."
        ) from None


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `name.`, by the rest of their names."""
    return {
        key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")
    }
