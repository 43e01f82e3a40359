"""Codes are sampled reproducibly from transformers' distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from csm_tts_plugin.engine import sampling as drawing
from csm_tts_plugin.engine.api import Sampling
from csm_tts_plugin.engine.defaults import SamplingDefaults
from csm_tts_plugin.engine.runner import Draw
from csm_tts_plugin.engine.sampling import Sampler, SamplingRows, gumbel, mixed, noise_keys
from tests.engine.tools import (
    ByHand,
    Rows,
    random_positions,
    say,
    small_checkpoint,
    started,
    truth,
)

VOCAB = 64
DRAWS = 60_000
WIDE = Draw((1.0, 0.8), (0, 12), 1234567890123)
"""Different parts, so that a mix-up is detected: codebook 0 from all codes, others from twelve."""


def rows_of(
    batch: int, temperature: float, top_k: int, *, seed: int = 7, frame: int = 0
) -> SamplingRows:
    """`batch` rows whose frames are `frame`, `frame` + 1 and so on: independent draws."""
    rows = SamplingRows.empty(batch, torch.device("cpu"))
    rows.temperature.fill_(temperature)
    rows.top_k.fill_(top_k)
    rows.seed.fill_(mixed(seed))
    rows.frame.copy_(torch.arange(frame, frame + batch))
    return rows


def fixed_logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(99)
    return 2.0 * torch.randn(VOCAB, generator=generator)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Standard deviations of chi-square above its expectation (Wilson-Hilferty)."""
    expected = probabilities * counts.sum()
    order = np.argsort(expected)
    # Cells with small expected counts are merged, as the test requires.
    small = order[np.cumsum(expected[order]) < 10]
    rest = np.setdiff1d(order, small)
    observed = np.append(counts[rest], counts[small].sum())
    wanted = np.append(expected[rest], expected[small].sum())
    keep = wanted > 0
    assert not observed[~keep].any()
    observed, wanted = observed[keep], wanted[keep]
    degrees = len(wanted) - 1
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    spread = 2.0 / (9.0 * degrees)
    return float(((statistic / degrees) ** (1 / 3) - (1 - spread)) / spread**0.5)


@pytest.mark.parametrize("codebook", [0, 3])
@pytest.mark.parametrize(
    ("temperature", "top_k"), [(1.0, VOCAB), (0.9, 50), (0.5, 20), (1.7, 8), (1.0, 1)]
)
def test_draws_follow_the_processors_of_transformers(temperature, top_k, codebook):
    logits = fixed_logits()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k)])
    wanted = torch.softmax(warpers(None, logits[None].clone())[0], dim=-1).numpy()
    sampler = Sampler(rows_of(DRAWS, temperature, top_k), DRAWS, 8, VOCAB, VOCAB)
    codes = sampler(logits.expand(DRAWS, VOCAB), codebook)
    counts = np.bincount(codes.numpy(), minlength=VOCAB)
    assert not counts[wanted == 0].any(), "a code outside of the top k was drawn"
    if top_k == 1:
        assert counts[int(logits.argmax())] == DRAWS
    else:
        # The seed is fixed: this passes either always or never.
        assert chi_square(counts, wanted) < 4.0


def test_the_comparison_is_sharp():
    logits = fixed_logits()
    sampler = Sampler(rows_of(DRAWS, 0.9, 50), DRAWS, 8, VOCAB, VOCAB)
    counts = np.bincount(sampler(logits.expand(DRAWS, VOCAB), 0).numpy(), minlength=VOCAB)
    slightly_off = torch.softmax(logits / 0.87, dim=-1).numpy()
    assert chi_square(counts, slightly_off) > 6.0


def test_part_of_the_candidates_is_enough_for_a_smaller_top_k():
    logits = fixed_logits().expand(500, VOCAB)
    few = Sampler(rows_of(500, 0.9, 10), 500, 8, VOCAB, 16)(logits, 2)
    all_of_them = Sampler(rows_of(500, 0.9, 10), 500, 8, VOCAB, VOCAB)(logits, 2)
    assert torch.equal(few, all_of_them)


# Noise


def uniform_noise(keys: torch.Tensor, candidates: int) -> np.ndarray:
    """Gumbel noise converted back to uniform numbers in (0, 1)."""
    index = torch.arange(candidates).expand(len(keys), -1)
    return torch.exp(-torch.exp(-gumbel(keys[:, None], index * drawing._CODE).double())).numpy()


@pytest.mark.parametrize("along", ["frames", "codebooks", "seeds", "candidates"])
def test_noise_is_uniform_and_uncorrelated_in_every_direction(along):
    count = 4096
    numbers = torch.arange(count)
    if along == "frames":
        keys = noise_keys(torch.full((count,), 5), numbers, 4)[:, 1]
    elif along == "seeds":
        seeds = torch.tensor([mixed(number) for number in range(count)])
        keys = noise_keys(seeds, torch.full((count,), 3), 4)[:, 2]
    elif along == "codebooks":
        keys = noise_keys(torch.tensor([17]), torch.tensor([4]), count)[0]
    else:
        keys = noise_keys(torch.tensor([17]), torch.tensor([4]), 1)[0]
    numbers_drawn = uniform_noise(keys, count if along == "candidates" else 8)
    values = np.sort(numbers_drawn.ravel())
    # Kolmogorov-Smirnov: 1.95 is exceeded by chance once in a thousand times, 2.5 never.
    steps = np.arange(1, len(values) + 1) / len(values)
    assert np.abs(values - steps).max() * len(values) ** 0.5 < 2.2
    flat = numbers_drawn.ravel() - 0.5
    for lag in (1, 2, 8, 64):
        correlation = np.mean(flat[:-lag] * flat[lag:]) * 12
        assert abs(correlation) * len(flat) ** 0.5 < 4.0


def test_noise_is_finite_at_both_ends(monkeypatch):
    """Infinite noise would select its code whatever the logits are."""
    for bits in (0, 0xFFFFFFFF):
        monkeypatch.setattr(drawing, "_scramble", lambda x, bits=bits: torch.full_like(x, bits))
        assert gumbel(torch.zeros(1, 1, dtype=torch.int64), torch.arange(4)).isfinite().all()


def test_large_seeds_and_small_ones_are_all_different():
    many = (0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**62, 2**63 - 1)
    seeds = torch.tensor([mixed(seed) for seed in many])
    keys = noise_keys(seeds, torch.zeros_like(seeds), 4)
    assert len(set(keys[:, 0].tolist())) == len(seeds)
    assert ((keys >= 0) & (keys < 2**32)).all()


# Rows


def prompts(checkpoint, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [random_positions(checkpoint.model, rng, 2) for _ in range(count)]


def test_an_utterance_is_the_same_alone_in_a_batch_of_16_and_elsewhere_in_it(small):
    rng = np.random.default_rng(0)
    texts = prompts(small, 16)
    alone = Rows(small.model, 1)
    alone.read(0, texts[0], rng)
    alone.start(0, WIDE)
    expected = np.stack([alone.step(1, VOCAB)[0] for _ in range(8)])
    assert len(np.unique(expected)) > 8
    for place in (0, 9, 15):
        rows = Rows(small.model, 16)
        for row in range(16):
            mine = row == place
            rows.read(row, texts[0] if mine else texts[row], rng)
            rows.start(row, WIDE if mine else Draw((1.2, 0.3), (30, 5), row))
        codes = np.stack([rows.step(16, VOCAB)[place] for _ in range(8)])
        np.testing.assert_array_equal(codes, expected)


def test_a_row_that_spoke_before_draws_as_a_new_one(small):
    rng = np.random.default_rng(0)
    (text,) = prompts(small, 1)
    rows, takes = Rows(small.model, 1), []
    for _ in range(2):
        rows.valid[0] = 0
        rows.read(0, text, rng)
        rows.start(0, WIDE)
        takes.append(np.stack([rows.step(1, VOCAB)[0] for _ in range(6)]))
    np.testing.assert_array_equal(*takes)


def test_a_greedy_row_stays_greedy_among_others_that_draw(small):
    rng = np.random.default_rng(0)
    texts = prompts(small, 3)
    rows = Rows(small.model, 3)
    for row, draw in enumerate((WIDE, Draw((0.0, 0.0), (50, 50), 1), WIDE)):
        rows.read(row, texts[row], rng)
        rows.start(row, draw)
    codes = np.stack([rows.step(3, VOCAB)[1] for _ in range(8)])
    np.testing.assert_array_equal(codes, truth(small.model, texts[1], 8))


def test_codebook_0_and_the_others_have_settings_of_their_own(small):
    """Greedy in one part and sampled in the other, and vice versa."""
    rng = np.random.default_rng(0)
    (text,) = prompts(small, 1)
    greedy = truth(small.model, text, 1)[0]
    rows = Rows(small.model, 2)
    firsts, depths = set(), set()
    for number in range(12):
        for row, temperature in enumerate(((0.0, 3.0), (3.0, 0.0))):
            rows.valid[row] = 0
            rows.read(row, text, rng)
            rows.start(row, Draw(temperature, (0, 0), number))
        codes = rows.step(2, VOCAB)
        assert codes[0, 0] == greedy[0]
        depths.add(codes[0, 1:].tobytes())
        firsts.add(int(codes[1, 0]))
    assert len(firsts) > 4
    assert len(depths) > 4


@pytest.mark.parametrize("draw", [Draw((0.0, 0.0), (1, 1), 0), Draw((4.0, 4.0), (0, 0), 3)])
def test_codes_that_the_codec_does_not_know_are_never_drawn(draw):
    checkpoint = small_checkpoint(8)
    model, codes = checkpoint.model, VOCAB
    with torch.no_grad():
        model.lm_head.weight[codes:] = 50.0 * model.lm_head.weight[:3]
        model.depth_decoder.codebooks_head.weight[:, :, codes:] *= 0
        model.depth_decoder.codebooks_head.weight[:, :, codes:] += 50.0
    rows = Rows(model, 4)
    rng = np.random.default_rng(1)
    for row, text in enumerate(prompts(checkpoint, 4)):
        rows.read(row, text, rng)
        rows.start(row, draw)
    drawn = np.stack([rows.step(4, draw.candidates(codes)) for _ in range(12)])
    assert drawn.min() >= 0
    assert drawn.max() < codes


# Through the engine


def spoken(checkpoint, sampling: Sampling | None, others: int = 0) -> np.ndarray:
    """One utterance of a new engine, alone or among others that join it."""
    hand = ByHand(checkpoint, slots=16, queue=4)
    for number in range(others):
        say(hand.engine, hand.engine.open(), f"Other {number}.", sampling=Sampling(1.1, 40, number))
        hand.round()
    heard = say(hand.engine, hand.engine.open(), "The same?", sampling=sampling, max_seconds=0.8)
    for number in range(others):
        say(hand.engine, hand.engine.open(), f"Late {number}.", sampling=Sampling(0.0))
        hand.round()
    while not heard.over:
        hand.round()
    return heard.codes


def test_a_seed_gives_the_same_utterance_alone_in_company_and_after_a_restart(small):
    drawn = Sampling(temperature=0.9, top_k=30, seed=2**40 + 5)
    alone = spoken(small, drawn)
    np.testing.assert_array_equal(spoken(small, drawn), alone)
    np.testing.assert_array_equal(spoken(small, drawn, others=7), alone)
    other_seed = Sampling(temperature=0.9, top_k=30, seed=2**40 + 6)
    assert not np.array_equal(spoken(small, other_seed), alone)


def test_without_a_seed_no_two_utterances_are_alike(small):
    drawn = Sampling(temperature=1.0)
    assert not np.array_equal(spoken(small, drawn), spoken(small, drawn))


def test_a_conversation_s_sampling_holds_where_a_sentence_has_none_of_its_own(small):
    engine = started(small, slots=2, queue=2)
    codes = []
    for where in ("open", "say"):
        mine = Sampling(1.0, 20, 77)
        conversation = engine.open(sampling=mine if where == "open" else None)
        heard = say(
            engine,
            conversation,
            sampling=mine if where == "say" else None,
            max_seconds=0.5,
        ).wait()
        codes.append(heard.codes)
    engine.stop()
    np.testing.assert_array_equal(*codes)


# Defaults


def test_defaults_are_those_of_the_two_generation_configs():
    model = small_checkpoint(1).model
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=33)
    model.depth_decoder.generation_config.update(do_sample=True, temperature=0.4, top_k=9)
    draw = SamplingDefaults.of(model).draw(None, None, 5)
    assert draw == Draw((0.7, 0.4), (33, 9), 5)


def test_what_is_asked_for_holds_for_all_codebooks_and_the_rest_stays():
    defaults = SamplingDefaults((0.7, 0.4), (33, 9))
    assert defaults.draw(0.2, None, 1) == Draw((0.2, 0.2), (33, 9), 1)
    assert defaults.draw(None, 4, 1) == Draw((0.7, 0.4), (4, 4), 1)


def test_a_part_that_does_not_sample_is_greedy():
    model = small_checkpoint(1).model
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=33)
    model.depth_decoder.generation_config.update(do_sample=False)
    draw = SamplingDefaults.of(model).draw(None, None, 5)
    assert draw.temperature == (0.7, 0.0)


def test_defaults_reach_what_is_spoken():
    checkpoint = small_checkpoint(2)
    checkpoint.model.generation_config.update(do_sample=True, temperature=0.7, top_k=33)
    checkpoint.model.depth_decoder.generation_config.update(
        do_sample=True, temperature=0.7, top_k=33
    )
    given = spoken(checkpoint, Sampling(0.7, 33, 9))
    np.testing.assert_array_equal(spoken(checkpoint, Sampling(seed=9)), given)
