"""Chunked resampling equals one-shot resampling, and int16 clips instead of wrapping."""

from __future__ import annotations

import os

import numpy as np
import pytest

from csm_tts_plugin.audio.resample import StreamResampler, from_pcm16, to_pcm16
from csm_tts_plugin.errors import AudioError

SEED = int(os.environ.get("TEST_SEED", "20240611"))
LSB = 1.0 / 32_768.0
PAIRS = [
    (24_000, 8_000),
    (24_000, 16_000),
    (24_000, 24_000),
    (24_000, 48_000),
    (24_000, 44_100),
    (48_000, 24_000),
    (44_100, 24_000),
    (8_000, 24_000),
]


def resample(source: int, target: int, samples: np.ndarray) -> np.ndarray:
    stream = StreamResampler(source, target)
    return np.concatenate((stream.push(samples), stream.flush()))


def random_split(rng: np.random.Generator, length: int) -> list[int]:
    """Chunk lengths from single samples to frames, with empty ones among them."""
    sizes = rng.choice([0, 1, 2, 13, 239, 240, 241, 1_920, 4_000], size=4_000)
    ends = np.minimum(np.cumsum(sizes), length)
    return np.diff(ends[: int(np.searchsorted(ends, length)) + 1], prepend=0).tolist()


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_any_split_equals_one_shot_within_one_lsb(source, target):
    print("seed", SEED)
    rng = np.random.default_rng([SEED, source, target])
    samples = rng.uniform(-1, 1, source // 3 + 17).astype(np.float32)
    expected = resample(source, target, samples)
    assert len(expected) == -(-len(samples) * target // source)
    stream = StreamResampler(source, target)
    for _ in range(1_000):
        sizes = random_split(rng, len(samples))
        pieces = np.split(samples, np.cumsum(sizes)[:-1])
        got = np.concatenate([*(stream.push(piece) for piece in pieces), stream.flush()])
        assert got.shape == expected.shape
        assert np.isfinite(got).all()
        assert np.max(np.abs(got - expected)) <= LSB


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_no_more_than_ten_milliseconds_are_held_back(source, target):
    stream = StreamResampler(source, target)
    given = 0
    for received in range(source // 100, source, source // 100):
        given += len(stream.push(np.zeros(source // 100, dtype=np.float32)))
        assert received / source - given / target <= 0.010
    assert stream.delay <= 0.010


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_tone_keeps_its_level_and_its_time(source, target):
    tone = np.sin(2 * np.pi * 440 * np.arange(source) / source).astype(np.float32)
    got = resample(source, target, tone)
    times = np.arange(len(got)) / target
    inner = slice(target // 20, -target // 20)
    assert np.max(np.abs(got - np.sin(2 * np.pi * 440 * times))[inner]) < 2e-4


@pytest.mark.parametrize("target", [8_000, 16_000, 44_100, 48_000])
def test_a_constant_stays_constant(target):
    got = resample(24_000, target, np.full(24_000, 0.5, dtype=np.float32))
    assert np.max(np.abs(got - 0.5)[target // 50 : -target // 50]) < LSB


@pytest.mark.parametrize("target", [8_000, 16_000])
def test_tones_that_the_target_cannot_hold_vanish(target):
    frequency = target / 2 + 100
    tone = np.sin(2 * np.pi * frequency * np.arange(24_000) / 24_000).astype(np.float32)
    inner = resample(24_000, target, tone)[target // 20 : -target // 20]
    assert np.sqrt(2 * np.mean(inner**2)) < 10 ** (-80 / 20)


def test_reset_and_flush_leave_nothing_of_the_stream_before():
    loud = np.ones(5_000, dtype=np.float32)
    quiet = np.zeros(5_000, dtype=np.float32)
    stream = StreamResampler(24_000, 8_000)
    stream.push(loud)
    stream.reset()
    assert not stream.push(quiet).any()
    stream.reset()
    stream.push(loud)
    stream.flush()
    assert not np.concatenate((stream.push(quiet), stream.flush())).any()


def test_an_empty_stream_gives_nothing():
    stream = StreamResampler(24_000, 48_000)
    assert len(stream.flush()) == 0
    assert len(stream.push(np.zeros(0, dtype=np.float32))) == 0


@pytest.mark.parametrize("pair", [(0, 24_000), (24_000, -1), (24_000, 100), (23_999, 24_000)])
def test_a_hopeless_pair_of_rates_is_refused(pair):
    with pytest.raises(AudioError, match="Cannot resample"):
        StreamResampler(*pair)


def test_pcm_clips_and_never_wraps():
    loud = np.array([-9.0, -1.0, 0.0, 1.0, 1.0001, 9.0, np.inf, np.nan], dtype=np.float32)
    got = np.frombuffer(to_pcm16(loud), dtype="<i2")
    assert got.tolist() == [-32_768, -32_768, 0, 32_767, 32_767, 32_767, 32_767, 0]


def test_pcm_goes_there_and_back():
    samples = np.linspace(-1, 1, 999, dtype=np.float32)
    assert np.max(np.abs(from_pcm16(to_pcm16(samples)) - samples)) <= LSB
    every = np.arange(-32_768, 32_768, dtype="<i2").tobytes()
    assert to_pcm16(from_pcm16(every)) == every
    with pytest.raises(AudioError, match="odd number"):
        from_pcm16(b"abc")
