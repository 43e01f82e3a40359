"""Measurements of a recording: who speaks when, and gaps that late audio left."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile

from csm_tts_plugin.engine.loading import TINY_FOLDER
from scripts import call_sound, pins
from scripts.setup_tools import ROOT, TOOLS

RATE = 24_000


def tone(seconds: float, level: float = 0.1) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 220 * np.arange(int(seconds * RATE)) / RATE)).astype("f4")


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.float32)


def human() -> np.ndarray:
    """A recording of LibriVox at 24 kHz."""
    import soxr

    name = f"{pins.SPEECH[0].name}.wav"
    sound, rate = soundfile.read(TOOLS / pins.SPEECH_FOLDER / name, dtype="float32")
    return soxr.resample(sound, rate, RATE)


def through_opus(sound: np.ndarray) -> np.ndarray:
    """Encoded and decoded as in a call: cuts are smeared, silence fades."""
    import soxr

    packed = io.BytesIO()
    with av.open(packed, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono", bit_rate=32_000)
        pcm = (np.clip(soxr.resample(sound, RATE, 48_000), -1, 1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = 48_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    packed.seek(0)
    decoded, rate = soundfile.read(packed, dtype="float32")
    return soxr.resample(decoded, rate, RATE).astype(np.float32)


def test_speech_begins_and_ends_where_it_is_loud():
    side = np.concatenate([silence(1.0), tone(0.5), silence(0.3), tone(0.2), silence(1.0)])
    activity = call_sound.loud(side, RATE)
    assert call_sound.first_loud(activity, 0.0, 3.0) == pytest.approx(1.0, abs=0.011)
    assert call_sound.last_loud(activity, 0.0, 3.0) == pytest.approx(2.0, abs=0.011)
    assert call_sound.first_loud(activity, 1.6, 3.0) == pytest.approx(1.8, abs=0.011)


def test_silence_has_neither_begin_nor_end():
    activity = call_sound.loud(silence(1.0), RATE)
    assert call_sound.first_loud(activity, 0.0, 1.0) is None
    assert call_sound.last_loud(activity, 0.0, 1.0) is None


def test_human_speech_has_no_gaps_though_it_has_pauses():
    assert call_sound.cuts(through_opus(human()), RATE) == []


SPOKEN = [*(ROOT / "docs" / "samples").glob("*.wav"), TINY_FOLDER / "stock.wav"]


@pytest.mark.parametrize("file", SPOKEN, ids=lambda file: file.stem)
def test_the_even_pauses_of_tiny_are_no_gaps(file):
    sound, _ = soundfile.read(file, dtype="float32")
    assert call_sound.cuts(sound, RATE) == []
    assert call_sound.cuts(through_opus(sound), RATE) == []


# fmt: off
CONSONANTS = [
    [
     -28.1, -29.7, -28.6, -32.0, -31.2, -29.6, -29.1, -33.2, -32.8, -33.5,
     -34.3, -35.1, -35.6, -35.7, -34.2, -33.5, -32.6, -32.4, -31.3, -32.2,
     -32.6, -30.8, -25.6, -25.5, -28.9, -28.8, -31.3, -32.7,
    ],
    [
     -26.2, -29.3, -32.0, -30.3, -31.2, -27.4, -33.3, -32.6, -32.8, -34.6,
     -35.6, -37.2, -38.8, -40.0, -42.4, -40.8, -39.5, -38.3, -36.9, -42.7,
     -29.1, -27.0, -25.9, -25.1, -23.6, -26.8, -29.6, -29.2,
    ],
]
# fmt: on


@pytest.mark.parametrize("levels", CONSONANTS, ids=["fades little", "swells"])
def test_a_consonant_that_fades_little_or_swells_again_is_no_gap(levels):
    """Two consonants in calls with `tiny`, as levels in dB every 5 ms."""
    noise = np.random.default_rng(1).normal(size=(len(levels), RATE // 200))
    noise /= np.sqrt(np.mean(noise**2, axis=1, keepdims=True))
    sound = noise * 10 ** (np.array(levels)[:, None] / 20)
    assert call_sound.cuts(sound.ravel().astype(np.float32), RATE) == []


@pytest.mark.parametrize("seconds", [0.08, 0.2, 0.35])
def test_most_gaps_in_human_speech_are_found_where_they_are(seconds):
    speech = human()
    loud = np.flatnonzero(call_sound.loud(speech, RATE))
    places = loud[np.linspace(30, len(loud) - 30, 9).astype(int)] * RATE // 100
    found = 0
    for place in places:
        cut = np.concatenate([speech[:place], silence(seconds), speech[place:]])
        gaps = call_sound.cuts(through_opus(cut), RATE)
        found += any(abs(begin - place / RATE) < 0.1 for begin, _ in gaps)
    assert found >= 7


def test_nothing_is_found_in_nothing():
    assert call_sound.cuts(silence(0.0), RATE) == []
    assert call_sound.cuts(silence(2.0), RATE) == []
