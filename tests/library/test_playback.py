"""Playback with and without a loudspeaker."""

from __future__ import annotations

import logging
import sys
import threading
import types

import numpy as np
import pytest

from csm_tts_plugin.audio import playback
from tests.library.speaking import FRAME, speak


class Device:
    """Stands in for the package sounddevice: a device that asks for samples from its own thread."""

    class PortAudioError(Exception):
        pass

    def __init__(self, *, broken: bool = False, dead: bool = False) -> None:
        self.broken, self.dead = broken, dead
        self.heard: list[np.ndarray] = []
        self.calls: list[str] = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def OutputStream(self, samplerate, channels, dtype, callback):
        assert (samplerate, channels, dtype) == (24_000, 1, "float32")
        if self.broken:
            raise self.PortAudioError("Error querying device -1")
        self._callback = callback
        return self

    def start(self) -> None:
        if not self.dead:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.001):
            out = np.full((700, 1), 9.0, np.float32)
            self._callback(out, len(out), None, None)
            self.heard.append(out[:, 0])

    def _end(self, call: str) -> None:
        self.calls.append(call)
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        self._end("stop")

    def abort(self) -> None:
        self._end("abort")

    def close(self) -> None:
        self.calls.append("close")


def test_speech_is_played_whole_and_in_order(speaker, monkeypatch):
    device = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    heard = speak(speaker, "say this", play_audio=True)
    played = np.concatenate(device.heard)
    sounding = np.flatnonzero(played)
    assert np.abs(played).max() <= 1.0
    np.testing.assert_array_equal(played[played != 0], heard[heard != 0])
    assert len(sounding)
    assert device.calls == ["stop", "close"]


def test_an_interrupt_silences_the_device_at_once(speaker, monkeypatch):
    device = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", device)

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speak(speaker, "say this", play_audio=True, progress=interrupt)
    assert device.calls == ["abort", "close"]


def _no_portaudio(name: str) -> types.ModuleType:
    raise OSError("PortAudio library not found")


@pytest.mark.parametrize("lack", ["package", "library", "device"])
def test_where_nothing_can_play_speech_is_made_all_the_same(speaker, monkeypatch, caplog, lack):
    wanted = speak(speaker, "say this")
    if lack == "library":
        monkeypatch.setattr(playback, "import_module", _no_portaudio)
    else:
        module = None if lack == "package" else Device(broken=True)
        monkeypatch.setitem(sys.modules, "sounddevice", module)
    with caplog.at_level(logging.WARNING):
        heard = speak(speaker, "say this", play_audio=True)
    np.testing.assert_array_equal(heard, wanted)
    (record,) = caplog.records
    cure = {"package": "pip install", "library": "libportaudio2", "device": "connect one"}
    assert cure[lack] in record.getMessage()


def test_a_device_that_stops_asking_does_not_hold_the_caller(speaker, monkeypatch, caplog):
    device = Device(dead=True)
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    monkeypatch.setattr(playback, "_GRACE_S", 0.0)
    with caplog.at_level(logging.WARNING):
        assert len(speak(speaker, "say this", play_audio=True, max_new_tokens=2)) == 2 * FRAME
    assert "stopped playing" in caplog.text
