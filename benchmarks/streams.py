"""Engines with random weights, and streams whose frames are timed: for capacity and first audio."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from common import random_model, ready_engine

from csm_tts_plugin.config import FRAME_SECONDS, EngineConfig
from csm_tts_plugin.engine.api import Audio, Done, Event, Sampling, Turn, VoicePrompt
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.engine.loading import TINY_FOLDER, Checkpoint, load_checkpoint

TEXT = "It was the best of times, it was the worst of times, and nobody knew which one it would be."


def engine_of(size: str, device: str, slots: int, threads: int | None) -> Engine:
    """A ready engine with a model of `size`; `tiny` is the trained small model."""
    config = EngineConfig(model=size, device=device, slots=slots, queue=slots, threads=threads)
    checkpoint = load_checkpoint(config) if size == "tiny" else _random(size, device)
    return ready_engine(config, checkpoint)


def path_of(engine: Engine) -> str | None:
    """Which kernels compute its frames."""
    info = engine.info()
    return info.path if info else None


def _random(size: str, device: str) -> Checkpoint:
    from transformers import AutoProcessor

    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    # Any tokenizer will do: the meaning of tokens does not affect the time.
    processor = AutoProcessor.from_pretrained(TINY_FOLDER)
    return Checkpoint(size, random_model(size, device, dtype), processor, torch.device(device))


def reference(seconds: float = 6.0, seed: int = 0) -> VoicePrompt:
    """A voice of noise: only its length affects the time."""
    rng = np.random.default_rng(seed)
    samples = (rng.standard_normal(int(24_000 * seconds)) * 0.1).astype(np.float32)
    return VoicePrompt(f"noise-{seed}", "caller", (Turn("caller", TEXT, samples),))


@dataclass
class Listener:
    """A sink that notes the times of one utterance's frames."""

    asked: float = 0.0
    moments: list[float] = field(default_factory=list)
    error: str | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Audio):
            self.moments.append(time.monotonic())
            return
        if not isinstance(event, Done):
            self.error = str(event.error)
        self.over.set()

    def first_audio(self) -> float:
        return self.moments[0] - self.asked

    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.moments, self.moments[1:], strict=False)]

    def late_frames(self) -> int:
        """Number of frames that arrived too late for playback that began with the first one."""
        start = self.moments[0]
        due = (start + number * FRAME_SECONDS for number in range(len(self.moments)))
        return sum(
            moment > deadline + 1e-3 for moment, deadline in zip(self.moments, due, strict=True)
        )


def speak(engine: Engine, conversation: str, seconds: float, *, live: bool = True) -> Listener:
    listener = Listener(asked=time.monotonic())
    text = " ".join([TEXT] * max(1, round(seconds / 6)))
    sampling = Sampling(temperature=0.9, top_k=50)
    engine.say(conversation, text, listener, sampling=sampling, max_seconds=seconds, live=live)
    return listener
