"""The caller's sound of late, and the turns cut out of it."""

from __future__ import annotations

import numpy as np
import pytest

from csm_tts_plugin.ear import CallerEar, spoken

RATE = 16_000


def speech(seconds: float, level: float = 0.2) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * 150 * time)).astype(np.float32)


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.float32)


def test_a_turn_is_cut_without_the_silence_around_it():
    ear = CallerEar()
    ear.push(pcm(silence(3.0)), RATE)
    ear.push(pcm(speech(0.2)), RATE)
    ear.speech_began()  # voice activity is always late
    ear.push(pcm(speech(1.8)), RATE)
    ear.push(pcm(silence(1.0)), RATE)
    cut = ear.cut()
    assert cut.rate == RATE
    assert cut.begin == pytest.approx(2.9, abs=0.05)
    assert cut.seconds == pytest.approx(2.2, abs=0.05)


def test_a_turn_holds_nothing_of_the_turn_before():
    ear = CallerEar()
    ear.speech_began()
    ear.push(pcm(speech(1.0)), RATE)
    assert ear.cut() is not None
    assert ear.cut() is None
    ear.push(pcm(silence(2.0)), RATE)
    ear.speech_began()
    ear.push(pcm(speech(0.5)), RATE)
    assert ear.cut().seconds == pytest.approx(0.6, abs=0.05)


def test_a_caller_who_never_stops_is_remembered_for_a_minute_only():
    ear = CallerEar(keep_s=2.0)
    ear.speech_began()
    for _ in range(50):
        ear.push(pcm(speech(0.1)), RATE)
    assert ear.cut().seconds == pytest.approx(2.0, abs=0.05)


def test_silence_trims_to_nothing():
    for seconds in (1.0, 0.0):
        begin, end = spoken(silence(seconds), RATE)
        assert begin == end


def test_what_was_forgotten_is_not_cut_and_the_clock_goes_on():
    ear = CallerEar()
    ear.speech_began()
    ear.push(pcm(speech(1.0)), RATE)
    ear.forget()
    assert ear.cut() is None
    ear.speech_began()
    ear.push(pcm(silence(0.5)), RATE)
    ear.push(pcm(speech(1.0)), RATE)
    cut = ear.cut()
    assert cut.seconds == pytest.approx(1.1, abs=0.05)
    assert cut.begin == pytest.approx(1.4, abs=0.05)
