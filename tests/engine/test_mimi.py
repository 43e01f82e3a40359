"""Decoding a piece at a time gives the samples of one decode of the whole, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import MimiModel

from csm_tts_plugin.engine.mimi import MimiDecoder
from tests.support.models import small_mimi_config, small_model

TOLERANCE = 1e-4
"""Of the loudest sample, in float32."""

LONG = 40
"""Frames: several times the sliding window, which is 10 positions at two a frame."""


@torch.no_grad()
def awake(codec: MimiModel) -> MimiModel:
    """As initialised, attention adds a hundredth of next to nothing: no mistake would show."""
    for name, parameter in codec.named_parameters():
        if "layer_scale" in name:
            parameter.fill_(1.0)
        elif "transformer" in name and parameter.dim() > 1:
            parameter.normal_(0.0, 2.0 * parameter.shape[-1] ** -0.5)
    return codec


@pytest.fixture(scope="module")
def codec():
    return awake(small_model(11).codec_model)


@torch.no_grad()
def offline(codec: MimiModel, codes: torch.Tensor) -> torch.Tensor:
    """transformers' own decode: codes [K, T] -> samples [T * 1920]"""
    return codec.decode(codes[None]).audio_values[0, 0]


def some_codes(codec: MimiModel, frames: int, rng: np.random.Generator) -> torch.Tensor:
    shape = (codec.config.num_quantizers, frames)
    return torch.from_numpy(rng.integers(0, codec.config.codebook_size, shape))


def assert_same(sound: torch.Tensor, expected: torch.Tensor) -> None:
    assert sound.shape == expected.shape
    amplitude = expected.abs().max().item()
    assert amplitude > 0
    assert (sound - expected).abs().max().item() <= TOLERANCE * amplitude


def pieces(frames: int, most: int, rng: np.random.Generator) -> list[int]:
    sizes = []
    while frames:
        sizes.append(min(frames, int(rng.integers(1, most + 1))))
        frames -= sizes[-1]
    return sizes


@pytest.mark.parametrize("most", [1, 2, 7])
def test_any_split_equals_one_decode_of_the_whole(codec, most, seed):
    rng = np.random.default_rng(seed)
    decoder = MimiDecoder(codec, rows=1, max_frames=most)
    codes = some_codes(codec, LONG, rng)
    parts = torch.split(codes, pieces(LONG, most, rng), dim=1)
    sound = torch.cat([decoder(part[None])[0] for part in parts])
    assert_same(sound, offline(codec, codes))


def test_rows_of_different_ages_do_not_touch_each_other(codec, seed):
    """Each step takes a random number of the first rows, as when streams join and leave."""
    rng = np.random.default_rng(seed)
    rows = 4
    decoder = MimiDecoder(codec, rows)
    codes = [some_codes(codec, LONG, rng) for _ in range(rows)]
    heard: list[list[torch.Tensor]] = [[] for _ in range(rows)]
    for _ in range(LONG):
        batch = int(rng.integers(1, rows + 1))
        step = torch.stack([codes[row][:, len(heard[row])] for row in range(batch)])
        for row, sound in enumerate(decoder(step[:, :, None])):
            heard[row].append(sound)
    assert len({len(row) for row in heard}) > 1, "the ages must differ"
    for row in range(rows):
        if heard[row]:
            # Causal: what was heard so far is the beginning of the whole.
            sound = torch.cat(heard[row])
            assert_same(sound, offline(codec, codes[row])[: len(sound)])


def test_swapped_rows_go_on_where_they_were(codec, seed):
    rng = np.random.default_rng(seed)
    decoder = MimiDecoder(codec, rows=3)
    codes = [some_codes(codec, LONG, rng) for _ in range(3)]
    place = [0, 1, 2]
    heard: list[list[torch.Tensor]] = [[], [], []]
    for frame in range(LONG):
        if rng.random() < 0.3:
            a, b = (int(row) for row in rng.choice(3, 2, replace=False))
            decoder.swap(a, b)
            place[a], place[b] = place[b], place[a]
        step = torch.stack([codes[stream][:, frame] for stream in place])
        for stream, sound in zip(place, decoder(step[:, :, None]), strict=True):
            heard[stream].append(sound)
    for stream in range(3):
        assert_same(torch.cat(heard[stream]), offline(codec, codes[stream]))


def test_a_row_that_was_reset_begins_from_silence_and_others_go_on(codec, seed):
    rng = np.random.default_rng(seed)
    decoder = MimiDecoder(codec, rows=2)
    old, new, other = (some_codes(codec, LONG, rng) for _ in range(3))
    first, second, beside = [], [], []
    cut = int(rng.integers(3, LONG - 3))
    for frame in range(LONG):
        if frame == cut:
            decoder.reset(0)
        mine = old[:, frame] if frame < cut else new[:, frame - cut]
        sound = decoder(torch.stack([mine, other[:, frame]])[:, :, None])
        (first if frame < cut else second).append(sound[0])
        beside.append(sound[1])
    assert_same(torch.cat(second), offline(codec, new[:, : LONG - cut]))
    assert_same(torch.cat(beside), offline(codec, other))


def test_key_heads_that_serve_several_query_heads(seed):
    config = small_mimi_config()
    config.num_attention_heads, config.num_key_value_heads = 4, 2
    config.head_dim = config.hidden_size // 4
    torch.manual_seed(5)
    codec = awake(MimiModel(config).eval())
    rng = np.random.default_rng(seed)
    codes = some_codes(codec, LONG, rng)
    decoder = MimiDecoder(codec, rows=1, max_frames=3)
    parts = torch.split(codes, pieces(LONG, 3, rng), dim=1)
    sound = torch.cat([decoder(part[None])[0] for part in parts])
    assert_same(sound, offline(codec, codes))


def test_decoding_each_chunk_alone_would_be_heard(codec, seed):
    """The comparison is sharp: without memory between chunks there is a seam."""
    codes = some_codes(codec, LONG, np.random.default_rng(seed))
    alone = torch.cat([offline(codec, part) for part in torch.split(codes, 8, dim=1)])
    whole = offline(codec, codes)
    assert (alone - whole).abs().max() > 100 * TOLERANCE * whole.abs().max()


def test_the_real_codec_of_csm_tiny_streams_without_a_seam(tiny, seed):
    codec = tiny.model.codec_model
    codes = some_codes(codec, 12, np.random.default_rng(seed))
    decoder = MimiDecoder(codec, rows=1)
    sound = torch.cat([decoder(codes[None, :, frame : frame + 1])[0] for frame in range(12)])
    assert_same(sound, offline(codec, codes))
