"""A sound file that is whole at any moment while it grows."""

from __future__ import annotations

import wave
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

import soundfile

from ..config import SAMPLE_RATE
from ..errors import AudioError
from .resample import to_pcm16

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

_OTHERS = {".flac": "FLAC", ".ogg": "OGG"}


class GrowingFile:
    """Mono speech at 24 kHz, 16 bits; the ending decides between WAV, FLAC and OGG.

    A WAV's header is brought up to date with every piece, so that a file whose writer was killed
    still plays; the other two can be read up to where they stop.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises AudioError where the file cannot be made."""
        self.path = Path(path)
        ending = self.path.suffix.lower()
        if ending not in {".wav", *_OTHERS}:
            raise AudioError(f"{self.path.name}: name a file that ends in .wav, .flac or .ogg.")
        try:
            self._file: IO[bytes] = self.path.open("wb")
        except OSError as error:
            raise self._failed(error) from None
        self._sink = self._wav() if ending == ".wav" else self._other(_OTHERS[ending])

    def _wav(self) -> wave.Wave_write:
        sink = wave.open(self._file, "wb")  # noqa: SIM115
        sink.setnchannels(1)
        sink.setsampwidth(2)
        sink.setframerate(SAMPLE_RATE)
        return sink

    def _other(self, kind: str) -> soundfile.SoundFile:
        return soundfile.SoundFile(self._file, "w", SAMPLE_RATE, 1, format=kind)

    def write(self, samples: Samples) -> None:
        """Float32 samples in [-1, 1]; louder ones clip."""
        try:
            if isinstance(self._sink, wave.Wave_write):
                self._sink.writeframes(to_pcm16(samples))
            else:
                self._sink.write(samples)
            self._file.flush()
        except (OSError, soundfile.SoundFileError) as error:
            raise self._failed(error) from None

    def close(self) -> None:
        try:
            self._sink.close()
            self._file.close()
        except (OSError, soundfile.SoundFileError) as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> AudioError:
        cause = getattr(error, "strerror", None) or type(error).__name__
        return AudioError(
            f"{self.path.name} cannot be written ({cause}): check the folder, its rights and space."
        )

    def __enter__(self) -> GrowingFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
