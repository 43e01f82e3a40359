"""Whisper as LiveKit speech-to-text: a client of the worker's child process.

Whisper transcribes a whole turn at once. To save this time at the end of a turn, a turn is
transcribed at each pause of the caller. If no speech follows, this is the final transcript.
"""

from __future__ import annotations

import asyncio

import aiohttp
import numpy as np
from livekit.agents import (
    APIConnectionError,
    APIConnectOptions,
    APIError,
    APIStatusError,
    APITimeoutError,
    LanguageCode,
    stt,
    utils,
    vad,
)
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN, NotGivenOr
from livekit.agents.utils import AudioBuffer, is_given

from livekit import rtc

SAMPLE_RATE = 16_000
PAUSE_S = 0.09
"""Silence after which a turn is transcribed early: three windows of voice activity detection. For
11 English recordings at two levels the transcript was then the same as at the end of the turn. 6 of
the 14 turns of `make setup` had such a pause inside, where the transcript is discarded."""
_LONGEST_S = 60.0
"""Longest turn; more audio is ignored."""


class OfflineSTT(stt.STT[str]):
    """`url`: where `OfflineProcess` listens. `vad`: voice activity detection that separates turns;
    needed for `stream`, which otherwise raises ValueError.
    """

    def __init__(self, url: str, *, vad: vad.VAD | None = None, language: str = "en") -> None:
        streams = vad is not None
        super().__init__(
            capabilities=stt.STTCapabilities(streaming=streams, interim_results=streams)
        )
        self._url = url.rstrip("/")
        self._vad = vad
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

    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> TurnStream:
        if self._vad is None:
            raise ValueError("OfflineSTT needs a `vad` to stream")
        return TurnStream(self, self._vad, language=language, conn_options=conn_options)

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


class TurnStream(stt.RecognizeStream):
    """Separates a stream of audio into turns and transcribes each at the caller's pauses.

    A pause gives a PREFLIGHT_TRANSCRIPT, with which a host may begin its reply. If the turn ends
    there, the FINAL_TRANSCRIPT is the same. If speech follows, the whole turn is transcribed again
    at the next pause. Unchanged audio is never transcribed twice.
    """

    def __init__(
        self,
        owner: OfflineSTT,
        vad: vad.VAD,
        *,
        language: NotGivenOr[str],
        conn_options: APIConnectOptions,
    ) -> None:
        once = APIConnectOptions(max_retry=0, timeout=conn_options.timeout)  # `recognize` retries
        super().__init__(stt=owner, conn_options=once, sample_rate=SAMPLE_RATE)
        self._owner = owner
        self._vad = vad
        self._language = language
        self._request_options = conn_options
        self._turn: list[rtc.AudioFrame] = []
        self._seconds = 0.0
        self._ahead: asyncio.Task[stt.SpeechEvent] | None = None

    async def _run(self) -> None:
        detector = self._vad.stream()
        tasks = [
            asyncio.create_task(self._forward(detector), name="csm-stt-input"),
            asyncio.create_task(self._listen(detector), name="csm-stt-turns"),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            self._drop()
            await utils.aio.cancel_and_wait(*tasks)
            await detector.aclose()

    async def _forward(self, detector: vad.VADStream) -> None:
        async for item in self._input_ch:
            if isinstance(item, rtc.AudioFrame):
                detector.push_frame(item)
            else:
                detector.flush()
        detector.end_input()

    async def _listen(self, detector: vad.VADStream) -> None:
        async for event in detector:
            if event.type == vad.VADEventType.START_OF_SPEECH:
                self._drop()
                self._turn, self._seconds = [], 0.0
                self._add(event.frames)
                self._event_ch.send_nowait(stt.SpeechEvent(stt.SpeechEventType.START_OF_SPEECH))
            elif event.type == vad.VADEventType.END_OF_SPEECH:
                await self._end(event)
            elif event.speaking:
                self._hear(event)

    def _hear(self, event: vad.VADEvent) -> None:
        self._add(event.frames)
        if event.raw_accumulated_silence < PAUSE_S:
            self._drop()
        elif self._ahead is None:
            work = self._transcribe_ahead(list(self._turn))
            self._ahead = asyncio.create_task(work, name="csm-stt-ahead")

    def _add(self, frames: list[rtc.AudioFrame]) -> None:
        if self._seconds < _LONGEST_S:
            self._turn += frames
            self._seconds += sum(frame.duration for frame in frames)

    async def _transcribe_ahead(self, turn: list[rtc.AudioFrame]) -> stt.SpeechEvent:
        """Does not use the base's `recognize`, which would report failures that may not matter."""
        event = await self._owner._recognize_impl(
            turn, language=self._language, conn_options=self._request_options
        )
        if event.alternatives[0].text:
            preflight = stt.SpeechEventType.PREFLIGHT_TRANSCRIPT
            self._event_ch.send_nowait(stt.SpeechEvent(preflight, alternatives=event.alternatives))
        return event

    async def _end(self, event: vad.VADEvent) -> None:
        ended = stt.SpeechEvent(stt.SpeechEventType.END_OF_SPEECH)
        ended.speech_end_time = ended.created_at - event.silence_duration - event.inference_duration
        self._event_ch.send_nowait(ended)
        try:
            final = await self._transcript()
        except APIError:
            # `recognize` has reported it. The stream continues: a new one would lose what is said
            # meanwhile and count as a second failure, and a session ends after a few.
            return
        finally:
            self._turn, self._ahead = [], None
        if final.alternatives and final.alternatives[0].text:
            final.speech_end_time = ended.speech_end_time
            self._event_ch.send_nowait(final)

    async def _transcript(self) -> stt.SpeechEvent:
        """Transcript of the turn that has ended: the early one, unless that failed."""
        if self._ahead is not None:
            try:
                return await self._ahead
            except APIError:
                pass
        return await self._owner.recognize(
            self._turn, language=self._language, conn_options=self._request_options
        )

    def _drop(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._ahead = None


def to_pcm(buffer: AudioBuffer) -> bytes:
    """Converts frames of any rate and number of channels to 16-bit mono PCM at 16 kHz."""
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
