"""One reply: sentences in, sound out at the rate asked for, in order and without a gap.

Knows nothing of LiveKit: whoever speaks gives a sink.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .audio.resample import StreamResampler, from_pcm16, to_pcm16
from .call import Call, Manner
from .client import Utterance
from .config import SAMPLE_RATE
from .errors import EngineError, EngineTimeoutError
from .text import speakable

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

_AHEAD = 4
"""Sentences that the engine knows of before they are heard: enough to go on without a gap."""
_SILENCE_S = 0.02
"""Given for text with nothing to speak: a host may take a reply without sound for a failure."""


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


@dataclass(frozen=True, slots=True)
class Style:
    """What may be changed between replies."""

    manner: Manner
    max_seconds: float | None = None


class Sink(Protocol):
    def text(self, sentence: str, seconds: float) -> None:
        """A sentence, with its white space, whose sound begins `seconds` into the reply."""

    def sound(self, pcm: bytes) -> None:
        """The next 16-bit little-endian mono samples."""


class Reply:
    """One task says each sentence as soon as it is known, so that the engine goes from one to the
    next without a gap; the other takes their sound in order.

    `style` is asked once, when the first sentence is there: a reply ends as it began.
    """

    def __init__(
        self, call: Call, style: Callable[[], Style], sink: Sink, rate: int, timeout: float
    ) -> None:
        self._call = call
        self._style = style
        self._sink = sink
        self._rate = rate
        self._timeout = timeout
        self._resampler = StreamResampler(SAMPLE_RATE, rate)
        self._said: asyncio.Queue[tuple[str, Utterance | None] | Exception | None]
        self._said = asyncio.Queue(_AHEAD)
        self._utterances: list[Utterance] = []
        self._texts = 0
        self._samples = 0

    async def speak(self, sentences: Sentences, started: Callable[[Call], None]) -> None:
        """Until the last sound of the last sentence. Raises CsmError.

        `started` is called when the first text has reached the engine. When this is left early,
        because it fails or is cancelled, the engine is told so at once.
        """
        saying = asyncio.create_task(self._say_all(sentences, started), name="csm-reply-say")
        try:
            while (item := await self._said.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                await self._play(*item)
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

    async def _cancel(self) -> None:
        for utterance in self._utterances:
            await utterance.cancel()

    async def _say_all(self, sentences: Sentences, started: Callable[[Call], None]) -> None:
        style: Style | None = None
        try:
            async with aclosing(sentences):
                async for sentence in sentences:
                    style = style or self._style()
                    utterance = await self._say(sentence, style)
                    if utterance is not None and len(self._utterances) == 1:
                        started(self._call)
                    await self._said.put((sentence.text, utterance))
        except Exception as error:  # raised where the sound is taken, after what came before it
            await self._said.put(error)
        else:
            await self._said.put(None)

    async def _say(self, sentence: Sentence, style: Style) -> Utterance | None:
        """None where there is nothing to speak."""
        text = speakable(sentence.text)
        if not text:
            return None
        try:
            async with asyncio.timeout(self._timeout):
                utterance = await self._call.say(
                    style.manner,
                    text,
                    more=sentence.more,
                    max_seconds=style.max_seconds,
                    timeout=self._timeout,
                )
        except TimeoutError:
            raise EngineTimeoutError(
                f"No conversation with an engine within {self._timeout:g} s; is it still loading?"
            ) from None
        self._utterances.append(utterance)
        return utterance

    async def _play(self, text: str, utterance: Utterance | None) -> None:
        self._texts += 1
        self._sink.text(text, self._samples / self._rate)
        if utterance is not None:
            async for chunk in utterance:
                self._push(self._resampler.push(from_pcm16(chunk.pcm)))

    def _push(self, samples: Samples) -> None:
        if len(samples):
            self._samples += len(samples)
            self._sink.sound(to_pcm16(samples))

    def _check_sound(self) -> None:
        """LiveKit would report a reply without sound with its text in the message, and the log."""
        if self._samples or not self._texts:
            return
        if self._utterances:
            raise EngineError("The engine ended the reply without a sound.")
        self._push(np.zeros(int(_SILENCE_S * self._rate), np.float32))
