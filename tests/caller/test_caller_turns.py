"""The buffer of the caller's recent audio, and the turns cut out of it."""

from __future__ import annotations

import numpy as np
import pytest

from csm_tts_plugin.caller.turns import TurnRecorder, spoken

RATE = 16_000


def speech(seconds: float, level: float = 0.2) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * 150 * time)).astype(np.float32)


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.float32)


def test_a_turn_is_cut_without_the_silence_around_it():
    recorder = TurnRecorder()
    recorder.push(pcm(silence(3.0)), RATE)
    recorder.push(pcm(speech(0.2)), RATE)
    recorder.speech_began()  # voice activity detection is always late
    recorder.push(pcm(speech(1.8)), RATE)
    recorder.push(pcm(silence(1.0)), RATE)
    cut = recorder.cut()
    assert cut.rate == RATE
    assert cut.begin == pytest.approx(2.9, abs=0.05)
    assert cut.seconds == pytest.approx(2.2, abs=0.05)


@pytest.mark.parametrize("late_s", [1.0, 2.5, 4.0])
def test_a_turn_begins_where_its_speech_does_however_late_that_was_reported(late_s):
    """A busy machine detects speech seconds after it has arrived."""
    recorder = TurnRecorder()
    recorder.push(pcm(silence(3.0)), RATE)
    recorder.push(pcm(speech(late_s)), RATE)
    recorder.speech_began()
    recorder.push(pcm(speech(1.0)), RATE)
    recorder.push(pcm(silence(1.0)), RATE)
    cut = recorder.cut()
    assert cut.seconds == pytest.approx(late_s + 1.0 + 0.2, abs=0.05)
    assert cut.begin == pytest.approx(2.9, abs=0.05)


def test_a_turn_whose_words_are_known_was_spoken_whether_that_was_reported_or_not():
    recorder = TurnRecorder()
    recorder.push(pcm(speech(1.0)), RATE)
    recorder.speech_began()
    assert recorder.cut(said=True) is not None
    recorder.push(pcm(silence(1.0)), RATE)
    recorder.push(pcm(speech(2.0)), RATE)
    assert recorder.cut(said=True).seconds == pytest.approx(2.1, abs=0.05)
    assert recorder.cut(said=True) is None


def test_the_noise_of_a_line_is_no_part_of_a_late_turn():
    rng = np.random.default_rng(1)
    hum = (0.02 * rng.standard_normal(int(10 * RATE))).astype(np.float32)
    recorder = TurnRecorder()
    recorder.push(pcm(hum), RATE)
    recorder.push(pcm(speech(0.5)), RATE)
    recorder.speech_began()
    recorder.push(pcm(speech(1.0)), RATE)
    assert recorder.cut().seconds < 3.0


def test_a_turn_holds_nothing_of_the_turn_before():
    recorder = TurnRecorder()
    recorder.speech_began()
    recorder.push(pcm(speech(1.0)), RATE)
    assert recorder.cut() is not None
    assert recorder.cut() is None
    recorder.push(pcm(silence(2.0)), RATE)
    recorder.speech_began()
    recorder.push(pcm(speech(0.5)), RATE)
    assert recorder.cut().seconds == pytest.approx(0.6, abs=0.05)


def test_a_caller_who_never_stops_is_remembered_for_a_minute_only():
    recorder = TurnRecorder(keep_s=2.0)
    recorder.speech_began()
    for _ in range(50):
        recorder.push(pcm(speech(0.1)), RATE)
    assert recorder.cut().seconds == pytest.approx(2.0, abs=0.05)


def test_silence_trims_to_nothing():
    for seconds in (1.0, 0.0):
        begin, end = spoken(silence(seconds), RATE)
        assert begin == end


def test_what_was_forgotten_is_not_cut_and_the_clock_goes_on():
    recorder = TurnRecorder()
    recorder.speech_began()
    recorder.push(pcm(speech(1.0)), RATE)
    recorder.forget()
    assert recorder.cut() is None
    recorder.speech_began()
    recorder.push(pcm(silence(0.5)), RATE)
    recorder.push(pcm(speech(1.0)), RATE)
    cut = recorder.cut()
    assert cut.seconds == pytest.approx(1.1, abs=0.05)
    assert cut.begin == pytest.approx(1.4, abs=0.05)
