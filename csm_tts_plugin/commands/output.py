"""Output of `say`: a file, whose name gives its format, or a pipe."""

from __future__ import annotations

import sys
import time
import wave
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol, Self

import numpy as np

from ..audio.encoding import Encoder, encoder
from ..audio.files import WholeFile, is_special
from ..audio.resample import from_pcm16
from ..config import FRAME_SECONDS
from ..errors import ConfigError

_SHOW_EVERY_S = 2.0
STDOUT = "-"
_FORMATS = {
    ".wav": "wav",
    "": "wav",
    ".mp3": "mp3",
    ".flac": "flac",
    ".ogg": "ogg",
    ".opus": "opus",
    ".aac": "aac",
}


class _Sink(Protocol):
    def write(self, pcm: bytes) -> None: ...

    def finish(self) -> None: ...


class Output:
    """A context manager to write audio. A file is put in place only on exit without an error;
    otherwise an existing file stays. If audio goes to a pipe, lines for people go to stderr.

    Raises ConfigError if the output cannot be written, BrokenPipeError if the pipe has no reader.
    """

    def __init__(self, name: str, rate: int) -> None:
        self.rate = rate
        self._name = name
        self._pipe = name == STDOUT or is_special(name)
        self._format = "wav" if self._pipe else _format(name)
        self._lines = sys.stderr if self._pipe else sys.stdout
        self._files = ExitStack()
        self._whole: WholeFile | None = None
        self._sink: _Sink | None = None
        self._began = self._first = self._ended = self._shown = 0.0
        self._samples = 0

    def __enter__(self) -> Self:
        if self._name == STDOUT and sys.stdout.isatty():
            raise ConfigError(
                "The audio would go to the terminal: name a file, or pipe it into a player."
            )
        try:
            self._sink = self._opened()
        except OSError as error:
            raise self._failed(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._sink is not None and (self._whole is not None or kind is None):
                self._sink.finish()
            if kind is None and self._samples and self._whole is not None:
                self._whole.commit()
        except BrokenPipeError:
            raise
        except (OSError, RuntimeError) as failure:  # libsndfile raises RuntimeError
            raise self._failed(failure) from None
        finally:
            self._files.close()
            if self._whole is not None:
                self._whole.discard()

    def say(self, line: str) -> None:
        """Prints a line for people."""
        print(line, file=self._lines, flush=True)

    def begin(self) -> None:
        self._began = self._shown = time.monotonic()

    def write(self, pcm: bytes) -> None:
        """Writes 16-bit mono PCM at `rate`."""
        assert self._sink is not None
        self._ended = time.monotonic()
        if pcm and not self._samples:
            self._first = self._ended
            self.say(f"first audio after {self._first - self._began:.3f} s")
        self._samples += len(pcm) // 2
        try:
            self._sink.write(pcm)
        except BrokenPipeError:
            raise
        except (OSError, RuntimeError) as error:
            raise self._failed(error) from None
        if self._ended - self._shown >= _SHOW_EVERY_S:
            self._shown = self._ended
            self.say(f"  {self._samples / self.rate:.1f} s of speech so far")

    def summarise(self) -> None:
        took, speech = self._ended - self._began, self._samples / self.rate
        factor = took / max(speech, FRAME_SECONDS)
        self.say(f"{speech:.2f} s of speech in {took:.2f} s (real-time factor {factor:.2f})")
        if self._samples:
            self.say(f"wrote {'stdout' if self._name == STDOUT else self._name}")

    def _opened(self) -> _Sink:
        if self._name == STDOUT:
            return _Encoded(sys.stdout.buffer, encoder(self._format, self.rate))
        if self._pipe:
            pipe = self._files.enter_context(open(self._name, "wb", buffering=0))  # noqa: SIM115
            return _Encoded(pipe, encoder(self._format, self.rate))
        self._whole = WholeFile(self._name)
        if self._format == "wav":
            return _Wav(self._whole.file, self.rate)
        if self._format in ("flac", "ogg"):
            return _Sound(self._whole.file, self._format, self.rate)
        return _Encoded(self._whole.file, encoder(self._format, self.rate))

    def _failed(self, error: Exception) -> ConfigError:
        cause = getattr(error, "strerror", None) or type(error).__name__
        return ConfigError(f"Cannot write {self._name} ({cause}); choose another file with -o.")


def _format(name: str) -> str:
    """The format of a file name. Raises ConfigError for an unknown ending."""
    ending = Path(name).suffix.lower()
    if ending not in _FORMATS:
        known = ", ".join(filter(None, _FORMATS))
        raise ConfigError(f"{ending} is not a known format: name a file that ends in {known}.")
    return _FORMATS[ending]


class _Wav:
    """WAV with its length in the header."""

    def __init__(self, file: IO[bytes], rate: int) -> None:
        self._wav = wave.open(file, "wb")  # noqa: SIM115
        self._wav.setnchannels(1)
        self._wav.setsampwidth(2)
        self._wav.setframerate(rate)

    def write(self, pcm: bytes) -> None:
        self._wav.writeframesraw(pcm)

    def finish(self) -> None:
        self._wav.close()


class _Sound:
    """FLAC, or Vorbis in OGG, by libsndfile, which also writes the length into the header."""

    def __init__(self, file: IO[bytes], format: str, rate: int) -> None:
        import soundfile

        self._file: Any = soundfile.SoundFile(file, "w", rate, 1, format=format.upper())

    def write(self, pcm: bytes) -> None:
        self._file.write(np.frombuffer(pcm, "<i2"))

    def finish(self) -> None:
        self._file.close()


class _Encoded:
    """A format that can be played while it is written."""

    def __init__(self, file: IO[bytes], encoder: Encoder) -> None:
        self._file = file
        self._encoder = encoder

    def write(self, pcm: bytes) -> None:
        self._file.write(self._encoder.push(from_pcm16(pcm)))
        self._file.flush()

    def finish(self) -> None:
        self._file.write(self._encoder.finish())
        self._file.flush()
