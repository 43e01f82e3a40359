"""Samples as NumPy, torch, torchaudio and datasets hand them over."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from csm_tts_plugin.audio.arrays import read_array, samples_of
from csm_tts_plugin.audio.reference import to_reference
from csm_tts_plugin.audio.resample import to_float32
from csm_tts_plugin.errors import AudioError
from tests.audio.test_audio_reference import tone

TONE = tone()
STEREO = np.stack((TONE, TONE), axis=1)


class Decoder:
    """As `datasets` gives audio since its version 4, by torchcodec."""

    def get_all_samples(self):
        return SimpleNamespace(data=torch.from_numpy(TONE)[None], sample_rate=24_000)


GIVEN = {
    "int16": (TONE * 32767).astype(np.int16),
    "int32": (TONE.astype(np.float64) * (2**31 - 1)).astype(np.int32),
    "int8": (TONE * 127).astype(np.int8),
    "uint8": (TONE * 127 + 128).astype(np.uint8),
    "float64": TONE.astype(np.float64),
    "float16": TONE.astype(np.float16),
    "a list": TONE.tolist(),
    "[1, n]": TONE[None],
    "[1, 1, n]": TONE[None, None],
    "[n, 1]": TONE[:, None],
    "[n, 2]": STEREO,
    "[2, n]": STEREO.T,
    "tensor": torch.from_numpy(TONE),
    "tensor [1, n]": torch.from_numpy(TONE)[None],
    "bfloat16": torch.from_numpy(TONE).bfloat16(),
    "half": torch.from_numpy(TONE).half(),
    "requires grad": torch.from_numpy(TONE.copy()).requires_grad_(),
    "int16 tensor": torch.from_numpy((TONE * 32767).astype(np.int16))[None],
    "{array, sampling_rate}": {"array": TONE, "sampling_rate": 24_000, "path": None},
    "{array} of int16": {"array": (TONE * 32767).astype(np.int16), "sampling_rate": 24_000},
    "a decoder": Decoder(),
    "not contiguous": np.repeat(TONE, 2)[::2],
}


@pytest.mark.parametrize("name", GIVEN)
def test_they_are_all_the_same_sound(name):
    got = samples_of(GIVEN[name])
    assert (got.dtype, got.shape) == (np.float32, (24_000,))
    assert got.flags.c_contiguous
    assert np.max(np.abs(got - TONE)[500:-500]) < (0.02 if name in ("int8", "uint8") else 0.005)


def test_the_rate_that_comes_along_counts():
    got = samples_of({"array": tone(16_000), "sampling_rate": 16_000})
    assert len(got) == 24_000
    assert np.max(np.abs(got - TONE)[500:-500]) < 1e-3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (TONE * 32767.0, "not scaled"),
        (torch.from_numpy(TONE) * 100, "not scaled"),
        (np.full(24_000, np.nan, "f4"), "NaN"),
        (TONE.astype(np.int64), "int64"),
        (TONE.astype(np.uint16), "uint16"),
        (TONE.astype(complex), "complex"),
        (TONE > 0, "bool"),
        (["a", "b"], "type"),
        ([[1.0], [1.0, 2.0]], "samples"),
        (np.zeros((20, 20), "f4"), r"\[20, 20\]"),
        (np.zeros((3, 4, 5), "f4"), r"\[3, 4, 5\]"),
        (np.float32(0.5), "shape"),
        ({"sampling_rate": 24_000}, "array"),
        ({"array": TONE, "sampling_rate": 0}, "sampling_rate"),
        ({"array": TONE, "sampling_rate": 24_000.5}, "sampling_rate"),
        ({"array": TONE, "sampling_rate": 4_000}, "4000 Hz"),
    ],
)
def test_what_is_no_sound_is_refused_with_its_cause(given, words):
    with pytest.raises(AudioError, match=words) as caught:
        samples_of(given)
    assert "\n" not in str(caught.value)


def test_a_little_too_loud_is_clipped():
    assert np.max(np.abs(samples_of(3 * TONE))) == 1.0


def test_references_and_turns_take_them_too():
    for given in (GIVEN["int16"], GIVEN["tensor [1, n]"], GIVEN["[2, n]"]):
        assert np.max(np.abs(to_reference(given, 24_000) - TONE)[500:-500]) < 0.005
    assert np.max(np.abs(to_float32(GIVEN["int32"]) - TONE)) < 1e-3
    with pytest.raises(AudioError, match="int64"):
        to_float32(np.zeros(10, np.int64))


def test_channels_first_and_last_are_told_apart_by_their_size():
    assert read_array(STEREO)[0].shape == read_array(STEREO.T)[0].shape == (24_000, 2)
    assert read_array(np.zeros((5, 2), "f4"))[0].shape == (5, 2)
