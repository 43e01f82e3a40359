"""The frame step has no data-dependent shape and never waits for the host, as CUDA graphs require:
it compiles as one full graph, with the same results."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csm_tts_plugin.engine.frame import Batch, draw_frame, read_frame
from csm_tts_plugin.engine.runner import Draw, Runner
from tests.engine.tools import GREEDY_DRAW, random_positions
from tests.support.models import small_model

LENGTH = 128
BATCH = 3
DRAWN = Draw((0.9, 0.7), (40, 20), 123)


def prepared(draw: Draw) -> Runner:
    model, rng = small_model(3, codebooks=3), np.random.default_rng(0)
    runner = Runner(model, BATCH + 1, 256)
    for row in range(BATCH):
        positions = random_positions(model, rng, 2)
        runner.read(row, 0, positions)
        runner.start(row, draw)
    return runner


def step(runner: Runner, candidates: int) -> torch.Tensor:
    """A whole frame: codes, then the backbone."""
    codes, _ = draw_frame(runner.steps, runner.state, Batch(BATCH), candidates)
    read_frame(runner.steps, runner.state, Batch(BATCH), LENGTH)
    return codes


@pytest.mark.parametrize(("draw", "candidates"), [(GREEDY_DRAW, 0), (DRAWN, 64)])
def test_one_graph_is_a_whole_frame_at_every_position(draw, candidates):
    torch._dynamo.reset()
    plain, compiled, graphs = prepared(draw), prepared(draw), []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    whole = torch.compile(
        lambda: step(compiled, candidates), fullgraph=True, dynamic=False, backend=backend
    )
    with torch.inference_mode():
        # The first step allocates what is allocated once per batch size.
        assert torch.equal(step(plain, candidates), step(compiled, candidates))
        for _ in range(4):
            expected, result = step(plain, candidates), whole()
            assert torch.equal(result, expected)
    assert len(graphs) == 1
    for ours, theirs in zip(compiled.state.tensors(), plain.state.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_step_waits_for_nothing_on_the_host(monkeypatch):
    """No tensor's value is read: on a device each read would stall the pipeline."""
    runner = prepared(DRAWN)

    def asked(*_arguments, **_options):
        raise AssertionError("a value was copied to the host in the middle of a frame")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, asked)
    with torch.inference_mode():
        step(runner, 64)
