"""Tests that need a CUDA device. Requirements: torch, transformers and pytest."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CsmForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from csm_tts_plugin.engine.frame import FrameState
from csm_tts_plugin.engine.graphs import batch_sizes
from csm_tts_plugin.engine.runner import Draw, Runner
from csm_tts_plugin.engine.sound import Codec
from csm_tts_plugin.engine.steps import CudaSteps
from csm_tts_plugin.engine.weights import PackedCsm
from tests.support.models import small_config, small_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

FRAMES = 24
GREEDY = Draw((0.0, 0.0), (1, 1), 0)
SAMPLED = Draw((0.9, 0.9), (50, 50), 7)


def prompt(codebooks: int) -> np.ndarray:
    positions = np.zeros((9, codebooks + 1), np.int64)
    positions[:, -1] = [128, 5, 6, 7, 8, 9, 10, 11, 129]
    return positions


def speak(runner: Runner, batch: int, draw: Draw) -> np.ndarray:
    """The same utterance in each of `batch` rows: codes [T, B, K]."""
    for row in range(batch):
        runner.start(row, draw)
        runner.read(row, 0, prompt(runner.weights.codebooks))
    codes = []
    for made in range(FRAMES):
        frame = runner.draw(batch, draw.candidates(runner.weights.codes))
        runner.advance(batch, 10 + made)
        codes.append(frame.codes)
    return np.stack(codes)


def sound(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Codes [T, B, K] -> samples [B, n], in chunks of all lengths."""
    rows = [codec.take() for _ in range(codes.shape[1])]
    calls, made = [], 0
    for frames in (1, 1, 2, 4, 8, 8):
        part = codes[made : made + frames].transpose(1, 2, 0)
        calls.append(codec.decode(rows, part, [False] * len(rows)))
        made += frames
    assert made == FRAMES
    for row in rows:
        codec.give(row)
    return np.concatenate([np.stack(call.samples) for call in calls], axis=1)


def runner(*, graphs: bool, rows: int = 8, seed: int = 1, kernels: bool = False) -> Runner:
    model = small_model(seed, codebooks=8).to("cuda")
    batches = batch_sizes(rows // 2) if graphs else None
    made = Runner(model, rows, 256, batches=batches, graphs=graphs, kernels=kernels)
    made.warm_up()
    return made


def in_bfloat16(head_dim: int):
    """A small model with the head sizes of CSM-1B's backbone (64) and depth decoder (128)."""
    torch.manual_seed(3)
    config = small_config(codebooks=8)
    config.head_dim = head_dim
    config.depth_decoder_config.head_dim = head_dim
    model = CsmForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if not name.startswith("codec_model."):
            parameter.data = parameter.data.to(torch.bfloat16)
    return model.to("cuda")


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("draw", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_captured_graphs_speak_what_uncaptured_code_speaks(batch: int, draw: Draw) -> None:
    codes = speak(runner(graphs=True), batch, draw)
    assert (codes == speak(runner(graphs=False), batch, draw)).all()


@pytest.mark.parametrize("graphs", [True, False])
def test_the_codec_in_chunks_beside_the_model_sounds_as_transformers_decode(graphs: bool) -> None:
    """Rows are reused, and results are read after all calls were queued."""
    model = small_model(1, codebooks=8).to("cuda")
    codec = Codec(model.codec_model, 4, graphs=graphs)
    codec.warm_up()
    for seed, batch in enumerate((1, 3, 4)):
        codes = np.random.default_rng(seed).integers(
            0, codec.decoder.codebook_size, (FRAMES, batch, 8)
        )
        heard = sound(codec, codes)
        with torch.no_grad():
            given = torch.from_numpy(codes.transpose(1, 2, 0)).to("cuda")
            expected = model.codec_model.decode(given).audio_values[:, 0].cpu().numpy()
        assert np.abs(heard - expected).max() <= 1e-3 * np.abs(expected).max()


def test_greedy_codes_equal_generate_on_the_device() -> None:
    model = small_model(2, codebooks=8).to("cuda")
    ids = torch.tensor([prompt(8)[:, -1]], device="cuda")
    greedy = model.generate(input_ids=ids, do_sample=False, max_new_tokens=FRAMES)
    expected = greedy[0].cpu().numpy()
    mine = Runner(model, 4, 256, kernels=False)
    mine.warm_up()
    codes = speak(mine, 1, GREEDY)
    assert (codes[: len(expected), 0] == expected).all()


def test_rows_that_pad_a_batch_disturb_nobody() -> None:
    made = runner(graphs=True, rows=16)
    alone = speak(made, 1, GREEDY)
    among = speak(made, 5, GREEDY)
    assert all((among[:, row] == alone[:, 0]).all() for row in range(5))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_bfloat16_speaks_the_same_captured_and_not_at_csm_s_head_sizes(head_dim: int) -> None:
    heard = []
    for graphs in (True, False):
        batches = [1, 2, 4] if graphs else None
        made = Runner(in_bfloat16(head_dim), 4, 256, batches=batches, graphs=graphs, kernels=False)
        made.warm_up()
        heard.append(speak(made, 2, SAMPLED))
    assert (heard[0] == heard[1]).all()


# Own kernels


def all_of_them(weights: PackedCsm):
    """Every kernel there is, whether it is faster or not."""
    from csm_tts_plugin.engine.kernels.steps import CLASSES, Chosen, Packed, sites

    packed = Packed.of(CudaSteps(weights))
    return Chosen(packed, {limit: frozenset(sites(limit)) for limit in CLASSES})


@pytest.mark.parametrize("batch", [1, 3, 20, 70])
def test_greedy_codes_by_own_kernels_equal_generate_on_the_device(batch: int) -> None:
    model = small_model(2, codebooks=8).to("cuda")
    ids = torch.tensor([prompt(8)[:, -1]], device="cuda")
    expected = model.generate(input_ids=ids, do_sample=False, max_new_tokens=FRAMES)[0]
    made = Runner(model, batch, 256, kernels=False)
    made.steps = all_of_them(made.weights)
    codes = speak(made, batch, GREEDY)
    for row in range(batch):
        assert (codes[: len(expected), row] == expected.cpu().numpy()).all(), row


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_kernel_is_right_in_bfloat16(head_dim: int, early: bool) -> None:
    """Checked as at engine start; from Hopper on also with programmatic dependent launch."""
    from csm_tts_plugin.engine.kernels.selection import select

    if early and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("no programmatic dependent launch on this card")
    weights = PackedCsm(in_bfloat16(head_dim))
    state = FrameState(weights, 72, 248)
    with torch.inference_mode():
        _, found = select(
            CudaSteps(weights), state, [1, 16, 64, 70], seconds=300, launch_early=early
        )
    print(found)
    assert not {k: r for k, r in found.refused.items() if r != "not faster"}


def test_an_engine_with_what_it_took_speaks_the_same_captured_and_not() -> None:
    made = runner(graphs=True, kernels=True)
    captured = speak(made, 3, SAMPLED)
    made._graphs = None
    assert (speak(made, 3, SAMPLED) == captured).all()
    print(made.path)
