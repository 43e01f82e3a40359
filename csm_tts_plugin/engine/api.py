"""What the rest of the project knows of the engine: plain values and one protocol.

Nothing here imports torch, so a server's tests can speak to a stand-in that fails on purpose.
Every method of `SpeechEngine` may be called from any thread and returns at once; results come back
through the sink, on the engine's own thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import CsmError

Samples = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker's text with its sound: float32, mono, 24 kHz, in [-1, 1]; None: text only."""

    speaker: str
    text: str = field(repr=False)
    audio: Samples | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class VoicePrompt:
    """A reference voice as the engine needs it.

    `key` names the content (a hash over audio and text): equal keys share one cached prefix.
    Replies are spoken as `speaker`; a turn added with that name is the same person.
    An empty `turns` is a voice of nobody: the model speaks without a reference.
    """

    key: str
    speaker: str
    turns: tuple[Turn, ...]
    private: bool = False
    """Forgotten with the last conversation that speaks in it."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How codes are drawn; None takes the checkpoint's own default, temperature 0 is greedy."""

    temperature: float | None = None
    top_k: int | None = None
    seed: int | None = None


class Reason(StrEnum):
    """Why an utterance ended."""

    END = "end"
    """The model said so: a frame whose first codebooks are all 0."""
    LENGTH = "length"
    """The limit derived from the text, or the context, was reached."""
    SILENCE = "silence"
    LOOP = "loop"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds since `say` was accepted, on the engine's clock."""

    queued: float
    """Until a slot was had."""
    prefill: float
    """Until the prompt had been read."""
    first_audio: float
    """Until the first samples left the engine."""
    total: float


@dataclass(frozen=True, slots=True)
class Audio:
    """One frame of an utterance: 1920 samples, and the codes [K] behind them; `frame` counts from
    0.
    """

    utterance: str
    frame: int
    samples: Samples = field(repr=False)
    codes: Codes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Done:
    utterance: str
    frames: int
    reason: Reason
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    utterance: str
    error: CsmError


Event = Audio | Done | Failed
"""Any number of `Audio`, then exactly one `Done` or `Failed`."""

Sink = Callable[[Event], None]
"""Runs on the engine's thread: it must neither block nor raise."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    model: str
    device: str
    dtype: str
    parameters: int
    codebooks: int
    max_context: int
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A moment's picture. `detail` says in words what it is doing, or why it is not ready."""

    ready: bool
    detail: str
    slots: int
    speaking: int
    queued: int
    queue: int
    conversations: int
    failure: CsmError | None = None
    """Why it will never be ready (again): loading failed, or the device thread ended."""
    context_used: int = 0
    """Positions that all open conversations hold."""
    context_fullest: float = 0.0
    """How full the fullest of them is, from 0 to 1; at 1 its oldest turns go."""
    voices: int = 0
    """References kept for whoever speaks in them next."""


class SpeechEngine(Protocol):
    """Many conversations spoken by one model on one device."""

    def start(self) -> None:
        """Load and warm up on the engine's thread; returns at once, `status().ready` follows."""

    def stop(self) -> None:
        """End every utterance with a typed error and the thread with it."""

    def info(self) -> EngineInfo | None:
        """None until the model is loaded."""

    def status(self) -> EngineStatus: ...

    def open(self, voice: VoicePrompt | None = None, sampling: Sampling | None = None) -> str:
        """A new conversation; its id. Raises RequestError, UnavailableError."""

    def set_voice(self, conversation: str, voice: VoicePrompt | None) -> None:
        """From the next utterance on. What was said in the old voice goes, and with it the turns of
        the person whose voice it was, unless the new one is theirs too; other turns stay.
        """

    def add_turn(self, conversation: str, turn: Turn) -> None:
        """Context: what somebody said. Prefilled as soon as the device has time."""

    def say(
        self,
        conversation: str,
        text: str,
        sink: Sink,
        *,
        sampling: Sampling | None = None,
        max_seconds: float | None = None,
        more: bool = False,
        live: bool = True,
    ) -> str:
        """Speak one sentence or so; the utterance's id.

        Utterances of a conversation are spoken one after the other in the order of `say`. `more`:
        the reply goes on after this one, so its next sentence goes ahead of other conversations'
        first ones. `live`: made at most `max_lead_s` ahead of playing; else as fast as it goes.
        Raises TextError, BusyError (with retry_after), UnavailableError.
        """

    def cancel(self, utterance: str) -> None:
        """Ends it by the next frame with `Done(reason=cancelled)`; unknown ids are ignored."""

    def keep_heard(self, conversation: str, utterance: str, frames: int) -> None:
        """Of an utterance that has ended, or is cancelled, only so many frames reached an ear: the
        others go from the conversation, as if they had never been said. Unknown ids are ignored.
        """

    def close(self, conversation: str) -> None:
        """Cancels what it still says and frees its memory; unknown ids are ignored."""

    def forget_voice(self, key: str) -> None:
        """Drop what is kept of this voice: now, or with the last conversation that speaks in it."""
