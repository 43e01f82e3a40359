"""Own kernels under Triton's interpreter; run by test_kernels.py in a separate process, because
TRITON_INTERPRET must be set before Triton is imported.

The interpreter truncates what is stored in bfloat16 and multiplies bfloat16 wrongly in `tl.dot`.
Where this matters, the tests use float32; no kernel's logic depends on the dtype.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import itertools

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from csm_tts_plugin.engine.frame import Batch, FrameState
from csm_tts_plugin.engine.kernels import selection
from csm_tts_plugin.engine.kernels.steps import (
    CLASSES,
    Chosen,
    KernelDrawing,
    KernelSteps,
    Packed,
    class_of,
    sites,
)
from csm_tts_plugin.engine.runner import Runner
from csm_tts_plugin.engine.steps import CudaSteps
from csm_tts_plugin.engine.weights import PackedCsm
from tests.engine.tools import GREEDY_DRAW, Rows, random_positions, truth
from tests.support.models import small_model

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def scalars_as_numbers(monkeypatch):
    """The interpreter keeps a scalar as an array of one element, which newer numpy does not accept
    as an integer, for example as a loop bound."""
    original = interpreter._patch_lang_tensor

    def patch(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch)


def packed(*, eight: bool = False, seed: int = 1, **sizes: int) -> Packed:
    """With `eight`, the PyTorch side uses the dequantised 8-bit weights."""
    weights = PackedCsm(small_model(seed, **sizes), eight_bit_depth=eight)
    shared = Packed.of(CudaSteps(weights))
    for layer in weights.depth_layers if eight else ():
        for name in ("qkv", "out", "gate_up", "down"):
            setattr(layer, name, getattr(layer, name).rounded())
    shared.plain = CudaSteps(weights)
    return shared


def own(packed: Packed, batch: int, *names: str) -> KernelSteps:
    return KernelSteps(packed, batch, frozenset(names))


def near(ours: torch.Tensor, exact: torch.Tensor, most: float = 2e-6) -> None:
    scale = exact.abs().max()
    assert ours.isfinite().all()
    assert (ours - exact).abs().max() <= most * scale, (ours - exact).abs().max() / scale


BATCHES = (1, 3, 17)


@pytest.mark.parametrize("eight", [False, True], ids=["as they are", "8 bits"])
@pytest.mark.parametrize("batch", BATCHES)
def test_feed_forward(batch, eight):
    shared = packed(eight=eight)
    layer = shared.weights.depth_layers[1]
    x = torch.randn(batch, layer.norm2.weight.shape[0], generator=torch.manual_seed(batch))
    expected, result = x.clone(), x.clone()
    layer.add_feed_forward(expected)
    own(shared, batch, "depth gate", "depth down").feed_forward(layer, result)
    near(result, expected)
    assert not torch.equal(expected, x)


def test_the_gate_alone_for_large_batches():
    shared = packed()
    layer = shared.weights.layers[0]
    x = torch.randn(70, 64)
    expected, result = x.clone(), x.clone()
    layer.add_feed_forward(expected)
    own(shared, 70, "gate").feed_forward(layer, result)
    near(result, expected)


@pytest.mark.parametrize("eight", [False, True], ids=["as they are", "8 bits"])
@pytest.mark.parametrize("batch", BATCHES)
def test_depth_layers(batch, eight):
    """Queries, keys and values, then attention over them, at the first positions and the last."""
    shared = packed(eight=eight, codebooks=5)
    plain = shared.plain
    names = [n for n in sites(batch) if n.startswith("depth ") and n != "depth head"]
    steps, layer = own(shared, batch, *names), shared.weights.depth_layers[0]
    ours, theirs = steps.depth_cache(batch), plain.depth_cache(batch)
    for step in range(5):
        x = torch.randn(batch, 32, generator=torch.manual_seed(step))
        expected, result = x.clone(), x.clone()
        plain.depth_qkv(theirs, 0, layer, x, step)
        steps.depth_qkv(ours, 0, layer, x, step)
        near(ours.layers[0][: step + 1], theirs.layers[0][: step + 1], 5e-6)
        plain.depth_attend(theirs, 0, layer, expected, step)
        steps.depth_attend(ours, 0, layer, result, step)
        near(result, expected, 5e-6)


@pytest.mark.parametrize("batch", BATCHES)
def test_heads(batch):
    shared = packed(codes=32)
    x, hidden = torch.randn(batch, 32), torch.randn(batch, 64)
    steps = own(shared, batch, "depth head", "head")
    for codebook in (1, 3):
        near(steps.depth_head(x, codebook), shared.plain.depth_head(x, codebook))
    near(steps.first_head(hidden), shared.plain.first_head(hidden))


@pytest.mark.parametrize("batch", [1, 3, 17, 65])
def test_the_backbone_reads_any_rows_at_any_positions(batch):
    """PyTorch's steps need the first rows; the kernels get the same data in other rows."""
    shared = packed(context=128)
    rng = np.random.default_rng(batch)
    theirs = FrameState(shared.weights, batch, 120)
    ours = FrameState(shared.weights, batch + 3, 120)
    index = torch.from_numpy(rng.permutation(batch + 3)[:batch])
    theirs.memory.normal_()
    ours.memory.normal_()
    theirs.position.copy_(torch.from_numpy(rng.integers(0, 119, batch)))
    theirs.position[0] = 118
    ours.memory[:, :, index] = theirs.memory
    ours.position[index] = theirs.position
    steps = own(shared, batch, "qkv", "attention", "out", "gate", "down")
    readings = shared.plain.reading(theirs, Batch(batch), 120), None
    reading = steps.reading(ours, Batch(batch, index), 0)
    shared.plain.prepare(theirs, readings[0])
    steps.prepare(ours, reading)
    x = torch.randn(batch, 64)
    layer = shared.weights.layers[1]
    if class_of(batch) > 64:
        steps.own = frozenset({"attention", "gate"})
        steps.prepare(ours, reading)
    expected = shared.plain.backbone_layer(theirs, 1, layer, x.clone(), readings[0])
    result = steps.backbone_layer(ours, 1, layer, x.clone(), reading)
    near(result, expected, 5e-6)
    near(ours.memory[1][:, index], theirs.memory[1], 5e-6)
    untouched = [row for row in range(batch + 3) if row not in index.tolist()]
    assert len(untouched) == 3


def test_split_attention_is_the_whole_also_where_parts_are_empty():
    shared = packed()
    layer = shared.weights.layers[0]
    keys, values = torch.randn(2, 1, 2, 130, 16).unbind(0)
    for length in (1, 7, 65, 130):
        q = torch.randn(1, 4, 16)
        place = torch.tensor([length - 1])
        steps = own(shared, 1, "attention")
        y = steps._attend(layer, q, keys, values, places=(torch.tensor([0]), place))
        near(y, layer.attend_one(q, keys[:, :, :length], values[:, :, :length]), 5e-6)


# Drawing


def drawn(steps, state, batch, logits, candidates):
    draw = steps.drawing(state, batch, candidates)
    inputs = [draw.choose(one, book) for book, one in enumerate(logits)]
    return draw, inputs


def drawing_state(shared: Packed, batch: int) -> FrameState:
    state = FrameState(shared.weights, batch + 2, 64)
    rng = np.random.default_rng(batch)
    state.sampling.temperature.copy_(torch.from_numpy(rng.uniform(0.3, 1.5, (batch + 2, 2))))
    state.sampling.top_k.copy_(torch.from_numpy(rng.integers(1, 50, (batch + 2, 2))))
    state.sampling.seed.copy_(torch.from_numpy(rng.integers(0, 2**62, batch + 2)))
    state.sampling.frame.copy_(torch.from_numpy(rng.integers(0, 500, batch + 2)))
    return state


@pytest.mark.parametrize("indexed", [False, True])
def test_codes_are_those_of_the_sampler_and_inputs_their_embeddings(indexed):
    shared, batch = packed(codes=64), 9
    state = drawing_state(shared, batch)
    index = torch.from_numpy(np.random.default_rng(3).permutation(batch + 2)[:batch])
    rows = Batch(batch, index if indexed else None)
    generator = torch.manual_seed(5)
    logits = [torch.randn(batch, 64, generator=generator) * 3 for _ in range(4)]
    theirs, expected = drawn(shared.plain, state, rows, logits, 64)
    ours, result = drawn(own(shared, batch, "choose"), state, rows, logits, 64)
    assert isinstance(ours, KernelDrawing)
    assert torch.equal(ours.codes(), theirs.codes())
    assert len(ours.codes().unique()) > 10
    for one, other in itertools.zip_longest(result[:-1], expected[:-1]):
        assert torch.equal(one, other)
    assert result[-1] is None
    assert ours.sound().all()


def test_greedy_takes_the_first_of_the_largest_and_bfloat16_is_sorted_right():
    shared = packed(codes=64)
    state = FrameState(shared.weights, 2, 64)
    logits = torch.randn(2, 64).bfloat16()
    logits[0, [9, 40, 50]] = 7.0
    draw = own(shared, 2, "choose").drawing(state, Batch(2), 0)
    draw.choose(logits, 0)
    assert draw.codes()[0, 0] == 9
    assert draw.codes()[1, 0] == logits[1].float().argmax()
    state.sampling.temperature.fill_(1.0)
    state.sampling.top_k.fill_(5)
    kept = logits[1].float().topk(5).indices.tolist()
    seen = set()
    for frame in range(16):
        state.sampling.frame.fill_(frame)
        draw.choose(logits, 0)
        seen.add(int(draw.codes()[1, 0]))
        assert int(draw.codes()[0, 0]) in {9, 40, 50} | set(
            logits[0].float().topk(5).indices.tolist()
        )
    assert seen <= set(kept)
    assert len(seen) >= 3


def test_a_row_whose_codes_are_all_the_end_ends_and_only_that_one():
    shared = packed(codes=32)
    state = FrameState(shared.weights, 3, 64)
    steps = own(shared, 3, "choose")
    logits = [torch.zeros(3, 32) for _ in range(4)]
    for book, one in enumerate(logits):
        one[0, 5 if book == 3 else 0] = 9.0
        one[1, 4 if book == 2 else 0] = 9.0
        one[2, 0 if book == 3 else 6] = 9.0
    draw, _ = drawn(steps, state, Batch(3), logits, 0)
    assert draw.codes().tolist() == [[0, 0, 0, 0], [0, 0, 4, 0], [6, 6, 6, 0]]


@pytest.mark.parametrize("codebook", [0, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_told_and_no_code_lies_outside(value, codebook):
    shared = packed(codes=32)
    state = drawing_state(shared, 3)
    logits = [torch.randn(3, 32) for _ in range(4)]
    logits[0][2, 3] = float("-inf")
    logits[codebook][1, 7] = value
    draw, _ = drawn(own(shared, 3, "choose"), state, Batch(3), logits, 32)
    assert draw.sound().tolist() == [True, False, True]
    assert ((draw.codes() >= 0) & (draw.codes() < 32)).all()


# Selection at start-up


def selected(monkeypatch, faster, timed=False, **options):
    """With a fake timer: own kernels are `faster` than PyTorch or not; `timed`: it runs them."""
    weights = PackedCsm(small_model(4, context=64, codebooks=3))
    plain, state = CudaSteps(weights), FrameState(weights, 3, 60)
    times = iter(range(10_000))
    monkeypatch.setattr(selection, "_DRAWN", 8)

    def timer(work):
        if timed:
            work()
        number = next(times)
        return float(number % 2 == 0) != faster

    return selection.select(plain, state, [1], timer=timer, seconds=300, **options)


def test_all_that_are_right_and_faster_are_taken(monkeypatch):
    steps, found = selected(monkeypatch, faster=True, timed=True)
    assert found.own == {1: frozenset(sites(1))}, found.refused
    assert steps.by_index
    assert not found.refused
    assert "1 stream: depth qkv" in str(found)


def test_what_is_wrong_raises_or_gives_nan_is_left_out_and_the_rest_is_used(monkeypatch):
    product = KernelSteps._product

    def spoilt(self, x, rows, norm, **options):
        y = product(self, x, rows, norm, **options)
        if options.get("gated"):
            return y.mul_(1.01)
        if norm is not None:
            return y.fill_(float("nan"))
        return y

    def raising(self, *arguments, **options):
        raise RuntimeError("no such instruction on this card")

    monkeypatch.setattr(KernelSteps, "_product", spoilt)
    monkeypatch.setattr(KernelSteps, "_attend_out", raising)
    _, found = selected(monkeypatch, faster=True)
    assert found.refused == {
        (1, "depth gate"): "with another result",
        (1, "gate"): "with another result",
        (1, "depth head"): "with another result",
        (1, "depth attention"): "with RuntimeError",
    }
    assert {"choose", "qkv", "attention", "down"} <= found.own[1]
    assert "3 with another result, 1 with RuntimeError" in str(found)


def test_what_is_slower_or_not_tried_in_time_is_left_out(monkeypatch):
    steps, found = selected(monkeypatch, faster=False)
    assert found.own == {1: frozenset()}
    assert set(found.refused.values()) == {"not faster"}
    assert not steps.by_index
    weights = steps.weights
    _, found = selection.select(
        CudaSteps(weights), FrameState(weights, 3, 60), [1], timer=lambda work: 0.0, seconds=-1.0
    )
    assert set(found.refused.values()) == {"for want of time"}


def test_a_frame_that_differs_as_a_whole_takes_everything_back(monkeypatch):
    """Each part alone is close enough, but their combination is wrong."""
    monkeypatch.setattr(selection, "frames_alike", lambda own, plain, bench: False)
    _, found = selected(monkeypatch, faster=True)
    assert found.own == {1: frozenset()}
    assert "differs as a whole" in str(found)


# Whole frames


def chosen(runner: Runner) -> Chosen:
    plain = CudaSteps(runner.weights)
    return Chosen(Packed.of(plain), {limit: frozenset(sites(limit)) for limit in CLASSES})


def test_greedy_codes_are_those_of_generate_in_any_rows():
    """Steps by index, with padding, and with rows in another order for each frame."""
    model, rng = small_model(9, codebooks=3), np.random.default_rng(1)
    prompts = [random_positions(model, rng, 1) for _ in range(2)]
    runner = Runner(model, 4, 128)
    runner.steps = chosen(runner)
    assert runner.steps.by_index
    runner.state = FrameState(runner.weights, 5, 128)
    runner.batches = [3]
    places = [3, 1]
    for row, positions in zip(places, prompts, strict=True):
        runner.read(row, 0, positions)
        runner.start(row, GREEDY_DRAW)
    runner._batch(3)
    codes = []
    for order in ([0, 1], [1, 0]):
        runner.select([places[stream] for stream in order])
        drawn = runner.draw(2, 0).codes
        runner.advance(2, 100)
        codes.append(drawn[np.argsort(order)])
    for stream, positions in enumerate(prompts):
        np.testing.assert_array_equal(np.stack(codes)[:, stream], truth(model, positions, 2))


def test_greedy_codes_of_one_stream_are_those_of_generate():
    model, rng = small_model(9, codebooks=3), np.random.default_rng(1)
    positions = random_positions(model, rng, 2)
    rows = Rows(model, 1)
    rows.runner.steps = chosen(rows.runner)
    rows.read(0, positions, rng)
    rows.start(0)
    codes = np.stack([rows.step(1) for _ in range(2)])
    np.testing.assert_array_equal(codes[:, 0], truth(model, positions, 2))
