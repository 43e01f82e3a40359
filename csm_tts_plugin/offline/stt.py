"""Whisper as LiveKit's speech-to-text: a thin client of the worker's own transcriber.

It hears whole turns, so use it as `stt.StreamAdapter(stt=OfflineSTT(url), vad=...)`.
"""

from __future__ import annotations

import aiohttp
import numpy as np
from livekit.agents import (
    APIConnectionError,
    APIConnectOptions,
    APIStatusError,
    APITimeoutError,
    LanguageCode,
    stt,
    utils,
)
from livekit.agents.types import NOT_GIVEN, NotGivenOr
from livekit.agents.utils import AudioBuffer, is_given

from livekit import rtc

SAMPLE_RATE = 16_000


class OfflineSTT(stt.STT[str]):
    """`url`: where `OfflineProcess` listens."""

    def __init__(self, url: str, *, language: str = "en") -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=False, interim_results=False))
        self._url = url.rstrip("/")
        self._language = language
        self._session: aiohttp.ClientSession | None = None

    @property
    def model(self) -> str:
        return "whisper-base"

    @property
    def provider(self) -> str:
        return "offline"

    async def _recognize_impl(
        self,
        buffer: AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        spoken = language if is_given(language) else self._language
        text = await self._ask(to_pcm(buffer), spoken, conn_options.timeout)
        return stt.SpeechEvent(
            type=stt.SpeechEventType.FINAL_TRANSCRIPT,
            request_id=utils.shortuuid(),
            alternatives=[stt.SpeechData(language=LanguageCode(spoken), text=text)],
        )

    async def _ask(self, pcm: bytes, language: str, timeout: float) -> str:
        """Raises APITimeoutError, APIStatusError, APIConnectionError."""
        if self._session is None:
            self._session = aiohttp.ClientSession()
        try:
            async with self._session.post(
                f"{self._url}/transcribe",
                params={"language": language},
                data=pcm,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as answer:
                if answer.status != 200:
                    raise APIStatusError("Whisper refused a turn", status_code=answer.status)
                return str((await answer.json())["text"])
        except TimeoutError:
            raise APITimeoutError("Whisper did not answer in time") from None
        except (aiohttp.ClientError, KeyError, ValueError):
            raise APIConnectionError("Whisper cannot be reached") from None

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def to_pcm(buffer: AudioBuffer) -> bytes:
    """Frames of any rate and number of channels as 16-bit mono PCM at 16 kHz."""
    frame = utils.merge_frames(buffer)
    if frame.num_channels > 1:
        samples = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
        mono = samples.mean(axis=1).astype(np.int16)
        frame = rtc.AudioFrame(mono.tobytes(), frame.sample_rate, 1, len(mono))
    if frame.sample_rate == SAMPLE_RATE:
        return bytes(frame.data)
    resampler = rtc.AudioResampler(frame.sample_rate, SAMPLE_RATE)
    frames = [*resampler.push(frame), *resampler.flush()]
    return b"".join(bytes(part.data) for part in frames)
