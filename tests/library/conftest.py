"""Generators and inputs for the library's tests."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from csm_tts_plugin.library.generator import Generator, load_csm_1b
from tests.engine.tools import noise, small_checkpoint
from tests.library.speaking import inputs_of, turn

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small():
    """A random model that hardly ever ends by itself."""
    return small_checkpoint(3)


@pytest.fixture(scope="session")
def speaker(small):
    """The library's generator, with a model that hardly ever ends by itself."""
    return Generator(small.model, small.processor, "cpu")


@pytest.fixture(scope="session")
def tiny_speaker():
    return load_csm_1b("tiny")


@pytest.fixture(scope="session")
def inputs(small):
    """What the processor makes of two references of odd lengths, then a text."""
    return inputs_of(
        small,
        turn("first words", noise(0.71, 1)),
        turn("other words", noise(1.13, 2), "1"),
        turn("say this"),
    )


@pytest.fixture(scope="session")
def words(small):
    """A text alone."""
    return inputs_of(small, turn("say this"))


@pytest.fixture
def wav(tmp_path):
    """A reference at another rate, in stereo."""
    path = tmp_path / "reference1.wav"
    soundfile.write(path, np.stack([noise(2.0, 5)] * 2, axis=1), 32_000)
    return path
