"""What only a CUDA device can show. Needs torch, transformers and pytest, nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from csm_tts_plugin.engine.graphs import batch_sizes
from csm_tts_plugin.engine.runner import Draw, Runner
from tests.support.models import small_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

FRAMES = 24
GREEDY = Draw((0.0, 0.0), (1, 1), 0)
SAMPLED = Draw((0.9, 0.9), (50, 50), 7)


def prompt(codebooks: int) -> np.ndarray:
    positions = np.zeros((9, codebooks + 1), np.int64)
    positions[:, -1] = [128, 5, 6, 7, 8, 9, 10, 11, 129]
    return positions


def speak(runner: Runner, batch: int, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """The same utterance in each of `batch` rows: codes [T, B, K] and samples [T, B, n]."""
    for row in range(batch):
        runner.start(row, draw)
        runner.read(row, 0, prompt(runner.weights.codebooks))
    frames = []
    for made in range(FRAMES):
        frames.append(runner.draw(batch, draw.candidates(runner.weights.codes)))
        runner.advance(batch, 10 + made)
    return np.stack([f.codes for f in frames]), np.stack([f.samples for f in frames])


def runner(*, graphs: bool, rows: int = 8, seed: int = 1) -> Runner:
    model = small_model(seed, codebooks=8).to("cuda")
    batches = batch_sizes(rows // 2) if graphs else None
    made = Runner(model, rows, 256, batches=batches, graphs=graphs)
    made.warm_up()
    return made


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("draw", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_captured_graphs_speak_what_uncaptured_code_speaks(batch: int, draw: Draw) -> None:
    codes, samples = speak(runner(graphs=True), batch, draw)
    plain_codes, plain_samples = speak(runner(graphs=False), batch, draw)
    assert (codes == plain_codes).all()
    assert np.abs(samples - plain_samples).max() <= 1e-3 * np.abs(plain_samples).max()


def test_greedy_codes_equal_generate_on_the_device() -> None:
    model = small_model(2, codebooks=8).to("cuda")
    ids = torch.tensor([prompt(8)[:, -1]], device="cuda")
    greedy = model.generate(input_ids=ids, do_sample=False, max_new_tokens=FRAMES)
    expected = greedy[0].cpu().numpy()
    mine = Runner(model, 4, 256)
    mine.warm_up()
    codes, _ = speak(mine, 1, GREEDY)
    assert (codes[: len(expected), 0] == expected).all()


def test_rows_that_pad_a_batch_disturb_nobody() -> None:
    made = runner(graphs=True, rows=16)
    alone, _ = speak(made, 1, GREEDY)
    among, _ = speak(made, 5, GREEDY)
    assert all((among[:, row] == alone[:, 0]).all() for row in range(5))
