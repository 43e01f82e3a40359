"""Decodes the formats that browsers and telephones record (MP3, M4A, WebM, AMR, ...) by libav.

Each file is decoded in a process of its own, with limits on memory and time: a header of a few
bytes can make libav allocate gigabytes, and a malformed file can crash the process. The demuxer is
chosen by the file's first bytes, so that libav tries none that would open other files.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import AudioError
from .bounds import Bounds
from .mono import mono_of

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

_TIME_S = 20.0
"""Limit of the processor time."""
_WAIT_S = 120.0
"""Limit of the wait for it: on a busy machine a sound file of a minute took more than 20 s."""
_MEMORY_BYTES = 768 * 2**20
_at_once = threading.BoundedSemaphore(2)
_BROKEN_MOST = 8
"""The most malformed packets in a file: a cut page, or a tag between two recordings."""
_REFUSED = 3
"""Exit code of the child: stdout holds the cause."""
FORMATS = "WAV, FLAC, OGG, MP3, M4A or WebM"
_LATE = (
    f"Decoding the recording was not done after {_WAIT_S:.0f} s: the machine is too busy. "
    "Try again, or save it as 16-bit WAV."
)
_BROKEN = (
    f"The recording is not a {FORMATS} file that can be decoded: it is broken or of a rare kind; "
    "save it again as 16-bit WAV."
)
_MP3 = frozenset({0xFB, 0xFA, 0xF3, 0xF2, 0xE3, 0xE2})
_ADTS = frozenset({0xF1, 0xF9, 0xF0, 0xF8})
_CODECS = ("mp2", "mp3", "aac", "opus", "vorbis", "flac", "alac", "amr", "speex", "gsm", "g72")
"""Also PCM and ADPCM of every kind."""


def container_of(data: bytes) -> str | None:
    """libav's name of the format with these first bytes; None for formats that are not accepted."""
    if data[4:8] == b"ftyp":
        return "mov"
    for magic, name in _MAGIC.items():
        if data.startswith(magic):
            return name
    if data.startswith(b"RIFF"):
        return "wav" if _wav_codec(data) not in (None, *_PLAIN_WAV) else None
    if data.startswith(b"OggS"):
        return "ogg" if b"Speex   " in data[:64] else None
    if len(data) > 1 and data[0] == 0xFF:
        return "mp3" if data[1] in _MP3 else "aac" if data[1] in _ADTS else None
    return None


_MAGIC = {
    b"ID3": "mp3",
    b"\x1a\x45\xdf\xa3": "matroska",
    b"#!AMR": "amr",
    b"caff": "caf",
}
_PLAIN_WAV = (0x01, 0x02, 0x03, 0x06, 0x07, 0x11, 0x31, 0xFFFE)
"""Codec tags of WAV files that libsndfile reads; if it refuses one of these the file is broken."""


def _wav_codec(data: bytes) -> int | None:
    at = data.find(b"fmt ", 12, 256)
    return int.from_bytes(data[at + 8 : at + 10], "little") if at > 0 else None


def by_libav(data: bytes, container: str, bounds: Bounds) -> Samples:
    """Decodes a file to mono float32 [n] at 24 kHz. Raises AudioError."""
    limits = [f"{name}={value}" for name, value in asdict(bounds).items()]
    try:
        with _at_once:
            done = subprocess.run(
                [sys.executable, *_child(), container, *limits],
                input=data,
                capture_output=True,
                timeout=_WAIT_S,
                env=_child_environment(),
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise AudioError(_LATE) from None
    except OSError:
        raise AudioError(_BROKEN) from None
    if done.returncode == _REFUSED:
        raise AudioError(done.stdout.decode(errors="replace"))
    if done.returncode:
        raise AudioError(_BROKEN)
    return np.frombuffer(done.stdout, "<f4").astype(np.float32)


def _child() -> list[str]:
    return ["-m", __name__]


_NEEDED = (
    "PATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SYSTEMROOT",
    "TMPDIR",
    "OPENBLAS_CORETYPE",
)


def _child_environment() -> dict[str, str]:
    """Only what Python needs to start: a fault in a decoder must not give access to a key."""
    here = {name: os.environ[name] for name in _NEEDED if name in os.environ}
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    # Each thread of a numeric library needs memory of its own.
    return {**here, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}


# In the child


class _Opened:
    """The first audio track of a file, as a source for `mono_of`."""

    def __init__(self, data: bytes, container: str) -> None:
        import av

        self._file: Any = av.open(BytesIO(data), "r", format=container)
        tracks = self._file.streams.audio
        if not tracks:
            raise AudioError("The recording holds no sound, perhaps pictures only.")
        self._track = tracks[0]
        self._resampler: Any = av.AudioResampler(format="flt")
        name = self._track.codec_context.name
        if not name.startswith((*_CODECS, "pcm_", "adpcm_")):
            raise AudioError(f"The recording is in {name}, which is not read here; save it as WAV.")
        self.rate, self.channels = int(self._track.rate or 0), int(self._track.channels or 0)
        self.promised: int | None = None
        """None, because the length in a container is often wrong."""

    def pieces(self) -> Iterator[Samples]:
        for frame in self._frames():
            if (frame.sample_rate, frame.layout.nb_channels) != (self.rate, self.channels):
                raise AudioError("The recording changes its rate or its channels; save it as WAV.")
            for one in self._resampler.resample(frame):
                yield one.to_ndarray().reshape(-1, self.channels)

    def _frames(self) -> Iterator[Any]:
        """The track's frames. Like players it skips malformed packets, if they are few."""
        from av.error import InvalidDataError

        broken = 0
        for packet in self._file.demux(self._track):
            try:
                yield from packet.decode()
            except InvalidDataError:
                broken += 1
                if broken > _BROKEN_MOST:
                    raise

    def close(self) -> None:
        self._file.close()


def _main(container: str, *limits: str) -> int:
    given = dict(limit.split("=", 1) for limit in limits)
    advice = given.pop("advice")
    most = int(given.pop("bytes"))
    bounds = Bounds(bytes=most, advice=advice, **{k: float(v) for k, v in given.items()})
    data = sys.stdin.buffer.read(most)
    try:
        import av
    except ImportError:
        return _refuse("This kind of recording needs the package av; install it, or save as WAV.")
    _bind()
    av.logging.set_level(av.logging.PANIC)
    try:
        samples = mono_of(lambda: _Opened(data, container), bounds)
    except AudioError as error:
        return _refuse(error.message)
    except (av.error.FFmpegError, ValueError, TypeError, OverflowError, RuntimeError, MemoryError):
        return 1
    sys.stdout.buffer.write(samples.astype("<f4").tobytes())
    return 0


def _bind() -> None:
    """Limits this process's memory and CPU time, where the system supports it."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (int(_TIME_S), int(_TIME_S) + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))


def _refuse(cause: str) -> int:
    sys.stdout.buffer.write(cause.encode())
    return _REFUSED


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
