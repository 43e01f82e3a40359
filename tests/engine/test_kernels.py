"""Own kernels, without a GPU: their results under Triton's interpreter, and their resources when
compiled for each generation of GPUs."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csm_tts_plugin.engine.frame import Batch, draw_frame, read_frame
from csm_tts_plugin.engine.layers import EightBit
from csm_tts_plugin.engine.steps import CudaSteps
from tests.engine.fake_cuda import FakeCsm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

pytest.importorskip("triton", reason="there is no Triton here")

from csm_tts_plugin.engine.kernels.steps import CLASSES, Chosen, Packed, sites  # noqa: E402
from tests.engine.launches import TOOLS, Launch, recorded, use_of  # noqa: E402


@pytest.mark.timeout(600)
def test_kernels_compute_what_pytorch_computes_and_frames_are_those_of_generate():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, str(HERE / "interpreted.py")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


# Compiled ahead of time

CARDS = {80: "A100", 89: "L4", 90: "H100", 100: "B200", 120: "RTX PRO 6000"}
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Bytes of shared memory that one block may use."""


@pytest.fixture(scope="module")
def csm():
    return FakeCsm()


def chosen(csm, *, early: bool, eight: bool = False) -> Chosen:
    """All kernels there are, at CSM-1B's sizes."""
    weights = csm.weights
    if eight:
        weights = copy.copy(weights)
        weights.depth_layers = [_in_eight_bits(layer) for layer in weights.depth_layers]
    with csm.mode, torch.no_grad():
        packed = Packed.of(CudaSteps(weights), launch_early=early)
    return Chosen(packed, {limit: frozenset(sites(limit, eight)) for limit in CLASSES})


def _in_eight_bits(layer):
    layer = copy.copy(layer)
    for name in ("qkv", "out", "gate_up", "down"):
        setattr(layer, name, EightBit(getattr(layer, name)))
    return layer


def frame(steps, batch: int):
    """One frame of any rows, without the codec."""

    def work(csm) -> None:
        index = torch.arange(batch, device=csm.device)
        draw_frame(steps, csm.state, Batch(batch, index), 64)
        read_frame(steps, csm.state, Batch(batch, index), 0)

    return work


def launches_of(csm, steps, *batches: int) -> list[Launch]:
    with recorded() as launches:
        for batch in batches:
            csm.record(frame(steps, batch))
    return launches


def check(launch: Launch, card: int) -> None:
    use = use_of(launch.compile(card))
    where = f"{launch.name} on {CARDS[card]}: {use}"
    assert use.registers <= 255, where
    assert use.spilled == 0, where
    assert use.stack == 0, where
    assert use.shared <= SHARED[card], where


def _some(launches: list[Launch]) -> list[Launch]:
    """The largest of each kernel: most registers and shared memory."""
    largest: dict[str, Launch] = {}
    for launch in launches:
        sizes = [value for _, value in launch.constants if isinstance(value, int)]
        name = launch.kernel.fn.__name__
        if name not in largest or sum(sizes) > sum(_sizes(largest[name])):
            largest[name] = launch
    return list(largest.values())


def _sizes(launch: Launch) -> list[int]:
    return [value for _, value in launch.constants if isinstance(value, int)]


needs_tools = pytest.mark.skipif(
    not all((TOOLS / name).is_file() for name in ("ptxas", "ptxas-blackwell", "cuobjdump")),
    reason="this Triton comes without NVIDIA's assembler",
)


@needs_tools
def test_every_kernel_of_one_stream_fits_an_h100_without_spills(csm):
    found = set(launches_of(csm, chosen(csm, early=True), 1))
    found |= set(launches_of(csm, chosen(csm, early=True, eight=True), 1))
    assert {launch.kernel.fn.__name__ for launch in found} == {
        *("gemv", "gemv_qkv", "attend", "combine", "attend_out", "choose"),
    }
    for launch in found:
        check(launch, 90)


@needs_tools
@pytest.mark.parametrize("card", CARDS)
def test_the_largest_of_each_kernel_fits_every_generation_without_spills(csm, card):
    found = launches_of(csm, chosen(csm, early=card >= 90), 1, 16, 64, 512)
    largest = _some(found)
    assert len(largest) >= 9
    for launch in largest:
        check(launch, card)


# Number of kernels


def test_one_stream_takes_fewer_than_a_thousand_kernels_a_frame(csm):
    """Including the codec, with one frame per call. PyTorch alone takes at most two thousand, with
    eight frames per call of the codec."""
    sound = sum(csm.recorded("sound").kernels().values())
    plain = sum(sum(csm.recorded(part).kernels().values()) for part in ("draw", "read"))
    steps = chosen(csm, early=True)
    with recorded() as launches:
        operations = csm.record(frame(steps, 1)).kernels()
    own = len(launches) + sum(operations.values())
    print(f"{plain} kernels in PyTorch, {own} with own ones, {sound} more for the sound")
    assert own + sound <= 1000, (len(launches), operations)
    assert plain + sound / 8 <= 2000
