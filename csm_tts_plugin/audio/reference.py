"""Decodes recordings within limits; the only module that reads audio files.

The bytes may come from the network and are not trusted: the format is detected by its first bytes,
the header's values are checked before memory is allocated, and decoding stops at the limits. Only
the given bytes are opened, and paths come from local users only. Formats that libsndfile does not
read are decoded by libav, in a process of its own (`containers`).
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from ..config import SAMPLE_RATE, Limits
from ..errors import AudioError
from .arrays import read_array
from .bounds import Bounds, check_sound, check_values
from .containers import FORMATS, by_libav, container_of
from .mono import PIECE_FRAMES, AtHand, mono_of
from .resample import to_pcm16

__all__ = [
    "Bounds",
    "decode_recording",
    "decode_reference",
    "encode_wav",
    "load_recording",
    "load_reference",
    "to_reference",
]

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

_MAGIC = (b"RIFF", b"RIFX", b"fLaC", b"OggS", b"FORM", b".snd")
"""First bytes of the formats that libsndfile reads: WAV, FLAC, OGG, AIFF, AU."""


def decode_reference(data: bytes, *, limits: Limits | None = None) -> Samples:
    """Decodes a WAV, FLAC, OGG, MP3, M4A or WebM file to mono float32 [n] at 24 kHz, in [-1, 1].

    Raises AudioError for other formats, and for files that are damaged, too large, too short, too
    long, silent, or contain NaN.
    """
    return decode_recording(data, Bounds.of_references(limits or Limits()))


def decode_recording(data: bytes, bounds: Bounds) -> Samples:
    """`decode_reference` with other limits."""
    if len(data) > bounds.bytes:
        raise AudioError(
            f"The recording has {len(data)} bytes, more than {bounds.bytes}; "
            "send a shorter one, or as FLAC."
        )
    container = container_of(data)
    if not data.startswith(_MAGIC) and container is None:
        raise AudioError(f"The recording is not a {FORMATS} file; convert it to one of them.")
    samples = _by_libsndfile(data, bounds) if data.startswith(_MAGIC) else None
    if samples is None and container is not None:
        samples = by_libav(data, container, bounds)
    if samples is None:
        raise AudioError(
            "The recording cannot be decoded: it is broken or of a rare kind; "
            "save it again as 16-bit WAV."
        )
    check_sound(samples)
    return samples


def _by_libsndfile(data: bytes, bounds: Bounds) -> Samples | None:
    """The decoded samples, None if libsndfile cannot read the file. Raises AudioError."""
    data = _with_length(data)
    try:
        return mono_of(lambda: _Opened(data), bounds)
    except (soundfile.SoundFileError, RuntimeError, ValueError, OverflowError, TypeError):
        return None


class _Opened:
    """A file that libsndfile reads, as a source for `mono_of`."""

    def __init__(self, data: bytes) -> None:
        self._file = soundfile.SoundFile(io.BytesIO(data))
        self.rate, self.channels = int(self._file.samplerate), int(self._file.channels)
        self.promised: int | None = self._file.frames

    def pieces(self) -> Iterator[Samples]:
        while len(piece := self._file.read(PIECE_FRAMES, dtype="float32", always_2d=True)):
            yield piece

    def close(self) -> None:
        self._file.close()


def _with_length(data: bytes) -> bytes:
    """Corrects a WAV header with data length 0, as written by programs that stream to a pipe."""
    if not data.startswith(b"RIFF"):
        return data
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"data":
            rest = len(data) - at - 8
            if size or not rest or data[at + 8 : at + 12] in _CHUNKS:
                return data
            return data[: at + 4] + rest.to_bytes(4, "little") + data[at + 8 :]
        at += 8 + size + size % 2
    return data


_CHUNKS = (b"LIST", b"fact", b"cue ", b"bext", b"id3 ", b"ID3 ", b"smpl", b"PEAK", b"JUNK")
"""Chunks that may follow a data chunk that is really empty."""


def load_reference(path: str | Path, *, limits: Limits | None = None) -> Samples:
    """`decode_reference` for a local file; error messages begin with the file's name."""
    return load_recording(path, Bounds.of_references(limits or Limits()))


def load_recording(path: str | Path, bounds: Bounds) -> Samples:
    """`decode_recording` for a local file; error messages begin with the file's name."""
    path = Path(path)
    try:
        return decode_recording(_read_file(path, bounds), bounds)
    except AudioError as error:
        raise AudioError(f"{path.name}: {error.message}") from None


def encode_wav(samples: Samples, rate: int = SAMPLE_RATE) -> bytes:
    """A mono 16-bit WAV file of float32 samples in [-1, 1]; louder ones are clipped."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(to_pcm16(samples))
    return buffer.getvalue()


def to_reference(samples: Any, rate: int, *, limits: Limits | None = None) -> Samples:
    """Samples ([n], [n, channels] or any type of `read_array`) as reference audio: mono float32 at
    24 kHz, with the same checks and errors as for a file.
    """
    columns, _ = read_array(samples)
    bounds = Bounds.of_references(limits or Limits())
    result = mono_of(lambda: AtHand(columns, rate), bounds)
    check_sound(result)
    return result


def to_mono(columns: Samples, rate: int) -> Samples:
    """Samples [n, channels] as mono at 24 kHz, of any length."""
    if rate == SAMPLE_RATE and columns.shape[1] == 1:
        check_values(columns)
        return np.ascontiguousarray(np.clip(columns[:, 0], -1.0, 1.0))
    return mono_of(lambda: AtHand(columns, rate), _ANY_LENGTH)


_ANY_LENGTH = Bounds(0, 0.0, 3600.0, "an hour is enough")


def _read_file(path: Path, bounds: Bounds) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(bounds.bytes + 1)
    except FileNotFoundError:
        cause = "no such file; check the path"
    except IsADirectoryError:
        cause = f"this is a folder; name a {FORMATS} file"
    except PermissionError:
        cause = "no permission to read it; change the file's mode"
    except (OSError, ValueError) as error:
        cause = f"it cannot be read ({type(error).__name__}); check the path"
    raise AudioError(f"{cause}.")
