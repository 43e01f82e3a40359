"""Shared helpers of the plugin's tests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
from livekit.agents import APIConnectOptions, tts
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT

from csm_tts_plugin.tts import TTS
from tests.server.conftest import pitch
from tests.support.stand_in_engine import StandInEngine, pitch_of

PATIENT = APIConnectOptions(max_retry=0, timeout=120.0)


class RecordingEngine(StandInEngine):
    """Records the context and options of each sentence."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.heard: list[SimpleNamespace] = []

    def say(self, conversation, text, sink, *, sampling=None, max_seconds=None, **rest):
        context = self.conversations[conversation]
        self.heard.append(
            SimpleNamespace(
                conversation=conversation,
                text=text,
                voice=context.voice.key if context.voice else None,
                turns=[(turn.speaker, turn.text) for turn in context.turns],
                audio=[turn.audio for turn in context.turns],
                sampling=sampling,
                max_seconds=max_seconds,
                more=rest.get("more"),
            )
        )
        return super().say(
            conversation, text, sink, sampling=sampling, max_seconds=max_seconds, **rest
        )


@dataclass
class Speech:
    """The output of a stream, as LiveKit's agent sees it."""

    events: list[tts.SynthesizedAudio] = field(default_factory=list)

    def add(self, event: tts.SynthesizedAudio) -> None:
        self.events.append(event)

    @property
    def samples(self) -> np.ndarray:
        parts = [np.frombuffer(event.frame.data, np.int16) for event in self.events]
        return np.concatenate(parts) / 32768.0 if parts else np.zeros(0)

    @property
    def rate(self) -> int:
        return self.events[0].frame.sample_rate

    @property
    def transcripts(self) -> list:
        """The timed strings of all frames, in order."""
        return [
            text
            for event in self.events
            for text in event.frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, [])
        ]

    def sounds_like(self, text: str, begin: float = 0.0, end: float = 1.0) -> bool:
        """Whether this part of it is the stand-in's sound of `text` and of nothing else."""
        samples = self.samples[int(begin * len(self.samples)) : int(end * len(self.samples))]
        return abs(pitch(samples, self.rate) - pitch_of(text)) < 25.0


@dataclass
class Events:
    """What a TTS emitted."""

    metrics: list = field(default_factory=list)
    errors: list = field(default_factory=list)

    def watch(self, speaker: TTS) -> Events:
        speaker.on("metrics_collected", self.metrics.append)
        speaker.on("error", self.errors.append)
        return self


async def drain(stream) -> Speech:
    speech = Speech()
    async with asyncio.timeout(60):
        async for event in stream:
            speech.add(event)
    return speech


async def speak(speaker: TTS, *pieces: str, options=PATIENT, how: str = "stream") -> Speech:
    """A whole reply, by `stream` or `synthesize`."""
    if how == "synthesize":
        async with speaker.synthesize("".join(pieces), conn_options=options) as stream:
            return await drain(stream)
    async with speaker.stream(conn_options=options) as stream:
        for piece in pieces:
            stream.push_text(piece)
        stream.end_input()
        return await drain(stream)
