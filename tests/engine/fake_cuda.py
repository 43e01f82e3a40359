"""CSM-1B at its full size on CUDA tensors that have shapes, strides and a device, but no data.

Operations on them are recorded: copies between devices, waits for the host, what matrix products
read, and the number of kernels per frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CsmConfig, CsmForConditionalGeneration

from benchmarks.common import LLAMA3_ROPE
from csm_tts_plugin.engine import runner as runner_module
from csm_tts_plugin.engine.codec_layers import Rows
from csm_tts_plugin.engine.frame import Batch, Piece, draw_frame, read_frame, read_prompts
from csm_tts_plugin.engine.mimi import MimiDecoder
from csm_tts_plugin.engine.runner import Draw, Runner

ROWS = 64
CONTEXT = 2048

_VIEWS = {
    *("view", "_unsafe_view", "slice", "select", "transpose", "t", "alias", "split", "expand"),
    *("split_with_sizes", "unbind", "chunk", "unsqueeze", "squeeze", "permute", "empty", "detach"),
    *("empty_like", "new_empty", "prim", "lift_fresh", "diagonal", "empty_strided", "unfold"),
}
"""Operations that launch no kernel."""
_SEVERAL = {"addmm": 2, "topk": 2, "constant_pad_nd": 2, "convolution": 3}
"""Operations that launch several kernels: the out-of-place addmm copies its first input."""


@dataclass(frozen=True)
class Operation:
    """One ATen operation with its input and output tensors."""

    name: str
    """With its overload: `mm.default`."""
    inputs: tuple[Tensor, ...]
    output: object

    @property
    def short(self) -> str:
        return self.name.split(".")[0]

    @property
    def kernels(self) -> int:
        return 0 if self.short in _VIEWS else _SEVERAL.get(self.short, 1)


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        inputs = tuple(_tensors([*args, *(kwargs or {}).values()]))
        name = str(function).removeprefix("aten.")
        self.operations.append(Operation(name, inputs, result))
        return result

    def kernels(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for operation in self.operations:
            if operation.kernels:
                counted[operation.short] += operation.kernels
        return counted


def _tensors(values) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


@contextmanager
def attention(layout: str) -> Iterator[None]:
    """Replaces attention by one operation (one kernel) whose result has the layout of PyTorch's
    CUDA kernels: `efficient` puts positions before heads, `same` (flash attention) has the layout
    of the queries."""

    def attend(q, k, v, attn_mask=None, scale=None, **_):
        if layout == "same":
            return torch.abs(q)
        batch, heads, length, width = q.shape
        return q.new_zeros(batch, length, heads, width).transpose(1, 2)

    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attend):
        yield


class FakeCsm:
    """A runner with the model's packed weights, rows and codec; `record` runs work on it."""

    def __init__(self, device: str = "cuda:0") -> None:
        self.mode = FakeTensorMode()
        self._recorded: dict[tuple[str, str], Recorder] = {}
        depth = {"rope_parameters": LLAMA3_ROPE}
        codec = {"model_type": "mimi", "num_quantizers": 32}
        config = CsmConfig(
            rope_parameters=LLAMA3_ROPE, depth_decoder_config=depth, codec_config=codec
        )
        with self.mode, torch.no_grad():
            self.model = self._model(config, device)
            # Pinned memory and events need a driver.
            with mock.patch.multiple(runner_module, Mailbox=mock.Mock(), Staging=mock.Mock()):
                self.runner = Runner(self.model, ROWS, CONTEXT)
            self.decoder = MimiDecoder(self.model.codec_model, ROWS)
        self.weights, self.state = self.runner.weights, self.runner.state
        self.steps = self.runner.steps
        self.device = self.runner.device

    @staticmethod
    def _model(config: CsmConfig, device: str) -> CsmForConditionalGeneration:
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(device):
                model = CsmForConditionalGeneration(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        # `float()` does not work on parameters without data.
        for module in model.codec_model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(parameter.detach().float())
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    module._buffers[name] = buffer.float()
        return model

    def record(self, work: Callable[[FakeCsm], object], layout: str = "same") -> Recorder:
        recorder, device = Recorder(), mock.patch.object(torch.cuda, "device", nullcontext)
        with self.mode, torch.no_grad(), device, attention(layout), recorder:
            work(self)
        return recorder

    def recorded(self, name: str, layout: str = "same") -> Recorder:
        """`record` of one of `PARTS`, cached."""
        key = name, layout
        if key not in self._recorded:
            self._recorded[key] = self.record(PARTS[name], layout)
        return self._recorded[key]


Work = Callable[[FakeCsm], object]


def prefill(*pieces: Piece) -> Work:
    def work(csm: FakeCsm) -> None:
        count = sum(piece.count for piece in pieces)
        positions = torch.zeros(count, 33, dtype=torch.int64, device=csm.device)
        read_prompts(csm.weights, csm.state, pieces, positions)

    return work


def _restore(csm: FakeCsm) -> None:
    csm.runner.keep_voice("voice", 0, 70)
    csm.runner.restore_voice("voice", 1)


def _decode(csm: FakeCsm, batch: int, frames: int) -> None:
    """As in a captured graph: rows and positions are tensors on the device."""
    numbers = torch.zeros(batch, dtype=torch.int64, device=csm.device)
    codes = torch.zeros(batch, 32, frames, dtype=torch.int64, device=csm.device)
    csm.decoder(codes, Rows(numbers), numbers)


PARTS: dict[str, Work] = {
    "draw": lambda csm: draw_frame(csm.steps, csm.state, Batch(1), 64),
    "draw 6": lambda csm: draw_frame(csm.steps, csm.state, Batch(6), 64),
    "sound": lambda csm: _decode(csm, 1, 1),
    "sound of 8 x 4": lambda csm: _decode(csm, 8, 4),
    "sound wiped": lambda csm: csm.decoder.reset(3),
    "read": lambda csm: read_frame(csm.steps, csm.state, Batch(1), 2056),
    "read 6": lambda csm: read_frame(csm.steps, csm.state, Batch(6), 2056),
    "prefill": prefill(Piece(0, 0, 40)),
    "prefill of three": prefill(Piece(3, 0, 40), Piece(0, 256, 17), Piece(1, 2040, 8)),
    "start": lambda csm: csm.runner.start(3, Draw((0.9, 0.8), (50, 0), 7)),
    "swap": lambda csm: csm.runner.swap(1, 2),
    "wipe": lambda csm: csm.runner.wipe(1),
    "voice": _restore,
}
"""All work of a serving engine on a device, except the encoding of audio."""
