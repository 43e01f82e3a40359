"""Failures and waits on a CUDA device, detected without one: on CUDA tensors without data at
CSM-1B's full size, and on the CPU with the differences of CUDA's kernels."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from unittest import mock

import numpy as np
import pytest
import torch

from csm_tts_plugin.engine import devices
from csm_tts_plugin.engine.devices import Mailbox, Staging
from csm_tts_plugin.engine.graphs import GraphSet
from csm_tts_plugin.engine.layers import EightBit, add
from csm_tts_plugin.engine.runner import Draw, Runner
from tests.engine.fake_cuda import PARTS, FakeCsm, Recorder, attention
from tests.engine.tools import GREEDY_DRAW, Rows, random_positions, truth
from tests.support.models import small_model


@pytest.fixture(scope="module")
def csm():
    return FakeCsm()


@pytest.mark.parametrize("layout", ["efficient", "same"])
@pytest.mark.parametrize("part", PARTS)
def test_nothing_leaves_the_device_and_nothing_waits_for_the_host(csm, part, layout):
    recorded = csm.recorded(part, layout)
    assert recorded.operations
    for operation in recorded.operations:
        assert operation.short not in {"_local_scalar_dense", "nonzero", "equal", "masked_select"}
        outputs = operation.output if isinstance(operation.output, tuple) else (operation.output,)
        tensors = [t for t in (*operation.inputs, *outputs) if isinstance(t, torch.Tensor)]
        assert {t.device for t in tensors} <= {csm.device}, operation.name


@pytest.mark.parametrize("part", PARTS)
def test_products_read_matrices_in_steps_of_sixteen_bytes(csm, part):
    """Rows that begin elsewhere are read one element at a time."""
    products = [
        operation
        for operation in csm.recorded(part).operations
        if operation.short in {"mm", "addmm_", "addmm", "bmm"}
    ]
    for operation in products:
        for matrix in operation.inputs:
            steps = [step for step in matrix.stride() if step != 1]
            places = [*steps, matrix.storage_offset()]
            assert all(place * matrix.element_size() % 16 == 0 for place in places), (
                operation.name,
                matrix.shape,
                matrix.stride(),
            )


def test_depth_heads_are_held_once(csm):
    weight = csm.model.depth_decoder.codebooks_head.weight
    assert weight.shape == (31, 1024, 2051)
    held = {head.untyped_storage()._cdata for head in csm.weights.depth_heads}
    assert held == {weight.untyped_storage()._cdata}


def test_residuals_are_added_within_the_product(csm):
    """Out of place, each product would copy the residual first: 286 more kernels a frame."""
    for part in ("draw", "read", "prefill"):
        assert not csm.recorded(part).kernels()["addmm"]
    # The depth decoder's 31 passes and what position 0 needs; the backbone.
    assert csm.recorded("draw").kernels()["addmm_"] == 31 * 4 * 2 + 3 * 2
    assert csm.recorded("read").kernels()["addmm_"] == 16 * 2


def test_what_attention_may_see_is_made_once_a_step(csm):
    """Its strides are multiples of 8; otherwise each layer would copy it once more."""
    biases = []

    def attend(q, k, v, attn_mask=None, scale=None, **_):
        if attn_mask is not None:
            biases.append(attn_mask)
        return torch.zeros_like(q)

    for work, layers in ((PARTS["read 6"], 16), (PARTS["prefill of three"], 3 * 16)):
        biases.clear()
        # The attention of the tests is patched inside of `record`.
        patched = mock.patch("torch.nn.functional.scaled_dot_product_attention", attend)
        with mock.patch("tests.engine.fake_cuda.attention", return_value=patched):
            csm.record(work)
        assert len(biases) == layers
        assert len({id(bias) for bias in biases}) == layers // 16
        for bias in biases:
            assert bias.dtype == torch.bfloat16
            assert all(step % 8 == 0 for step in bias.stride()[:-1])


# Layouts


@pytest.fixture
def laid_out_otherwise(monkeypatch):
    """Attention's results with positions before heads, as CUDA's memory-efficient kernel and flash
    attention return them; the values are correct."""
    real = torch.nn.functional.scaled_dot_product_attention

    def attend(*args, **kwargs):
        return real(*args, **kwargs).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)


@pytest.mark.usefixtures("laid_out_otherwise")
def test_codes_are_the_same_whatever_the_layout_of_attentions_result(seed):
    model, rng = small_model(2), np.random.default_rng(seed)
    positions = random_positions(model, rng, 3)
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _real_attention):
        expected = truth(model, positions, 8)
    rows = Rows(model, 1)
    rows.read(0, positions, rng)
    rows.start(0)
    codes = np.stack([rows.step(1)[0] for _ in range(len(expected))])
    np.testing.assert_array_equal(codes, expected)


_real_attention = torch.nn.functional.scaled_dot_product_attention


# Transfers between host and device


def test_a_frame_read_late_is_still_that_frame():
    """The next frame is written into the same memory."""
    mailbox = Mailbox(1 << 12, torch.device("cpu"))
    sent = [
        (torch.full((2, 3), n), torch.full((2, 5), n / 2), torch.tensor([n % 2 == 0] * 2))
        for n in range(4)
    ]
    fetched = [mailbox.send(outputs) for outputs in sent]
    for outputs, fetch in zip(sent, fetched, strict=True):
        for expected, result in zip(outputs, fetch(), strict=True):
            np.testing.assert_array_equal(result, expected.numpy())


def test_results_of_every_size_lie_in_memory_that_was_laid_out_once():
    mailbox = Mailbox(6 * 1000, torch.device("cpu"))
    with mock.patch.object(torch, "empty", side_effect=AssertionError("memory was asked for")):
        for batch in (1, 5, 3):
            (result,) = mailbox.send((torch.ones(batch, 250),))()
            assert result.shape == (batch, 250)
            assert (result == 1).all()


def test_the_largest_frame_fits_into_the_mailbox():
    """Codes, and whether logits were finite, for the most rows that a step may have."""
    runner = Runner(small_model(1), 5, 64)
    mailbox = Mailbox(5 * runner._bytes_per_row(), torch.device("cpu"))
    runner._mailbox = mailbox
    runner.start(0, GREEDY_DRAW)
    for batch in (5, 1):
        frame = runner.draw(batch, 0)
        assert frame.codes.shape == (batch, runner.weights.codebooks)
        assert frame.sound.all()


class Waited:
    """A CUDA event that records its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def record(self) -> None:
        self.calls.append("record")

    def synchronize(self) -> None:
        self.calls.append("synchronize")


def test_arrays_reach_the_device_in_parts_of_pinned_memory_none_of_it_used_before_it_is_free():
    staging = Staging(64, torch.device("cpu"))
    staging._stages = [(torch.zeros(64, dtype=torch.uint8), Waited()) for _ in range(3)]
    array = np.arange(70, dtype=np.int64).reshape(7, 10)
    sent = staging.send(array)
    array[:] = 0
    np.testing.assert_array_equal(sent.numpy(), np.arange(70).reshape(7, 10))
    for _, event in staging._stages:
        assert event.calls == ["synchronize", "record"] * 3


# Devices and settings


def test_each_method_works_on_its_own_device_whatever_thread_calls_it(monkeypatch):
    """Events, streams and graphs belong to the current device, by default device 0."""
    runner = Runner(small_model(1), 2, 64)
    runner.device = torch.device("cuda", 1)
    runner._to_device = torch.from_numpy
    current: list[torch.device] = []

    @contextmanager
    def entered(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", entered)
    inside = []
    for name in ("embed_positions", "embed_frames"):
        original = getattr(runner.weights, name)
        monkeypatch.setattr(
            runner.weights,
            name,
            lambda x, original=original: (inside.append(list(current)), original(x))[1],
        )
    runner.start(0, Draw((0.0, 0.0), (1, 1), 0))
    runner.read(0, 0, random_positions(small_model(1), np.random.default_rng(0), 1))
    runner.draw(1, 0)
    runner.advance(1, 20)
    assert inside == [[torch.device("cuda", 1)]] * 3
    for name in ("swap", "wipe", "start", "encode", "draw", "advance", "read_all", "keep_voice"):
        assert hasattr(getattr(Runner, name), "__wrapped__"), name


def test_on_cuda_attention_is_never_cudnns_and_the_codec_never_in_tf32(monkeypatch):
    said = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", said.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    devices.settle(torch.device("cpu"))
    assert not said
    assert torch.backends.cudnn.allow_tf32
    devices.settle(torch.device("cuda", 1))
    assert said == [False]
    assert not torch.backends.cudnn.allow_tf32


def test_graphs_are_captured_on_one_stream(monkeypatch):
    """Each further stream would have a workspace of its own."""
    made, used = [], []

    class Stream:
        def __init__(self) -> None:
            made.append(self)

        def wait_stream(self, other) -> None:
            pass

    def graph(graph, pool, stream):
        used.append(stream)
        return nullcontext()

    free = iter([900, 800, 800, 790])
    cuda = {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: (used.append(stream), nullcontext())[1],
        "graph": graph,
        "CUDAGraph": mock.Mock,
        "graph_pool_handle": lambda: (0, 1),
        "mem_get_info": lambda: (next(free), 1000),
    }
    for name, replacement in cuda.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    graphs = GraphSet()
    (own,) = made
    calls = []
    for key in range(2):
        graphs.capture((key,), lambda: (calls.append(1), ())[1])
    assert len(calls) == 2 * 3
    assert used == [own] * 4
    assert graphs.bytes == 110, "what the device has less of, workspaces included"


def test_without_kernels_the_exact_matrix_is_used_where_eight_bits_would_only_be_slower(csm):
    """PyTorch's CUDA kernel for 8-bit weights uses one thread per output."""
    with csm.mode, torch.no_grad():
        layer = csm.weights.depth_layers[0]
        eight = EightBit(layer.down)
        x = torch.empty(2, 8192, dtype=torch.bfloat16, device="cuda:0")
        recorder = Recorder()
        with recorder:
            eight(x)
            add(x.new_empty(2, 1024), x, eight, None)
    assert set(recorder.kernels()) == {"mm", "addmm_"}
    assert eight.exact is layer.down


def test_the_layouts_of_the_tests_are_those_of_pytorchs_own_kernels(csm):
    """Read from their meta functions, which give the layout of a result without a device."""
    aten = torch.ops.aten
    with csm.mode:
        q, k = (torch.empty(2, 8, n, 64, dtype=torch.bfloat16, device="cuda:0") for n in (4, 40))
        flash = aten._scaled_dot_product_flash_attention(q, k, k)[0]
        efficient = aten._scaled_dot_product_efficient_attention(q, k, k, None, False)[0]
        with attention("efficient"):
            stand_in = torch.nn.functional.scaled_dot_product_attention(q, k, k)
    assert flash.stride() == q.stride()
    assert efficient.stride() == stand_in.stride() != q.stride()
