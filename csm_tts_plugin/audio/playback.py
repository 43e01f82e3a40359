"""Plays speech on this machine while it is generated, with the optional package `sounddevice`.

The device fetches samples from its own thread, so generating never waits for playback, and a late
chunk is a pause.
"""

from __future__ import annotations

import logging
import threading
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import SAMPLE_RATE
from ..errors import install

log = logging.getLogger("csm_tts_plugin.audio")

Samples = npt.NDArray[np.float32]

_GRACE_S = 2.0
"""Seconds beyond the duration of the speech after which a device is given up."""


class Loudspeaker:
    """Plays mono float32 samples at 24 kHz. Without a usable device it does nothing, after one
    warning.
    """

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._pieces: list[Samples] = []
        self._waiting = 0
        self._stream: Any = None
        try:
            self._stream = _open(self._fill)
        except Exception as error:
            # PortAudio raises different errors for each driver; none of them may end the speech.
            log.warning("Speech is not played: %s.", _explained(error))

    def play(self, samples: Samples) -> None:
        """Queue samples; returns at once."""
        if self._stream is not None:
            with self._ready:
                self._pieces.append(np.clip(samples, -1.0, 1.0))
                self._waiting += len(samples)

    def drain(self) -> None:
        """Wait until everything was played, with a time limit: the device may be unplugged."""
        with self._ready:
            patience = self._waiting / SAMPLE_RATE + _GRACE_S
            if not self._ready.wait_for(lambda: not self._waiting, patience):
                log.warning(
                    "The sound device stopped playing; the rest of the speech is not heard."
                )

    def _fill(self, out: npt.NDArray[np.float32], frames: int, time: Any, status: Any) -> None:
        """The device's callback: fills `out` [frames, 1], with silence if
        no speech is available.
        """
        out.fill(0.0)
        with self._ready:
            place = 0
            while self._pieces and place < frames:
                piece = self._pieces.pop(0)
                count = min(len(piece), frames - place)
                out[place : place + count, 0] = piece[:count]
                if count < len(piece):
                    self._pieces.insert(0, piece[count:])
                place += count
            self._waiting -= place
            self._ready.notify_all()

    def __enter__(self) -> Loudspeaker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Play to the end; after an exception stop at once."""
        if self._stream is None:
            return
        try:
            if kind is None:
                self.drain()
                self._stream.stop()
            else:
                self._stream.abort()
        finally:
            self._stream.close()


def _open(fill: Any) -> Any:
    sounddevice = import_module("sounddevice")
    stream = sounddevice.OutputStream(
        samplerate=SAMPLE_RATE, channels=1, dtype="float32", callback=fill
    )
    stream.start()
    return stream


def _explained(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"the package sounddevice is missing; {install('playback')}"
    if isinstance(error, OSError):
        return "the library PortAudio is missing; install it (Debian: libportaudio2)"
    return f"no sound device can be used ({type(error).__name__}); connect one"
