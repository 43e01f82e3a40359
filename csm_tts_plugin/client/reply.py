"""One reply: sentences in, audio out at the requested rate, in order and without gaps.

Independent of LiveKit: audio and texts are passed to a sink.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .. import telemetry
from ..audio.resample import StreamResampler, from_pcm16, to_pcm16
from ..config import FRAME_SECONDS, SAMPLE_RATE
from ..errors import BusyError, EngineError, EngineTimeoutError, UnavailableError
from ..text.spoken import spoken
from .call import Call
from .engine import Utterance

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

logger = logging.getLogger("csm_tts_plugin")

_AHEAD = 4
"""The most sentences given to the engine and not yet received: enough to go on without a gap."""
_SILENCE_S = 0.02
"""Seconds of silence for a text with nothing to speak, because LiveKit treats a reply without audio
as a failure."""
_RESUME_S = 90.0
"""Time in the middle of a reply for an engine to restart or another to be found: CSM-1B may take a
minute to load."""
_RESUME_POLL_S = 0.1
_RESUMES = 3
"""How often one sentence is spoken again after its engine was lost."""
_BUSY_REST_S = 1.0
"""Pause after a refusal by a full engine without `retry_after`."""


@dataclass(frozen=True, slots=True)
class Sentence:
    text: str
    more: bool
    """Whether the reply is known to go on after it."""


Sentences = AsyncGenerator[Sentence, None]


def numbered(sentences: list[str], *, more_to_come: bool) -> Iterator[Sentence]:
    last = len(sentences) - 1
    for at, sentence in enumerate(sentences):
        yield Sentence(sentence, more=at < last or more_to_come)


@dataclass(eq=False, slots=True)
class _Said:
    """A sentence in progress; `utterance` is None if there is nothing to speak in it."""

    sentence: Sentence = field(repr=False)
    utterance: Utterance | None
    resumes: int = 0
    again: bool = False
    """It must be said again, because its engine was left."""
    refusals: int = 0
    refused_at: float = 0.0
    """Time of the first refusal by a full engine."""

    @property
    def made(self) -> bool:
        """Whether all of its audio has arrived."""
        return self.utterance is not None and self.utterance.result is not None

    @property
    def lost(self) -> bool:
        """Whether its engine was lost or left before its end."""
        error = self.utterance and self.utterance.error
        return self.again or isinstance(error, UnavailableError)


class Sink(Protocol):
    def text(self, sentence: str, seconds: float) -> None:
        """A sentence with its white space, whose audio begins at `seconds` of the reply."""

    def sound(self, pcm: bytes) -> None:
        """The next 16-bit little-endian mono samples."""


class Reply:
    """One task sends each sentence as soon as it is known, so that the engine can continue without
    a gap; another one receives their audio in order.

    `max_seconds` is called for each sentence; the voice is that of the call when a sentence begins.

    If an engine is lost after the first audio, the reply continues: the unfinished sentence is
    spoken again from its beginning, and those after it, in the next conversation. If an engine is
    too full for a sentence, the next engine is tried; within a reply engines are asked again after
    their `retry_after`, for at most `timeout` seconds.
    """

    def __init__(
        self,
        call: Call,
        max_seconds: Callable[[], float | None],
        sink: Sink,
        rate: int,
        timeout: float,
    ) -> None:
        self._call = call
        self._max_seconds = max_seconds
        self._sink = sink
        self._rate = rate
        self._timeout = timeout
        self._resampler = StreamResampler(SAMPLE_RATE, rate)
        self._said: asyncio.Queue[_Said | Exception | None] = asyncio.Queue(_AHEAD)
        self._unheard: deque[_Said] = deque()
        """Sentences that were sent and not completely received, in order."""
        self._saying = asyncio.Lock()
        self._utterances: list[Utterance] = []
        self._begun: dict[Utterance, float] = {}
        """Seconds of the reply at which the audio of each utterance begins."""
        self._texts = 0
        self._samples = 0

    async def speak(self, sentences: Sentences, started: Callable[[Call], None]) -> None:
        """Speak all sentences; returns after the last audio. Raises CsmError.

        `started` is called when the engine has the first text. If this fails or is cancelled, the
        utterances are cancelled in the engine at once.
        """
        saying = asyncio.create_task(self._say_all(sentences, started), name="csm-reply-say")
        try:
            while (item := await self._said.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                await self._play(item)
            self._push(self._resampler.flush())
            self._check_sound()
        except EngineTimeoutError:
            self._call.drop()
            raise
        finally:
            await self._cancel()
            saying.cancel()
            await asyncio.wait([saying])
            await self._cancel()  # what was said while the task ended

    def heard(self, seconds: float) -> None:
        """Report that only `seconds` of this interrupted reply were heard, so that the engine drops
        the rest from the context.
        """
        for utterance in self._utterances:
            begun = self._begun.get(utterance, seconds)
            frames = max(0, round((seconds - begun) / FRAME_SECONDS))
            result = utterance.result
            if result is None or frames < result.frames:
                utterance.heard(frames)

    async def _cancel(self) -> None:
        for utterance in self._utterances:
            await utterance.cancel()

    async def _say_all(self, sentences: Sentences, started: Callable[[Call], None]) -> None:
        try:
            async with aclosing(sentences):
                async for sentence in sentences:
                    async with self._saying:
                        said = _Said(sentence, await self._say_somewhere(sentence))
                        self._unheard.append(said)
                    if said.utterance is not None and len(self._utterances) == 1:
                        started(self._call)
                    await self._said.put(said)
        except Exception as error:  # raised where the sound is taken, after what came before it
            await self._said.put(error)
        else:
            await self._said.put(None)

    async def _say_somewhere(self, sentence: Sentence | None = None) -> Utterance | None:
        """Say lost sentences again, and `sentence` after them. Waits for an engine in the middle of
        a reply only; before that the caller decides about retries.
        """
        deadline = asyncio.get_running_loop().time() + _RESUME_S
        while True:
            try:
                await self._say_lost_again()
                return None if sentence is None else await self._say(sentence)
            except (UnavailableError, EngineTimeoutError, BusyError) as error:
                if not self._samples or asyncio.get_running_loop().time() > deadline:
                    raise
                wait = (error.retry_after or 0.0) if isinstance(error, BusyError) else 0.0
            await asyncio.sleep(max(wait, _RESUME_POLL_S))

    async def _say_lost_again(self) -> None:
        """Say lost sentences again in the next conversation, in their order."""
        for said in list(self._unheard):
            if not said.lost or not (self._samples or said.again) or said.resumes >= _RESUMES:
                continue
            said.utterance = await self._say(said.sentence)
            # Counted for the sentence being heard only: those after it are lost together with it.
            said.resumes += said is self._unheard[0] and not said.again
            said.again = False
            telemetry.resumes.inc()

    async def _say(self, sentence: Sentence) -> Utterance | None:
        """Send a sentence; None if there is nothing to speak in it."""
        text = spoken(sentence.text)
        if not text:
            return None
        try:
            async with asyncio.timeout(self._timeout):
                utterance = await self._call.say(
                    text,
                    more=sentence.more,
                    max_seconds=self._max_seconds(),
                    timeout=self._timeout,
                )
        except TimeoutError:
            raise EngineTimeoutError(
                f"No conversation with an engine within {self._timeout:g} s; is it still loading?"
            ) from None
        self._utterances.append(utterance)
        return utterance

    async def _play(self, said: _Said) -> None:
        self._texts += 1
        self._sink.text(said.sentence.text, self._samples / self._rate)
        while (utterance := said.utterance) is not None:
            self._begun[utterance] = self._samples / self._rate
            try:
                async for chunk in utterance:
                    self._push(self._resampler.push(from_pcm16(chunk.pcm)))
                break
            except BusyError as refusal:
                await self._ask_again(said, refusal)
                if said.utterance is utterance:
                    raise
            except UnavailableError:
                await self._resume(said)
                if said.utterance is utterance:
                    raise
        self._unheard.popleft()

    async def _resume(self, said: _Said) -> None:
        """Say a lost sentence again; changes nothing if that is of no use."""
        if self._samples:
            logger.warning("the engine was lost in the middle of a reply; resuming on the next one")
            async with self._saying:
                await self._say_somewhere()

    async def _ask_again(self, said: _Said, refusal: BusyError) -> None:
        """Say a refused sentence again; changes nothing if the time is up.

        Each engine is asked once without a pause; after that, and only within a reply, with pauses.
        """
        engines, now = await self._call.count_engines(), asyncio.get_running_loop().time()
        said.refused_at = said.refused_at or now
        said.refusals += 1
        if said.refusals % engines == 0:
            left = said.refused_at + self._timeout - now
            if not self._samples or left <= 0:
                return
            await asyncio.sleep(min(refusal.retry_after or _BUSY_REST_S, left))
        async with self._saying:
            said.again = True
            if engines > 1:
                self._call.leave(refusal.retry_after or _BUSY_REST_S)
                for one in self._unheard:  # those after it were said to the engine that is left
                    one.again = one.utterance is not None and not one.made
            await self._say_somewhere()

    def _push(self, samples: Samples) -> None:
        if len(samples):
            self._samples += len(samples)
            self._sink.sound(to_pcm16(samples))

    def _check_sound(self) -> None:
        """Adds silence to a reply with nothing to speak. Raises EngineError if the engine gave no
        audio; LiveKit's own error for that would contain the text.
        """
        if self._samples or not self._texts:
            return
        if self._utterances:
            raise EngineError("The engine ended the reply without a sound.")
        self._push(np.zeros(int(_SILENCE_S * self._rate), np.float32))
