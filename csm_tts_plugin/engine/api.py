"""The engine's interface for the rest of the project: plain values and one protocol.

Nothing here imports torch, so tests of the server can use a stand-in that fails on request. Every
method of `SpeechEngine` may be called from any thread and returns at once; results are passed to
the sink, on the engine's own thread.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, CsmError, install

Samples = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]

PACKAGES = ("torch", "transformers", "safetensors")
"""Packages that an engine needs beyond the base install; the extra `engine` installs them."""


def require_packages() -> None:
    """Raises ConfigError where a package of the engine is missing. Imports none of them."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise missing_packages(*missing)


def missing_packages(*names: str) -> ConfigError:
    return ConfigError(
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not installed;"
        f" {install('engine')}, or name a running engine by CSM_ENGINE_URL."
    )


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
    With empty `turns` the model speaks without reference audio.
    """

    key: str
    speaker: str
    turns: tuple[Turn, ...]
    private: bool = False
    """The cached prefix is dropped when the last conversation with this voice closes."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How codes are sampled. None: the checkpoint's default; temperature 0: greedy."""

    temperature: float | None = None
    top_k: int | None = None
    seed: int | None = None


class Reason(StrEnum):
    """Why an utterance ended."""

    END = "end"
    """The model generated its end frame: all codebooks but the last are 0."""
    LENGTH = "length"
    """The limit derived from the text, or the context, was reached."""
    SILENCE = "silence"
    LOOP = "loop"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds since `say` was accepted, on the engine's clock."""

    queued: float
    """Until the utterance got a slot."""
    prefill: float
    """Until the prompt was prefilled."""
    first_audio: float
    """Until the first samples left the engine."""
    total: float


@dataclass(frozen=True, slots=True)
class Audio:
    """One frame of an utterance: 1920 samples and the codes [K] they were decoded from; `frame`
    counts from 0.
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
"""Called on the engine's thread: it must neither block nor raise."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    model: str
    device: str
    dtype: str
    parameters: int
    codebooks: int
    max_context: int
    versions: dict[str, str]
    adapter: str | None = None
    """The name of the merged LoRA adapter."""
    watermark: str = "off"
    """The kind of watermark in its speech."""
    context_turns: int | None = None
    """The most turns of a call in the context of a reply; None: as many as fit."""
    reference_seconds: float | None = None
    """The longest usable reference audio; 0: only the stock voice; None: no limit of the model's
    own.
    """
    follows: str | None = None
    """What replies take from a reference that the model does not clone, e.g. `pitch and size`;
    None: the whole voice, or nothing if no reference is used.
    """
    path: str = "PyTorch"
    """Which kernels compute the frames: PyTorch's alone, or the names of our own in use."""

    @property
    def clones(self) -> bool:
        """Whether replies are in the voice of the reference audio. Otherwise they have what
        `follows` names of it, or the stock voice always speaks.
        """
        return self.reference_seconds != 0 and self.follows is None


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine's state at one moment. `detail` describes in words what it does, or why it is not
    ready.
    """

    ready: bool
    detail: str
    slots: int
    speaking: int
    queued: int
    queue: int
    conversations: int
    failure: CsmError | None = None
    """Why the engine is permanently unusable: loading failed, or its thread ended."""
    context_used: int = 0
    """Context positions of all open conversations."""
    context_fullest: float = 0.0
    """The fullest context of them as a share of the limit, 0 to 1; at 1 its oldest turns are
    dropped.
    """
    voices: int = 0
    """Cached references."""


class SpeechEngine(Protocol):
    """One model on one device that speaks for many conversations at a time."""

    def start(self) -> None:
        """Begin to load and warm up on the engine's thread. Returns at once; see
        `status().ready`.
        """

    def stop(self) -> None:
        """End every utterance with a typed error, then the engine's thread."""

    def info(self) -> EngineInfo | None:
        """None until the model is loaded."""

    def status(self) -> EngineStatus: ...

    def open(self, voice: VoicePrompt | None = None, sampling: Sampling | None = None) -> str:
        """Open a conversation; returns its id. Raises RequestError, UnavailableError."""

    def set_voice(self, conversation: str, voice: VoicePrompt | None) -> None:
        """Change the voice from the next utterance on. Utterances in the old voice are removed from
        the context, and so are the turns of the old voice's speaker unless the new voice has the
        same speaker. Other turns stay.
        """

    def add_turn(self, conversation: str, turn: Turn) -> None:
        """Add a speaker's turn to the context. It is prefilled as soon as the device has time."""

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
        """Speak about one sentence; returns the utterance's id.

        Utterances of a conversation are spoken in the order of the calls. `more`: the reply goes
        on after this utterance, so its next sentence has priority over other conversations' first
        ones. `live`: generated at most `max_lead_s` ahead of playback; otherwise as fast as
        possible. Raises TextError, BusyError (with retry_after), UnavailableError.
        """

    def cancel(self, utterance: str) -> None:
        """End the utterance by the next frame with `Done(reason=cancelled)`. Unknown ids are
        ignored.
        """

    def keep_heard(self, conversation: str, utterance: str, frames: int) -> None:
        """Keep only the first `frames` frames of an ended or cancelled utterance in the context,
        because the listener heard no more of it. Unknown ids are ignored.
        """

    def close(self, conversation: str) -> None:
        """Cancel the conversation's utterances and free its memory. Unknown ids are ignored."""

    def forget_voice(self, key: str) -> None:
        """Drop what is cached of this voice: now, or when the last conversation with it closes."""
