"""Streaming encoders: WAV, raw PCM, and by libav MP3, Opus, FLAC and AAC.

All of them can be played from the first bytes; headers with a length say that it is unknown.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..config import SAMPLE_RATE
from .resample import to_pcm16

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

CONTENT_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
"""The output formats and their MIME types."""

_LIBAV: dict[str, tuple[str, str, dict[str, str]]] = {
    # container, codec, options: no index at the front, and pages of one frame instead of a second
    "mp3": ("mp3", "libmp3lame", {"write_xing": "0", "id3v2_version": "0"}),
    "opus": ("ogg", "libopus", {"page_duration": "80000"}),
    "aac": ("adts", "aac", {}),
    "flac": ("flac", "flac", {}),
}
_UNKNOWN = 0xFFFFFFFF


class Encoder(Protocol):
    """Encodes mono float32 samples in [-1, 1] to bytes; louder ones are clipped."""

    def push(self, samples: Samples) -> bytes:
        """Encode `samples`; returns the bytes that are complete, which may be none."""

    def finish(self) -> bytes:
        """The remaining bytes. `push` must not be called after it."""


def encoder(format: str, rate: int = SAMPLE_RATE) -> Encoder:
    """An encoder for a format of `CONTENT_TYPES` and one of `OUTPUT_RATES` in Hz."""
    if format in ("wav", "pcm"):
        return _Raw(rate if format == "wav" else None)
    return _Libav(*_LIBAV[format], rate)


class _Raw:
    """16-bit little-endian PCM, with or without a WAV header in front."""

    def __init__(self, rate: int | None) -> None:
        """`rate`: in Hz, for the WAV header; None: no header."""
        self._header = b"" if rate is None else _wav_header(rate)

    def push(self, samples: Samples) -> bytes:
        header, self._header = self._header, b""
        return header + to_pcm16(samples)

    def finish(self) -> bytes:
        return self.push(np.zeros(0, np.float32))


def _wav_header(rate: int) -> bytes:
    """A header for 16-bit mono with both lengths at their maximum, which players read as "to the
    end of the stream".
    """
    format = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    riff = struct.pack("<4sI4s", b"RIFF", _UNKNOWN, b"WAVE")
    return riff + format + struct.pack("<4sI", b"data", _UNKNOWN)


class _Written:
    """A write-only file for libav; written bytes are taken out piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


class _Libav:
    def __init__(self, container: str, codec: str, options: dict[str, str], rate: int) -> None:
        import av  # takes a while, and few servers are ever asked for these

        self._file = _Written()
        self._container: Any = av.open(
            self._file, "w", format=container, options={**options, "flush_packets": "1"}
        )
        self._stream: Any = self._container.add_stream(codec, rate=rate, layout="mono")
        self._frame = av.AudioFrame
        self._samples, self._rate = 0, rate

    def push(self, samples: Samples) -> bytes:
        if len(samples):
            pcm = np.frombuffer(to_pcm16(samples), "<i2")[None]
            frame = self._frame.from_ndarray(pcm, format="s16", layout="mono")
            frame.sample_rate, frame.pts = self._rate, self._samples
            self._samples += len(samples)
            self._container.mux(self._stream.encode(frame))
        return self._file.take()

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.take()
