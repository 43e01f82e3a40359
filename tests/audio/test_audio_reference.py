"""Recordings from users: valid ones are read, others refused in one line, all within limits."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from csm_tts_plugin.audio.reference import (
    decode_reference,
    encode_wav,
    load_reference,
    to_reference,
)
from csm_tts_plugin.config import SAMPLE_RATE, Limits
from csm_tts_plugin.errors import AudioError

SEED = int(os.environ.get("TEST_SEED", "20240611"))


def tone(rate: int = SAMPLE_RATE, seconds: float = 1.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 300 * np.arange(int(rate * seconds)) / rate)).astype("f4")


def encoded(samples: np.ndarray, rate: int, kind: str, subtype: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 44_100),
        ("WAV", "PCM_24", 48_000),
        ("WAV", "FLOAT", 8_000),
        ("WAV", "ULAW", 8_000),
        ("FLAC", "PCM_16", 22_050),
        ("OGG", "VORBIS", 32_000),
        ("OGG", "OPUS", 48_000),
    ],
)
def test_common_files_come_out_as_mono_at_24_khz(kind, subtype, rate):
    got = decode_reference(encoded(tone(rate), rate, kind, subtype))
    assert got.dtype == np.float32
    assert len(got) == SAMPLE_RATE
    assert np.max(np.abs(got - tone())[1_000:-1_000]) < 0.05


def test_channels_are_mixed():
    stereo = np.stack((tone(), np.zeros(SAMPLE_RATE, dtype="f4")), axis=1)
    got = decode_reference(encoded(stereo, SAMPLE_RATE, "WAV", "FLOAT"))
    assert np.max(np.abs(got - tone() / 2)) < 1e-4


def test_what_we_encode_we_read():
    once = encode_wav(tone())
    assert np.max(np.abs(decode_reference(once) - tone())) < 1e-4
    assert encode_wav(decode_reference(once)) == once


BAD = {
    "empty": (b"", "not a WAV"),
    "mp3": (b"ID3\x04" + bytes(500), "not a WAV"),
    "cut header": (encode_wav(tone())[:30], "cannot be decoded"),
    "flac of nothing": (b"fLaC" + bytes(200), "cannot be decoded"),
    "too short": (encode_wav(tone(seconds=0.2)), "less than 0.5 s"),
    "too long": (encode_wav(tone(8_000, seconds=61), 8_000), "more than 60 s"),
    "silent": (encode_wav(tone(level=0.001)), "silent"),
    "silent but for DC": (encode_wav(np.full(SAMPLE_RATE, 0.3, "f4")), "silent"),
    "slow": (encoded(tone(4_000), 4_000, "WAV", "PCM_16"), "4000 Hz"),
    "many channels": (encoded(np.zeros((9_000, 9)), 8_000, "WAV", "PCM_16"), "9 channels"),
    "NaN": (encoded(np.full(24_000, np.nan, "f4"), 24_000, "WAV", "FLOAT"), "NaN"),
    "infinite": (encoded(np.full(24_000, np.inf, "f4"), 24_000, "WAV", "FLOAT"), "NaN or infinite"),
    "not scaled": (encoded(tone() * 30_000, 24_000, "WAV", "FLOAT"), "not scaled"),
}


@pytest.mark.parametrize(("data", "cause"), BAD.values(), ids=BAD.keys())
def test_a_bad_recording_is_refused_with_its_cause_in_one_line(data, cause):
    with pytest.raises(AudioError, match=cause) as caught:
        decode_reference(data)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_file_over_the_limit_is_not_even_opened():
    with pytest.raises(AudioError, match="more than 1000"):
        decode_reference(encode_wav(tone()), limits=replace(Limits(), reference_bytes=1_000))


def test_a_lying_header_costs_no_memory():
    honest = encoded(np.zeros((8_000, 1)), 8_000, "FLAC", "PCM_16")
    # STREAMINFO: the total of samples is the low 36 bits of the 8 bytes at 18.
    packed = struct.unpack(">Q", honest[18:26])[0] | (2**36 - 1)
    lying = honest[:18] + struct.pack(">Q", packed) + honest[26:]
    tracemalloc.start()
    with pytest.raises(AudioError, match="more than 60 s"):
        decode_reference(lying)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize("size", [0, 44, 0x7FFF_FFF0, 0xFFFF_FFFF])
def test_a_wav_header_that_lies_of_its_length_gives_what_is_there_or_an_error(size):
    honest = encode_wav(tone())
    lying = honest[:4] + struct.pack("<I", size) + honest[8:40] + struct.pack("<I", size)
    tracemalloc.start()
    try:
        got = decode_reference(lying + honest[44:])
        assert np.max(np.abs(got[:1_000] - tone()[:1_000])) < 1e-3
        assert len(got) <= SAMPLE_RATE
    except AudioError as error:
        assert "\n" not in str(error)  # noqa: PT017  both outcomes are right
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_many_channels_of_a_high_rate_stay_within_memory():
    wide = encoded(np.tile(tone(96_000, 20)[:, None], (1, 8)), 96_000, "FLAC", "PCM_16")
    tracemalloc.start()
    got = decode_reference(wide, limits=replace(Limits(), reference_bytes=2**26))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(got) == 20 * SAMPLE_RATE
    assert peak < 3 * 2**23  # the whole of it would be 59 MiB


def test_mutated_files_give_sound_or_an_audio_error():
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    originals = [
        encode_wav(tone(8_000), 8_000),
        encoded(tone(8_000), 8_000, "FLAC", "PCM_16"),
        encoded(tone(8_000), 8_000, "OGG", "VORBIS"),
    ]
    outcomes = {"sound": 0, "refused": 0}
    for turn in range(600):
        data = bytearray(originals[turn % 3])
        for place in rng.integers(0, min(len(data), 200), rng.integers(1, 6)):
            data[place] = rng.integers(256)
        if turn % 5 == 0:
            del data[int(rng.integers(len(data))) :]
        try:
            got = decode_reference(bytes(data))
            assert np.isfinite(got).all()
            assert np.max(np.abs(got)) <= 1.0
            outcomes["sound"] += 1
        except AudioError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes


def test_a_local_file_is_read_and_its_errors_name_it_without_its_folder(tmp_path):
    path = tmp_path / "ref.wav"
    path.write_bytes(encode_wav(tone()))
    assert len(load_reference(path)) == SAMPLE_RATE
    path.write_bytes(b"nonsense")
    for bad in (path, tmp_path / "missing.wav", tmp_path):
        with pytest.raises(AudioError) as caught:
            load_reference(bad)
        assert str(caught.value).startswith(f"{bad.name}: ")
        assert str(tmp_path.parent) not in str(caught.value)


def test_samples_at_hand_are_checked_like_a_file():
    stereo = np.stack((tone(48_000), tone(48_000)), axis=1)
    assert np.max(np.abs(to_reference(stereo, 48_000) - tone())[500:-500]) < 1e-3
    for bad, rate in (
        (tone(seconds=0.1), 24_000),
        (tone() * np.nan, 24_000),
        (np.zeros(24_000), 24_000),
        (tone(), 100),
        (np.zeros((2, 24_000)), 24_000),
        (np.zeros(()), 24_000),
    ):
        with pytest.raises(AudioError):
            to_reference(bad, rate)
