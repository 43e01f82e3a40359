"""A `SpeechEngine` without a model, to test the code around one that is slow, silent or broken.

It speaks a sine whose pitch identifies the text, in frames of 80 ms, on its own thread, and counts
what it holds, so that leaks are detected.
"""

from __future__ import annotations

import itertools
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from csm_tts_plugin.config import FRAME_SAMPLES, SAMPLE_RATE
from csm_tts_plugin.engine.api import (
    Audio,
    Done,
    EngineInfo,
    EngineStatus,
    Event,
    Failed,
    Reason,
    Sampling,
    Sink,
    Timings,
    Turn,
    VoicePrompt,
)
from csm_tts_plugin.errors import (
    BusyError,
    CsmError,
    EngineError,
    RequestError,
    UnavailableError,
)

MODES = ("normal", "slow", "stalled", "failing", "busy", "not-ready")
AMPLITUDE = 0.5
SLOW_FRAME_S = 0.04


def frames_of(text: str) -> int:
    """Length of a text's speech: one frame for four characters."""
    return max(1, len(text) // 4)


def pitch_of(text: str) -> float:
    """In Hz, one of 40, so that two texts rarely share it; below Nyquist of every rate."""
    return 200.0 + 75.0 * (zlib.crc32(text.encode()) % 40)


@dataclass(eq=False)
class _Utterance:
    id: str
    text: str
    sink: Sink
    sampling: Sampling | None
    more: bool
    began: float = field(default_factory=time.monotonic)
    frame: int = 0
    first: float = 0.0
    cancelled: bool = False

    def end(self, reason: Reason) -> Done:
        total = time.monotonic() - self.began
        return Done(self.id, self.frame, reason, Timings(0.0, 0.0, self.first, total))

    def sound(self) -> Audio:
        at = np.arange(self.frame * FRAME_SAMPLES, (self.frame + 1) * FRAME_SAMPLES)
        wave = AMPLITUDE * np.sin(2 * np.pi * pitch_of(self.text) / SAMPLE_RATE * at)
        event = Audio(self.id, self.frame, wave.astype(np.float32))
        self.frame += 1
        self.first = self.first or time.monotonic() - self.began
        return event


@dataclass(eq=False)
class _Conversation:
    voice: VoicePrompt | None
    sampling: Sampling | None
    turns: list[Turn] = field(default_factory=list)
    waiting: deque[_Utterance] = field(default_factory=deque)


class StandInEngine:
    """`mode` may be changed at any time; `fail_after` counts frames of an utterance."""

    def __init__(
        self,
        mode: str = "normal",
        *,
        slots: int = 8,
        queue: int = 16,
        fail_after: int = 2,
        frame_s: float = 0.001,
    ) -> None:
        assert mode in MODES
        self.mode = mode
        self.fail_after = fail_after
        self.failure: CsmError | None = None
        self.error: CsmError = EngineError("The stand-in failed, as it was told to.")
        self.slots, self.queue = slots, queue
        self.frame_s = frame_s
        self.conversations: dict[str, _Conversation] = {}
        self.told: dict[str, Any] = {}
        """Fields of `info` that differ from the usual ones."""
        self.said: list[tuple[str, str]] = []
        """(conversation, text) in the order of `say`."""
        self.forgotten: list[str] = []
        """Keys of voices that it was told to forget."""
        self.heard_frames: list[tuple[str, int]] = []
        """(utterance, frames) of each `keep_heard`."""
        self.cancelled: list[str] = []
        """Texts whose speech was cancelled."""
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    # SpeechEngine

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="stand-in-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(10)

    def info(self) -> EngineInfo | None:
        if self.mode == "not-ready":
            return None
        return replace(EngineInfo("stand-in", "cpu", "float32", 0, 32, 2048, {}), **self.told)

    def status(self) -> EngineStatus:
        ready = self.mode != "not-ready" and self.failure is None
        speaking = min(self.utterances, self.slots)
        return EngineStatus(
            ready=ready,
            detail="ready" if ready else "loading",
            slots=self.slots,
            speaking=speaking,
            queued=self.utterances - speaking,
            queue=self.queue,
            conversations=len(self.conversations),
            failure=self.failure,
        )

    def open(self, voice: VoicePrompt | None = None, sampling: Sampling | None = None) -> str:
        if self.mode == "not-ready":
            raise UnavailableError("The model is still loading; try again.", retry_after=1.0)
        with self._changed:
            id = f"c{next(self._ids)}"
            self.conversations[id] = _Conversation(voice, sampling)
            return id

    def set_voice(self, conversation: str, voice: VoicePrompt | None) -> None:
        self._find(conversation).voice = voice

    def add_turn(self, conversation: str, turn: Turn) -> None:
        self._find(conversation).turns.append(turn)

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
        if self.mode == "busy" or self.utterances >= self.slots + self.queue:
            raise BusyError("Every slot speaks and the queue is full.", retry_after=0.5)
        with self._changed:
            utterance = _Utterance(f"u{next(self._ids)}", text, sink, sampling, more)
            self._find(conversation).waiting.append(utterance)
            self.said.append((conversation, text))
            self._changed.notify_all()
            return utterance.id

    def cancel(self, utterance: str) -> None:
        with self._changed:
            for one in self._waiting():
                if one.id == utterance:
                    one.cancelled = True
            self._changed.notify_all()

    def keep_heard(self, conversation: str, utterance: str, frames: int) -> None:
        self.heard_frames.append((utterance, frames))

    def close(self, conversation: str) -> None:
        with self._changed:
            gone = self.conversations.pop(conversation, None)
        for one in gone.waiting if gone else ():
            self.cancelled.append(one.text)
            one.sink(one.end(Reason.CANCELLED))

    def forget_voice(self, key: str) -> None:
        self.forgotten.append(key)

    # For tests

    @property
    def utterances(self) -> int:
        """Accepted and not ended."""
        return len(self._waiting())

    @property
    def idle(self) -> bool:
        return not self.conversations

    def _find(self, conversation: str) -> _Conversation:
        if conversation not in self.conversations:
            raise RequestError("There is no such conversation.")
        return self.conversations[conversation]

    def _waiting(self) -> list[_Utterance]:
        open = list(self.conversations.values())
        return [one for conversation in open for one in list(conversation.waiting)]

    # The thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting(), timeout=1.0)
                if self._stopping:
                    return self._end_all()
                events = [event for one in self.conversations.values() for event in self._drop(one)]
                events += [event for one in self._heads() if (event := self._step(one))]
            for sink, event in events:
                sink(event)
            time.sleep(SLOW_FRAME_S if self.mode == "slow" else self.frame_s)

    def _heads(self) -> list[_Conversation]:
        ready = [one for one in self.conversations.values() if one.waiting]
        return ready[: self.slots]

    def _drop(self, conversation: _Conversation) -> Iterator[tuple[Sink, Event]]:
        """Removes what was cancelled, whether it has a slot or waits for one."""
        for one in list(conversation.waiting):
            if one.cancelled:
                conversation.waiting.remove(one)
                self.cancelled.append(one.text)
                yield one.sink, one.end(Reason.CANCELLED)

    def _step(self, conversation: _Conversation) -> tuple[Sink, Event] | None:
        one = conversation.waiting[0]
        if self.mode == "stalled":
            return None
        if self.mode == "failing" and one.frame >= self.fail_after:
            conversation.waiting.popleft()
            return one.sink, Failed(one.id, self.error)
        if one.frame < frames_of(one.text):
            return one.sink, one.sound()
        conversation.waiting.popleft()
        return one.sink, one.end(Reason.END)

    def _end_all(self) -> None:
        stopped = UnavailableError("The engine was stopped.")
        for conversation in self.conversations.values():
            while conversation.waiting:
                one = conversation.waiting.popleft()
                one.sink(Failed(one.id, stopped))
