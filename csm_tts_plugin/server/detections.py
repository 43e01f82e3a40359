"""Watermark detection in a thread, one recording after the other."""

from __future__ import annotations

import asyncio
from typing import Any

from ..audio.reference import Bounds, decode_recording
from ..config import SAMPLE_RATE, Limits
from ..errors import BusyError

_RETRY_S = 2.0


class Detections:
    """Runs one detection at a time, because it takes CPU time from live streams. A bounded number
    of requests wait.

    `here`: number of requests that wait or run.
    """

    def __init__(self, most: int) -> None:
        self._most, self.here = most, 0
        self._turn = asyncio.Lock()

    async def detect(self, data: bytes, limits: Limits) -> dict[str, Any]:
        """The answer of `/v1/audio/detect` for an audio file. Raises AudioError, BusyError,
        ModelLoadError.
        """
        if self.here >= self._most:
            raise BusyError(
                f"{self.here} recordings are looked at or wait for it; try again soon.",
                retry_after=_RETRY_S,
            )
        self.here += 1
        try:
            async with self._turn:
                return await asyncio.shield(asyncio.to_thread(_detected, data, limits))
        finally:
            self.here -= 1


def _detected(data: bytes, limits: Limits) -> dict[str, Any]:
    samples = decode_recording(data, Bounds.of_detection(limits))
    from ..audio.detection import detect as look  # takes seconds: not for what is no recording

    length = round(len(samples) / SAMPLE_RATE, 2)
    return {**look(samples).as_dict(), "length": length, "watermark": "perth"}
