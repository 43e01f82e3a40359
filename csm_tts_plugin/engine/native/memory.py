"""Addresses of tensors for C, weights in panels, and the comparison of two implementations."""

from __future__ import annotations

import time
from collections.abc import Callable
from ctypes import c_void_p

import torch
import torch.nn.functional as F
from torch import Tensor

_TURNS = 3
_SLOWER = 1.1
"""How much slower than PyTorch kernels may be timed: on a busy machine times vary, and the choice
should be the same after a restart."""


def address(tensor: Tensor, item: int = 0) -> c_void_p:
    """The address of `tensor[item]`. Raises ValueError if the tensor is not contiguous."""
    if not tensor.is_contiguous():
        raise ValueError("a tensor is not contiguous")
    return c_void_p(tensor.data_ptr() + item * tensor.stride(0) * tensor.element_size())


def panels(weight: Tensor, panel: int, last: int) -> Tensor:
    """[..., out] as panels [..., panel] one after the other. The last one is filled up with zeros
    to a multiple of `last` columns.
    """
    whole = F.pad(weight, (0, -weight.shape[-1] % last))
    parts = [part.contiguous().flatten() for part in torch.split(whole, panel, dim=-1)]
    return torch.cat(parts)


def near(mine: Tensor, theirs: Tensor, error: float) -> bool:
    """Whether all differences are at most `error` times the largest value; never with NaN."""
    return bool((mine - theirs).abs().max() <= error * theirs.abs().max())


def no_slower(mine: Callable[[], object], theirs: Callable[[], object]) -> bool:
    """Whether `mine` takes no longer than `theirs`, each the least of a few turns."""
    taken: list[list[float]] = [[], []]
    for _ in range(_TURNS):
        for times, work in zip(taken, (mine, theirs), strict=True):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
    return min(taken[0]) <= _SLOWER * min(taken[1])
