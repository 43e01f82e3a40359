"""Real recorded speech from `make setup`, and degraded versions of it."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from csm_tts_plugin.voices.choose import HeardTurn
from scripts import pins
from scripts.setup_tools import TOOLS

RATE = 16_000
READER = [recording.name for recording in pins.SPEECH]
"""Five sentences of one man, a LibriVox reader."""
SPEAKERS = [recording.name for recording in pins.SPEAKERS]
"""Short recordings of two other men."""
_PROMPTS = [recording for part in pins.PROMPTS.values() for recording in part]
WOMEN = ["allison_busy", "june_nogo"]
"""One recording each of two women; the second speaks French."""
PEOPLE = [READER[0], "numbers", "cards", *WOMEN]
"""One recording each of five people."""


def path_of(name: str) -> Path:
    folder = pins.SPEECH_FOLDER if name in READER else pins.SPEAKERS_FOLDER
    if name in {recording.name for recording in _PROMPTS}:
        folder = pins.PROMPTS_FOLDER
    path = TOOLS / folder / f"{name}.wav"
    if not path.is_file():
        where = "; that one comes from Debian alone" if folder == pins.PROMPTS_FOLDER else ""
        pytest.skip(f"the recording {path.name} is not here: run `make setup`{where}")
    return path


def words_of(name: str) -> str:
    known = (*pins.SPEECH, *pins.SPEAKERS, *_PROMPTS)
    return next(recording.words for recording in known if recording.name == name)


def heard(name: str, rate: int = RATE) -> HeardTurn:
    samples, _ = soundfile.read(path_of(name), dtype="float32")
    return HeardTurn(words_of(name), soxr.resample(samples, RATE, rate), rate)


def noise(samples: np.ndarray, snr_db: float) -> np.ndarray:
    """White noise `snr_db` below the level of the whole sound, the same for the same sound."""
    rng = np.random.default_rng(zlib.crc32(samples.tobytes()))
    loudness = float(np.sqrt(np.mean(samples**2))) * 10 ** (-snr_db / 20)
    return (loudness * rng.standard_normal(len(samples))).astype(np.float32)


def whispered(samples: np.ndarray, width: int = 512, hop: int = 128) -> np.ndarray:
    """The same sound, excited by noise instead of vocal folds: each frame's smooth spectrum."""
    rng, window = np.random.default_rng(0), np.hanning(width)
    result = np.zeros(len(samples) + width)
    for at in range(0, len(samples) - width, hop):
        spectrum = np.abs(np.fft.rfft(samples[at : at + width] * window))
        cepstrum = np.fft.irfft(np.log(spectrum + 1e-6))
        cepstrum[20:-20] = 0.0
        envelope = np.exp(np.fft.rfft(cepstrum).real)
        excitation = np.fft.rfft(rng.standard_normal(width) * window)
        result[at : at + width] += np.fft.irfft(envelope * excitation) * window / 10
    return result[: len(samples)].astype(np.float32)


def higher(samples: np.ndarray, factor: float = 1.75) -> np.ndarray:
    """A smaller speaker: higher pitch, shorter vocal tract, faster speech."""
    return soxr.resample(samples, RATE * factor, RATE).astype(np.float32)


def together(*sounds: np.ndarray) -> np.ndarray:
    """All at once, equally loud, as long as the shortest."""
    length = min(map(len, sounds))
    return np.sum([0.05 * s[:length] / s.std() for s in sounds], axis=0).astype(np.float32)


def in_turn(*sounds: np.ndarray) -> np.ndarray:
    """One after the other, equally loud."""
    return np.concatenate([0.05 * s / s.std() for s in sounds]).astype(np.float32)
