"""The C kernels of the frame step: the numbers of PyTorch, and PyTorch where they cannot run."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch

from csm_tts_plugin.engine.forced import forced_logits
from csm_tts_plugin.engine.frame import Batch
from csm_tts_plugin.engine.native import build, selection
from csm_tts_plugin.engine.native.steps import NativeSteps, shares
from csm_tts_plugin.engine.runner import Draw, Runner
from csm_tts_plugin.engine.sampling import Sampler
from tests.engine.tools import (
    ByHand,
    Rows,
    alone,
    assert_begins,
    random_positions,
    say,
    small_checkpoint,
    truth,
)
from tests.support.models import small_model

pytestmark = [
    pytest.mark.skipif(not build.compilers(), reason="there is no C compiler here"),
    pytest.mark.usefixtures("native"),
]

ROWS = 12


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model(3, codebooks=6, context=512, head_dim=32)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return build.load()


@pytest.fixture(scope="module")
def narrow() -> ctypes.CDLL:
    """The kernels without AVX-512: half as many rows a call, and half as wide."""
    if "avx2" not in build._processor():
        pytest.skip("the processor has no AVX2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_TARGETS", (["-mavx2", "-mfma"], []))
        return build.load()


@pytest.fixture(params=["native", "narrow"])
def kernels(request: pytest.FixtureRequest) -> ctypes.CDLL:
    found = request.getfixturevalue("library" if request.param == "native" else "narrow")
    assert isinstance(found, ctypes.CDLL)
    return found


def filled(model: Any, kernels: ctypes.CDLL, *, threads: int = 1) -> Runner:
    """A runner with C kernels whose rows are in the middle of utterances of different lengths."""
    runner = Runner(model, ROWS, 400)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    runner.steps = NativeSteps(runner.weights, runner.state, kernels)
    torch.set_num_threads(before)
    rng = np.random.default_rng(5)
    for row in range(ROWS):
        runner.read(row, 0, random_positions(model, rng, 1 + row))
        runner.start(row, Draw((0.9, 0.8), (20, 30), seed=row))
    return runner


def plain(runner: Runner) -> Any:
    from csm_tts_plugin.engine.steps import Steps

    return Steps(runner.weights)


def kept(runner: Runner) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in runner.state.tensors()]


def restore(runner: Runner, before: list[torch.Tensor]) -> None:
    for tensor, value in zip(runner.state.tensors(), before, strict=True):
        tensor.copy_(value)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 12])
def test_logits_of_all_codebooks_are_those_of_pytorch(
    model: Any, kernels: ctypes.CDLL, count: int
) -> None:
    runner = filled(model, kernels)
    runner.state.codes.random_(0, runner.weights.codes)
    mine = runner.steps.told(runner.state, Batch(count))  # type: ignore[attr-defined]
    codes = runner.state.codes[:count].clone()
    theirs = forced_logits(plain(runner), runner.state, Batch(count), codes)
    torch.testing.assert_close(mine, theirs.transpose(0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 8, 12])
def test_the_backbone_reads_a_frame_as_pytorch_does(
    model: Any, kernels: ctypes.CDLL, count: int
) -> None:
    runner = filled(model, kernels)
    before = kept(runner)
    plain(runner).read_frame(runner.state, Batch(count), runner.state.length)
    theirs = kept(runner)
    restore(runner, before)
    runner.steps.read_frame(runner.state, Batch(count), runner.state.length)
    for mine, other in zip(kept(runner), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_greedy_codes_of_several_rows_are_those_of_generate(model: Any, library: Any) -> None:
    rows = Rows(model, 3)
    rows.runner.steps = NativeSteps(rows.runner.weights, rows.runner.state, library)
    rng = np.random.default_rng(1)
    prompts = [random_positions(model, rng, turns) for turns in (1, 2, 4)]
    for row, prompt in enumerate(prompts):
        rows.read(row, prompt, rng)
        rows.start(row)
    rows.runner.select(range(3))
    drawn = np.stack([rows.step(3) for _ in range(8)], axis=1)
    for mine, prompt in zip(drawn, prompts, strict=True):
        right = truth(model, prompt, 8)
        assert len(right) >= 4
        np.testing.assert_array_equal(mine[: len(right)], right)


def test_any_rows_in_any_order_are_computed_and_no_others_change(
    model: Any, library: ctypes.CDLL
) -> None:
    runner = filled(model, library)
    before = kept(runner)
    runner.select([7, 2, 9])
    together = runner.draw(3, 30).codes.copy()
    runner.advance(3, 200)
    after = kept(runner)
    others = [row for row in range(ROWS) if row not in (7, 2, 9)]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[others], new[others])
    for place, row in enumerate((7, 2, 9)):
        restore(runner, before)
        runner.select([row])
        np.testing.assert_array_equal(runner.draw(1, 30).codes[0], together[place])


@pytest.mark.parametrize("threads", [1, 3])
def test_an_utterance_is_the_same_to_the_last_bit_alone_and_beside_others(
    model: Any, library: ctypes.CDLL, threads: int
) -> None:
    runner = filled(model, library, threads=threads)
    before = kept(runner)
    runner.select(range(ROWS))
    codes = []
    for _ in range(3):
        codes.append(runner.draw(ROWS, 30).codes.copy())
        runner.advance(ROWS, 300)
    together = kept(runner)
    for row in (0, 5, ROWS - 1):
        restore(runner, before)
        runner.select([row])
        for frame in codes:
            np.testing.assert_array_equal(runner.draw(1, 30).codes[0], frame[row])
            runner.advance(1, 300)
        for mine, all_rows in zip(kept(runner), together, strict=True):
            assert torch.equal(mine[row], all_rows[row])


def test_codes_are_drawn_as_by_the_sampler(model: Any, kernels: ctypes.CDLL) -> None:
    runner = filled(model, kernels)
    codes = runner.weights.codes
    options = [(0.0, 5), (0.9, 1), (0.9, 2), (0.7, 50), (1.3, codes), (1e-7, 9), (0.9, 0)]
    rng = torch.Generator().manual_seed(2)
    drawn = set()
    for seed in range(30):
        for row, (temperature, top_k) in enumerate(options):
            runner.start(row, Draw((temperature, 0.9), (top_k, 5), seed=seed * 7919 + row))
            runner.state.sampling.frame[row] = seed
        logits = 3 * torch.randn(len(options), codes, generator=rng)
        logits[4, 3:40] = float("-inf")
        batch = Batch(len(options))
        sampler = Sampler(
            runner.state.sampling.of(batch), len(options), runner.weights.codebooks, codes, codes
        )
        right = sampler(logits, 0)
        mine, sound = runner.steps.draw_frame(
            runner.state, batch, codes, lambda _, given=logits: given
        )
        assert sound.all()
        assert mine[:, 0].tolist() == right.tolist()
        drawn.add(int(mine[4, 0]))
    assert len(drawn) > 5


def test_equal_logits_give_no_more_candidates_than_top_k(model: Any, library: ctypes.CDLL) -> None:
    runner = filled(model, library)
    logits = torch.zeros(1, runner.weights.codes)
    logits[0, 3] = 1.0
    found = set()
    for seed in range(200):
        runner.start(0, Draw((1.0, 0.0), (3, 1), seed))
        found.add(
            int(runner.steps.draw_frame(runner.state, Batch(1), 3, lambda _: logits)[0][0, 0])
        )
    assert found == {0, 1, 3}


@pytest.mark.parametrize("wrong", [float("nan"), -float("nan"), float("inf")])
def test_a_row_whose_logits_are_not_finite_is_reported_and_others_are_not(
    model: Any, library: ctypes.CDLL, wrong: float
) -> None:
    runner = filled(model, library)
    runner.select([4, 1])
    runner.state.hidden[1, 7] = wrong
    assert runner.draw(2, 30).sound.tolist() == [True, False]
    runner.state.hidden[1] = 0.0
    bare = torch.full((2, runner.weights.codes), float("-inf"))
    bare[0, 5] = 0.0
    frame = runner.draw(2, 30, lambda _: bare)
    assert frame.sound.tolist() == [True, False]
    assert frame.codes[0, 0] == 5


def test_a_row_that_ended_draws_the_end_frame(library: ctypes.CDLL) -> None:
    runner = Runner(small_model(4, codebooks=5, head_dim=32), 1, 64)
    weights = runner.weights
    assert weights.eos_code == 0
    for head in weights.depth_heads[:-1]:
        head.zero_()  # the first of equal logits is drawn: code 0
    own = NativeSteps(weights, runner.state, library)
    runner.start(0, Draw((0.0, 0.0), (1, 1), 0))
    only = torch.full((1, weights.codes), -5.0)
    only[0, 0] = 5.0
    codes, _ = own.draw_frame(runner.state, Batch(1), 0, lambda _: only)
    assert own.told(runner.state, Batch(1))[0, -1].argmax() != 0
    assert codes.tolist() == [[0] * 5]


@pytest.mark.parametrize(
    ("count", "most", "threads", "right"),
    [
        (1, 8, 2, [(0, 1)]),
        (7, 8, 2, [(0, 7)]),
        (8, 8, 2, [(0, 4), (4, 4)]),
        (9, 8, 1, [(0, 4), (4, 5)]),
        (24, 8, 2, [(0, 6), (6, 6), (12, 6), (18, 6)]),
        (16, 8, 64, [(0, 4), (4, 4), (8, 4), (12, 4)]),
    ],
)
def test_rows_are_shared_evenly_among_threads(
    count: int, most: int, threads: int, right: list[tuple[int, int]]
) -> None:
    assert shares(count, most, threads) == right


def test_streams_of_an_engine_that_come_and_go_are_those_of_generate(monkeypatch: Any) -> None:
    monkeypatch.setattr(selection, "no_slower", lambda *_: True)
    small = small_checkpoint(2, head_dim=32)
    hand = ByHand(small, slots=3, queue=9)
    assert isinstance(hand.runner.steps, NativeSteps)
    texts = ["One.", "Two of them.", "Three are more.", "Four", "And five.", "Six is enough."]
    heard = []
    for text in texts:
        heard.append(say(hand.engine, hand.engine.open(), text, max_seconds=1.2))
        for _ in range(4):
            hand.round()
    hand.engine.cancel(heard[3].id)
    hand.run()
    for one, text in zip(heard, texts, strict=True):
        if one is not heard[3]:
            assert_begins(alone(small, text, 15), one.codes)


def test_shaped_logits_may_have_another_precision_but_no_other_shape(
    model: Any, library: ctypes.CDLL
) -> None:
    runner = filled(model, library)
    runner.select([2])
    runner.start(2, Draw((0.0, 0.0), (1, 1), 0))
    for dtype in (torch.float64, torch.bfloat16):
        logits = torch.zeros(1, runner.weights.codes, dtype=dtype)
        logits[0, 9] = 1.0
        assert runner.draw(1, 0, lambda _, given=logits: given).codes[0, 0] == 9
    with pytest.raises(ValueError, match=r"logits of shape \(1, 3\)"):
        runner.draw(1, 0, lambda _: torch.zeros(1, 3))


def test_a_row_that_does_not_exist_is_an_error(model: Any, library: ctypes.CDLL) -> None:
    runner = filled(model, library)
    for rows in ([0, ROWS], [-1, 2]):
        with pytest.raises(IndexError):
            runner.steps.draw_frame(runner.state, Batch(2, torch.tensor(rows)), 0)


def test_a_full_context_is_read_to_its_last_position(model: Any, library: ctypes.CDLL) -> None:
    runner = filled(model, library)
    runner.state.position[:2] = torch.tensor([runner.state.context - 1, runner.state.context])
    before = kept(runner)
    plain(runner).read_frame(runner.state, Batch(2), runner.state.length)
    theirs = kept(runner)
    restore(runner, before)
    runner.steps.read_frame(runner.state, Batch(2), runner.state.length)
    torch.testing.assert_close(runner.state.hidden[0], theirs[1][0], rtol=1e-4, atol=1e-4)
    assert runner.state.hidden[1].isfinite().all()
    longer = Runner(model, 1, 1000)
    with pytest.raises(ValueError, match="no rotation for a context of"):
        NativeSteps(longer.weights, longer.state, library)


def test_a_wiped_row_holds_nothing_however_it_was_filled(model: Any, library: Any) -> None:
    runner = filled(model, library)
    runner.keep_voice("someone", 3, 9)
    runner.select([6, 3])
    for longest in range(300, 305):
        runner.draw(2, 30)
        runner.advance(2, longest)
    runner.swap(6, 11)
    assert runner.restore_voice("someone", 0) == 9
    for row in range(ROWS):
        runner.wipe(row)
    assert not any(tensor.any() for tensor in runner.state.tensors())


def test_a_row_that_was_never_selected_is_wiped_as_well(model: Any, library: Any) -> None:
    """As in the library's generator, which has one row."""
    runner = filled(model, library)
    for longest in range(300, 340):
        runner.draw(1, 30)
        runner.advance(1, longest)
    runner.wipe(0)
    assert not any(tensor[0].any() for tensor in runner.state.tensors())
