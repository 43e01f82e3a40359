"""Speech as a file while it is being made: WAV, bare PCM, or by libav MP3, Opus, FLAC and AAC.

All of them can be played from their first bytes on: where a header would tell the length, it tells
that the length is unknown.
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
"""What speech can be encoded as, with the MIME type of each."""

_LIBAV: dict[str, tuple[str, str, dict[str, str]]] = {
    # container, codec, options: no index at the front, and pages of one frame instead of a second
    "mp3": ("mp3", "libmp3lame", {"write_xing": "0", "id3v2_version": "0"}),
    "opus": ("ogg", "libopus", {"page_duration": "80000"}),
    "aac": ("adts", "aac", {}),
    "flac": ("flac", "flac", {}),
}
_UNKNOWN = 0xFFFFFFFF


class Encoder(Protocol):
    """Mono float32 samples at 24 kHz in [-1, 1] into bytes; louder ones clip."""

    def push(self, samples: Samples) -> bytes:
        """What `samples` completes; may be empty."""

    def finish(self) -> bytes:
        """The rest; nothing may be pushed after."""


def encoder(format: str) -> Encoder:
    """An encoder for a key of `CONTENT_TYPES`."""
    return _Raw(format == "wav") if format in ("wav", "pcm") else _Libav(*_LIBAV[format])


class _Raw:
    """16-bit little-endian PCM, with or without a WAV header in front."""

    def __init__(self, header: bool) -> None:
        self._header = _wav_header() if header else b""

    def push(self, samples: Samples) -> bytes:
        header, self._header = self._header, b""
        return header + to_pcm16(samples)

    def finish(self) -> bytes:
        return self.push(np.zeros(0, np.float32))


def _wav_header() -> bytes:
    """Mono, 16 bits, 24 kHz; both lengths unknown, which players take for "until it ends"."""
    format = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
    riff = struct.pack("<4sI4s", b"RIFF", _UNKNOWN, b"WAVE")
    return riff + format + struct.pack("<4sI", b"data", _UNKNOWN)


class _Written:
    """A file that can only be written to, for libav; what was written is taken piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


class _Libav:
    def __init__(self, container: str, codec: str, options: dict[str, str]) -> None:
        import av  # takes a while, and few servers are ever asked for these

        self._file = _Written()
        self._container: Any = av.open(
            self._file, "w", format=container, options={**options, "flush_packets": "1"}
        )
        self._stream: Any = self._container.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
        self._frame = av.AudioFrame
        self._samples = 0

    def push(self, samples: Samples) -> bytes:
        if len(samples):
            pcm = np.frombuffer(to_pcm16(samples), "<i2")[None]
            frame = self._frame.from_ndarray(pcm, format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, self._samples
            self._samples += len(samples)
            self._container.mux(self._stream.encode(frame))
        return self._file.take()

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.take()
