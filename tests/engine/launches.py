"""Launches of own kernels, recorded instead of executed, and compiled for an absent GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_KINDS = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int8: "*i8",
}
_OPTIONS = ("num_warps", "num_stages", "launch_pdl")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Launch:
    """Identifies a compiled kernel: what it is compiled for, without the values of arguments."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        sizes = "_".join(f"{name}{value}" for name, value in self.constants if value is not False)
        return f"{self.kernel.fn.__name__} {sizes}"

    @classmethod
    def of(cls, kernel: Any, args: tuple, kwargs: dict[str, Any]) -> Launch:
        options = tuple((name, kwargs.pop(name)) for name in _OPTIONS if name in kwargs)
        given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        assert set(given) == set(kernel.arg_names), f"{kernel.fn.__name__}: {sorted(given)}"
        constant = {p.name for p in kernel.params if p.is_constexpr}
        signature = tuple((name, _kind(name, value, constant)) for name, value in given.items())
        aligned = tuple(
            place
            for place, name in enumerate(kernel.arg_names)
            if name not in constant and _aligned(given[name])
        )
        constants = tuple((name, given[name]) for name in kernel.arg_names if name in constant)
        return cls(kernel, signature, constants, aligned, options)

    def compile(self, card: int) -> Any:
        source = ASTSource(
            fn=self.kernel,
            signature=dict(self.signature),
            constexprs=dict(self.constants),
            attrs={(place,): [["tt.divisibility", 16]] for place in self.aligned},
        )
        target = GPUTarget("cuda", card, 32)
        return triton.compile(source, target=target, options=dict(self.options))


def _kind(name: str, value: Any, constant: set[str]) -> str:
    if name in constant:
        return "constexpr"
    if isinstance(value, Tensor):
        return _KINDS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _aligned(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.storage_offset() * value.element_size() % 16 == 0
    return isinstance(value, int) and value % 16 == 0


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    launches: list[Launch] = []

    def run(self, *args, grid, warmup, **kwargs):
        assert all(0 < size < 2**31 for size in grid)
        launches.append(Launch.of(self, args, kwargs))

    with mock.patch.object(JITFunction, "run", run):
        yield launches


@dataclass(frozen=True)
class Use:
    """The GPU resources that a compiled kernel uses."""

    registers: int
    stack: int
    spilled: int
    shared: int


def use_of(compiled: Any) -> Use:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", told.stdout + told.stderr)
    assert found, told.stdout + told.stderr
    registers, stack, spilled = map(int, found.groups())
    return Use(registers, stack, spilled, compiled.metadata.shared)
