"""An audio file that is valid at any moment while it grows."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile

from ..config import SAMPLE_RATE
from ..errors import AudioError
from .files import WholeFile
from .resample import to_pcm16

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

_OTHERS = {".flac": "FLAC", ".ogg": "OGG"}


class GrowingFile:
    """Mono speech at 24 kHz, 16 bits; the file name's suffix selects WAV, FLAC or OGG.

    The header of a WAV file is updated with every piece, so that it can be played even if the
    process was killed; the other two can be read up to their last page.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises AudioError if the file cannot be created."""
        self.path = Path(path)
        ending = self.path.suffix.lower()
        if ending not in {".wav", *_OTHERS}:
            raise AudioError(f"{self.path.name}: name a file that ends in .wav, .flac or .ogg.")
        self._whole: WholeFile | None = None
        try:
            # An existing file is replaced only when this one is complete; a new one grows in place.
            self._whole = WholeFile(self.path) if self.path.is_file() else None
            self._file = self._whole.file if self._whole else self.path.open("wb")
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
        """Append float32 samples in [-1, 1]; louder ones are clipped."""
        try:
            if isinstance(self._sink, wave.Wave_write):
                self._sink.writeframes(to_pcm16(samples))
            else:
                self._sink.write(samples)
            self._file.flush()
        except (OSError, soundfile.SoundFileError) as error:
            raise self._failed(error) from None

    def close(self, *, whole: bool = True) -> None:
        """Close the file. `whole`: it is complete and replaces an existing one."""
        try:
            self._sink.close()
            if self._whole is not None and whole:
                self._whole.commit()
            self._file.close()
        except (OSError, soundfile.SoundFileError) as error:
            raise self._failed(error) from None
        finally:
            if self._whole is not None:
                self._whole.discard()

    def _failed(self, error: Exception) -> AudioError:
        cause = getattr(error, "strerror", None) or type(error).__name__
        return AudioError(
            f"{self.path.name} cannot be written ({cause}): check the folder, its rights and space."
        )

    def __enter__(self) -> GrowingFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(whole=kind is None)
