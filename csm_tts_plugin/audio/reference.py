"""Recordings from outside, read within bounds: the only place that decodes audio files.

Bytes come from the network and are not trusted: the format is told by its first bytes, the
header's promises are checked before anything is allocated, and decoding stops where the limits do.
Nothing is opened but the bytes at hand, and paths come from local users only.
"""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from ..config import SAMPLE_RATE, Limits
from ..errors import AudioError
from .resample import to_pcm16

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

_MAGIC = (b"RIFF", b"RIFX", b"fLaC", b"OggS")
_RATES = range(8_000, 192_001)
_MAX_CHANNELS = 8
_PIECE_FRAMES = 65_536
_FULL_SCALE = 4.0
"""Float files may exceed 1.0 a little and are clipped; past this they are not scaled to it."""
_SILENCE_PEAK = 10.0 ** (-50.0 / 20.0)


def decode_reference(data: bytes, *, limits: Limits | None = None) -> Samples:
    """A WAV, FLAC or OGG file as float32 mono at 24 kHz, in [-1, 1].

    Raises AudioError: not such a file, broken, too big, too short or too long, with NaN or silent.
    """
    limits = limits or Limits()
    if len(data) > limits.reference_bytes:
        raise AudioError(
            f"The recording has {len(data)} bytes, more than {limits.reference_bytes}; "
            "send a shorter one, or as FLAC."
        )
    if not data.startswith(_MAGIC):
        raise AudioError("The recording is not a WAV, FLAC or OGG file; convert it to one of them.")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            samples = _read(file, limits)
    except (soundfile.SoundFileError, RuntimeError, ValueError, OverflowError, TypeError):
        raise AudioError(
            "The recording cannot be decoded: it is broken or of a rare kind; "
            "save it again as 16-bit WAV."
        ) from None
    _check_sound(samples)
    return samples


def load_reference(path: str | Path, *, limits: Limits | None = None) -> Samples:
    """`decode_reference` of a local file; its errors begin with the file's name."""
    path = Path(path)
    try:
        return decode_reference(_read_file(path, limits or Limits()), limits=limits)
    except AudioError as error:
        raise AudioError(f"{path.name}: {error.message}") from None


def encode_wav(samples: Samples, rate: int = SAMPLE_RATE) -> bytes:
    """A mono 16-bit WAV file of float32 samples in [-1, 1]; louder ones clip."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(to_pcm16(samples))
    return buffer.getvalue()


def to_reference(samples: Samples, rate: int, *, limits: Limits | None = None) -> Samples:
    """Samples at hand (float32, [n] or [n, channels]) under the same checks as a file's."""
    samples = np.asarray(samples, dtype=np.float32)
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > _MAX_CHANNELS):
        raise AudioError(f"Audio has shape {samples.shape}; give [samples] or [samples, channels].")
    _check_format(rate, 1 if samples.ndim == 1 else samples.shape[1])
    _check_length(len(samples), rate, limits or Limits())
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    _check_values(mono)
    result: Samples = soxr.resample(np.clip(mono, -1.0, 1.0), rate, SAMPLE_RATE)
    result = np.clip(result, -1.0, 1.0)
    _check_sound(result)
    return result


def _read_file(path: Path, limits: Limits) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limits.reference_bytes + 1)
    except FileNotFoundError:
        cause = "no such file; check the path"
    except IsADirectoryError:
        cause = "this is a folder; name a WAV, FLAC or OGG file"
    except PermissionError:
        cause = "no permission to read it; change the file's mode"
    except (OSError, ValueError) as error:
        cause = f"it cannot be read ({type(error).__name__}); check the path"
    raise AudioError(f"{cause}.")


def _read(file: soundfile.SoundFile, limits: Limits) -> Samples:
    _check_format(file.samplerate, file.channels)
    _check_length(file.frames, file.samplerate, limits)
    resampler = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32")
    pieces: list[Samples] = []
    read = 0
    # In pieces, for the header may promise less than the file holds, and channels and high rates
    # would cost far more memory than the mono sound that is kept.
    while len(piece := file.read(_PIECE_FRAMES, dtype="float32", always_2d=True)):
        read += len(piece)
        _check_longest(read, file.samplerate, limits)
        mono = piece.mean(axis=1)
        _check_values(mono)
        pieces.append(resampler.resample_chunk(np.clip(mono, -1.0, 1.0)))
    _check_length(read, file.samplerate, limits)
    pieces.append(resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    return np.clip(np.concatenate(pieces), -1.0, 1.0)


def _check_format(rate: int, channels: int) -> None:
    if rate not in _RATES:
        raise AudioError(f"The recording has {rate} Hz; 8000 to 192000 Hz can be used.")
    if not 1 <= channels <= _MAX_CHANNELS:
        raise AudioError(
            f"The recording has {channels} channels; 1 to {_MAX_CHANNELS} can be used."
        )


def _check_length(frames: int, rate: int, limits: Limits) -> None:
    _check_longest(frames, rate, limits)
    if frames < limits.reference_seconds_min * rate:
        raise AudioError(
            f"The recording lasts {frames / rate:.2f} s, less than "
            f"{limits.reference_seconds_min:g} s; 3 to 15 s of speech make a good reference."
        )


def _check_longest(frames: int, rate: int, limits: Limits) -> None:
    if frames > limits.reference_seconds_max * rate:
        raise AudioError(
            f"The recording lasts more than {limits.reference_seconds_max:g} s; "
            "cut it: 3 to 15 s of speech make a good reference."
        )


def _check_values(samples: Samples) -> None:
    peak = float(np.max(np.abs(samples), initial=0.0))
    if not np.isfinite(peak):
        raise AudioError(
            "The recording holds NaN or infinite samples; save it again as 16-bit WAV."
        )
    if peak > _FULL_SCALE:
        raise AudioError("The recording is not scaled to [-1, 1]; save it again as 16-bit WAV.")


def _check_sound(samples: Samples) -> None:
    if float(np.max(np.abs(samples - samples.mean()), initial=0.0)) < _SILENCE_PEAK:
        raise AudioError("The recording is silent; check the microphone and record it again.")
