"""The measurements of voices."""

import numpy as np
import pytest

from benchmarks.similarity import median_pitch

RATE = 24_000


def buzz(hertz: float, seconds: float) -> np.ndarray:
    """Harmonics of one pitch, as a voice has them."""
    time = np.arange(round(seconds * RATE)) / RATE
    return sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 9)).astype(np.float32)


@pytest.mark.parametrize("hertz", [95.0, 130.0, 220.0])
def test_the_median_pitch_is_that_of_what_is_voiced(hertz):
    noise = np.random.default_rng(1).normal(0, 0.3, RATE // 2).astype(np.float32)
    silence = np.zeros(RATE, np.float32)
    sound = np.concatenate([silence, buzz(hertz, 1.0), noise])
    assert median_pitch(sound, RATE) == pytest.approx(hertz, rel=0.03)
    assert median_pitch(0.01 * sound, RATE) == pytest.approx(hertz, rel=0.03)


def test_noise_has_no_pitch():
    noise = np.random.default_rng(1).normal(0, 0.3, RATE).astype(np.float32)
    assert np.isnan(median_pitch(noise, RATE))
