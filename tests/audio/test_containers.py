"""Recordings of browsers and telephones are read through libav, within the usual limits."""

from __future__ import annotations

import io
import os
import struct
from contextlib import suppress

import av
import numpy as np
import pytest

from csm_tts_plugin.audio import containers
from csm_tts_plugin.audio.bounds import Bounds
from csm_tts_plugin.audio.reference import (
    decode_reference,
    encode_wav,
    load_reference,
    to_reference,
)
from csm_tts_plugin.config import SAMPLE_RATE, Limits
from csm_tts_plugin.errors import AudioError
from tests.audio.test_audio_reference import encoded, tone

KINDS = [
    # container, codec, rate; the id is the usual name of such a file
    pytest.param("mp3", "libmp3lame", 44_100, id="mp3"),
    pytest.param("ipod", "aac", 48_000, id="m4a"),
    pytest.param("mp4", "aac", 16_000, id="mp4"),
    pytest.param("mov", "alac", 44_100, id="alac"),
    pytest.param("webm", "libopus", 48_000, id="webm"),
    pytest.param("matroska", "pcm_s16le", 24_000, id="mka"),
    pytest.param("adts", "aac", 24_000, id="aac"),
    pytest.param("caf", "pcm_s16be", 44_100, id="caf"),
    pytest.param("wav", "adpcm_g726", 8_000, id="wav of G.726"),
    pytest.param("aiff", "pcm_s16be", 44_100, id="aiff"),
    pytest.param("au", "pcm_mulaw", 8_000, id="au"),
]


def made(container, codec, rate, samples=None, channels=1, fragmented=False):
    """A file of the tone, or of samples [n, channels], by libav."""
    samples = tone(rate, 2.0)[:, None] if samples is None else samples
    options = {"movflags": "frag_keyframe+empty_moov"} if fragmented else {}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono" if channels == 1 else "stereo")
        pcm = np.ascontiguousarray((samples * 32767).astype("<i2").reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(pcm, "s16", "mono" if channels == 1 else "stereo")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return buffer.getvalue()


def pitch(samples):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * SAMPLE_RATE / len(samples))


@pytest.mark.parametrize(("container", "codec", "rate"), KINDS)
def test_what_people_record_comes_out_as_mono_at_24_khz(container, codec, rate):
    got = decode_reference(made(container, codec, rate))
    assert got.dtype == np.float32
    assert abs(len(got) / SAMPLE_RATE - 2.0) < 0.15
    assert abs(pitch(got) - 300) < 2
    assert 0.4 < np.max(np.abs(got[2_000:-4_000])) < 0.6


def test_what_a_browser_streams_has_no_length_and_is_read():
    data = made("webm", "libopus", 48_000)
    assert len(decode_reference(data[: len(data) * 3 // 4])) > SAMPLE_RATE
    assert len(decode_reference(made("mp4", "aac", 48_000, fragmented=True))) > SAMPLE_RATE


def test_pictures_beside_the_sound_do_no_harm_and_alone_are_refused():
    with_sound, alone = io.BytesIO(), io.BytesIO()
    for buffer, heard in ((with_sound, True), (alone, False)):
        with av.open(buffer, "w", format="webm") as file:
            video = file.add_stream("libvpx", rate=10)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            audio = file.add_stream("libopus", rate=48_000, layout="mono") if heard else None
            for number in range(10):
                picture = av.VideoFrame(64, 48, "yuv420p")
                picture.pts = number
                file.mux(video.encode(picture))
            file.mux(video.encode(None))
            if audio is not None:
                pcm = (tone(48_000) * 32767).astype("<i2")[None]
                frame = av.AudioFrame.from_ndarray(pcm, "s16", "mono")
                frame.sample_rate = 48_000
                file.mux([*audio.encode(frame), *audio.encode(None)])
    assert abs(pitch(decode_reference(with_sound.getvalue())) - 300) < 2
    with pytest.raises(AudioError, match="no sound"):
        decode_reference(alone.getvalue())


@pytest.mark.parametrize(("container", "codec"), [("mp3", "libmp3lame"), ("webm", "libopus")])
def test_the_bounds_are_those_of_all_recordings(container, codec):
    for seconds, told in ((61, "more than 60 s"), (0.2, "less than 0.5 s")):
        samples = tone(48_000, seconds)[:, None]
        with pytest.raises(AudioError, match=told):
            decode_reference(made(container, codec, 48_000, samples))
    with pytest.raises(AudioError, match="silent"):
        decode_reference(made(container, codec, 48_000, np.zeros((96_000, 1))))


def test_a_small_file_of_hours_costs_no_memory_here():
    """MP3 of silence at 8 kbit/s: 12 MB hold more than three hours."""
    samples = np.zeros((8_000 * 30, 1))
    piece = made("mp3", "libmp3lame", 8_000, samples)
    before = containers_peak()
    with pytest.raises(AudioError, match="more than 60 s"):
        decode_reference(piece * (12 * 2**20 // len(piece)))
    assert containers_peak() - before < 64 * 2**20


def containers_peak():
    """Peak memory of this process in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_header_that_makes_tables_of_gigabytes_ends_in_its_own_process():
    """A fragment that declares 2**30 samples of 0 bytes each: four bytes changed."""
    data = bytearray(made("mp4", "aac", 48_000, fragmented=True))
    at = data.index(b"trun")
    flags = struct.unpack(">I", data[at + 4 : at + 8])[0] & 0x00000F
    data[at + 4 : at + 8] = struct.pack(">I", flags)
    data[at + 8 : at + 12] = struct.pack(">I", 2**30)
    before = containers_peak()
    with pytest.raises(AudioError, match=r"can be decoded|more than 60 s"):
        decode_reference(bytes(data))
    assert containers_peak() - before < 64 * 2**20


@pytest.mark.parametrize(
    ("code", "told"),
    [("import os; os.abort()", "can be decoded"), ("import time; time.sleep(60)", "too busy")],
)
def test_a_decoder_that_dies_or_hangs_is_an_audio_error(monkeypatch, code, told):
    monkeypatch.setattr(containers, "_WAIT_S", 2.0)
    monkeypatch.setattr(containers, "_child", lambda: ["-c", code])
    with pytest.raises(AudioError, match=told):
        decode_reference(made("mp3", "libmp3lame", 44_100))


def test_a_decoder_that_gets_little_of_the_processor_is_waited_for(monkeypatch):
    monkeypatch.setattr(containers, "_TIME_S", 0.1)
    code = "import sys, time; time.sleep(1); sys.stdout.buffer.write(bytes(4) * 24000)"
    monkeypatch.setattr(containers, "_child", lambda: ["-c", code])
    bounds = Bounds.of_references(Limits())
    assert len(containers.by_libav(b"any file", "mp3", bounds)) == SAMPLE_RATE


def test_mutated_files_give_sound_or_an_audio_error():
    seed = int(os.environ.get("TEST_SEED", "20240611"))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for container, codec in (("mp3", "libmp3lame"), ("ipod", "aac"), ("webm", "libopus")):
        original = made(container, codec, 48_000)
        for _ in range(3):
            data = bytearray(original)
            for place in rng.integers(8, len(data), 20):
                data[place] = rng.integers(256)
            with suppress(AudioError):
                got = decode_reference(bytes(data))
                assert np.isfinite(got).all()
                assert np.max(np.abs(got)) <= 1.0


@pytest.mark.parametrize(
    "data", [b"#EXTM3U\nhttp://127.0.0.1:1/a.mp3\n", b"ffconcat version 1.0\n"]
)
def test_lists_of_other_files_are_no_recordings(data):
    with pytest.raises(AudioError, match="not a WAV"):
        decode_reference(data)


def test_the_kind_is_told_by_the_first_bytes_not_by_the_name(tmp_path):
    path = tmp_path / "voice.wav"
    path.write_bytes(made("ipod", "aac", 44_100))
    assert abs(pitch(load_reference(path)) - 300) < 2


# Once refused with a misleading message


def test_a_wav_that_was_streamed_to_a_pipe_is_read():
    """Programs that cannot seek back write 0, or the largest number, as the length."""
    whole = encode_wav(tone())
    for length in (0, 0xFFFFFFFF):
        data = bytearray(whole)
        data[40:44] = struct.pack("<I", length)
        data[4:8] = struct.pack("<I", length)
        assert len(decode_reference(bytes(data))) == SAMPLE_RATE


def test_a_wav_without_sound_says_so():
    with pytest.raises(AudioError, match="no sound at all"):
        decode_reference(encode_wav(np.zeros(0, "f4")))


@pytest.mark.parametrize("level", [1.0, 0.98])
def test_channels_of_opposite_phase_are_not_silence(level):
    stereo = np.stack((tone(), -level * tone()), axis=1)
    for got in (
        decode_reference(encoded(stereo, SAMPLE_RATE, "WAV", "FLOAT")),
        decode_reference(
            made(
                "mp3",
                "libmp3lame",
                44_100,
                np.stack((tone(44_100), -tone(44_100)), axis=1),
                channels=2,
            )
        ),
        to_reference(stereo, SAMPLE_RATE),
    ):
        assert 0.4 < np.max(np.abs(got[3_000:-3_000])) < 0.6


def test_the_decoder_process_is_given_no_key(monkeypatch):
    monkeypatch.setenv("CSM_ENGINE_KEY", "canary")
    code = ["-c", "import os; print(os.environ); raise SystemExit(3)"]
    monkeypatch.setattr(containers, "_child", lambda: code)
    with pytest.raises(AudioError) as told:
        decode_reference(made("mp3", "libmp3lame", 44_100))
    assert "PYTHONPATH" in str(told.value)
    assert "canary" not in str(told.value)
