"""Decoding in pieces gives the samples of one decode of the whole, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import MimiModel

from csm_tts_plugin.engine import mimi
from csm_tts_plugin.engine.codec_layers import Rows
from csm_tts_plugin.engine.mimi import MimiDecoder
from tests.support.models import small_mimi_config, small_model

TOLERANCE = 1e-4
"""Relative to the loudest sample, in float32."""

LONG = 40
"""Frames: several times the sliding window, which is 10 positions, two per frame."""


@torch.no_grad()
def awake(codec: MimiModel) -> MimiModel:
    """Initially attention adds almost nothing (layer scale 0.01): no mistake would be detected."""
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
    sound = torch.cat([decoder.decode(part[None], [0])[0] for part in parts])
    assert_same(sound, offline(codec, codes))


@pytest.mark.parametrize("device", ["host", "device"])
def test_chunks_of_any_rows_in_any_order_do_not_touch_each_other(codec, device, seed):
    """Each call decodes some rows, as their streams are due, with equally many frames. `device`: as
    in a captured graph, where rows and positions are tensors on the device."""
    rng = np.random.default_rng(seed)
    rows = 5
    decoder = MimiDecoder(codec, rows, max_frames=4)
    codes = [some_codes(codec, LONG, rng) for _ in range(rows)]
    heard: list[list[torch.Tensor]] = [[] for _ in range(rows)]
    for _ in range(4 * LONG):
        frames = int(rng.choice([1, 2, 4]))
        left = [row for row in range(rows) if LONG - decoder.frames[row] >= frames]
        if not left:
            continue
        some = rng.permutation(left)[: rng.integers(1, len(left) + 1)].tolist()
        at = [decoder.frames[row] for row in some]
        step = torch.stack([codes[row][:, a : a + frames] for row, a in zip(some, at, strict=True)])
        if device == "host":
            sounds = decoder.decode(step, some)
        else:
            starts = torch.tensor([decoder.begin(row) for row in some])
            with torch.no_grad():
                sounds = decoder(step, Rows(torch.tensor(some)), starts)
            decoder.count(some, frames)
        for row, sound in zip(some, sounds, strict=True):
            heard[row].append(sound)
    assert min(decoder.frames) >= LONG - 3
    for row in range(rows):
        # Causal: the audio so far is the beginning of the whole.
        sound = torch.cat(heard[row])
        assert_same(sound, offline(codec, codes[row])[: len(sound)])


@pytest.mark.parametrize("batch", [1, 3])
def test_the_last_layers_in_tiles_sound_as_without(codec, batch, monkeypatch, seed):
    codes = torch.stack([some_codes(codec, 8, np.random.default_rng(seed))] * batch)
    expected = offline(codec, codes[0])
    for tile in (1, 2, 3, 24):
        monkeypatch.setattr(mimi, "_TILE", tile)
        decoder = MimiDecoder(codec, batch)
        for sound in decoder.decode(codes, list(range(batch))):
            assert_same(sound, expected)


def test_transformers_own_decode_still_works_on_the_shared_weights():
    fresh, shared = awake(small_model(12).codec_model), awake(small_model(12).codec_model)
    shared.load_state_dict(fresh.state_dict())
    MimiDecoder(shared, rows=1)
    codes = some_codes(fresh, 6, np.random.default_rng(0))
    assert_same(offline(shared, codes), offline(fresh, codes))


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
        sound = decoder.decode(torch.stack([mine, other[:, frame]])[:, :, None], [0, 1])
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
    sound = torch.cat([decoder.decode(part[None], [0])[0] for part in parts])
    assert_same(sound, offline(codec, codes))


def test_decoding_each_chunk_alone_would_be_heard(codec, seed):
    """The comparison is strict: without state between chunks their joins differ."""
    codes = some_codes(codec, LONG, np.random.default_rng(seed))
    alone = torch.cat([offline(codec, part) for part in torch.split(codes, 8, dim=1)])
    whole = offline(codec, codes)
    assert (alone - whole).abs().max() > 100 * TOLERANCE * whole.abs().max()


def test_the_real_codec_of_csm_tiny_streams_without_a_seam(tiny, seed):
    codec = tiny.model.codec_model
    codes = some_codes(codec, 12, np.random.default_rng(seed))
    decoder = MimiDecoder(codec, rows=1)
    frames = (codes[None, :, frame : frame + 1] for frame in range(12))
    sound = torch.cat([decoder.decode(frame, [0])[0] for frame in frames])
    assert_same(sound, offline(codec, codes))
