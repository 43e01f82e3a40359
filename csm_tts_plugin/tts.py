"""CSM as a LiveKit text-to-speech plugin.

A `TTS` is the voice of one call: its replies share a conversation in the engine, so that each has
the ones before it as context. Audio arrives at 24 kHz and is resampled here, continuously within a
reply.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from livekit.agents import (
    APIConnectionError,
    APIConnectOptions,
    APIError,
    APIStatusError,
    APITimeoutError,
    tokenize,
    tts,
    utils,
)
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN, NotGivenOr, TimedString

from livekit import rtc

from .audio.resample import to_float32
from .client.call import Call, Manner, check_seconds, wire_voice
from .client.engines import engine_for
from .client.reply import Reply, Sentence, Sentences, numbered
from .config import OUTPUT_RATES, SAMPLE_RATE, EngineConfig
from .errors import (
    AuthError,
    BusyError,
    ConfigError,
    CsmError,
    EngineTimeoutError,
    ModelLoadError,
    RequestError,
    UnavailableError,
)
from .text.cleaning import Cleaner, clean
from .text.stream import Pace, TextStream, Tokens
from .voices.voice import Voice

logger = logging.getLogger("csm_tts_plugin")

_FRAME_MS = 40
"""Length of the frames given to LiveKit, which is the most that the emitter holds back, apart from
10 ms."""


class TTS(tts.TTS[Any]):
    """Streaming speech in a consented voice.

    model: hub id, folder, or `tiny`; None: CSM_MODEL, else CSM-1B. Ignored with an engine from
        `engine_url` (or CSM_ENGINE_URL; one or several), which has its own model. Without one an
        engine process is started, shared by all `TTS` of this process with the same model.
    voice: a `Voice`, the id of a voice stored on the engine, or None: the stock voice.
    sample_rate: 8000, 16000, 24000 or 48000 Hz.
    api_key: the engine's key; None: CSM_ENGINE_KEY.
    temperature, top_k, seed: sampling options; None: the checkpoint's defaults.
    max_seconds: the longest duration of one sentence; None: derived from its length.
    first_piece_s: seconds after which a reply begins with the first clause of a sentence that is
        still arriving or, if text arrives slower than speech, with its words so far. This gives
        earlier first audio with a slow LLM, but worse intonation. None: whole sentences only.
    tokenizer: a LiveKit tokenizer that splits the text instead of ours, which is the fastest for
        the first sentence.

    Raises ConfigError, VoiceError. `aclose` frees everything: nothing in a session calls it, so
    `ctx.add_shutdown_callback(tts.aclose)`.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        voice: Voice | str | None = None,
        sample_rate: int = SAMPLE_RATE,
        engine_url: str | Sequence[str] | None = None,
        api_key: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        max_seconds: float | None = None,
        first_piece_s: float | None = None,
        tokenizer: tokenize.SentenceTokenizer | None = None,
    ) -> None:
        if sample_rate not in OUTPUT_RATES:
            rates = ", ".join(map(str, OUTPUT_RATES))
            raise ConfigError(f"sample_rate must be one of {rates}, got {sample_rate}.")
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=True, aligned_transcript=True),
            sample_rate=sample_rate,
            num_channels=1,
        )
        config = EngineConfig.from_env()
        self._model = model or config.model
        self._engine = engine_for(replace(config, model=self._model), engine_url, api_key)
        manner = Manner(wire_voice(voice), temperature, top_k, seed)
        self._voice = voice
        self._max_seconds = check_seconds(max_seconds)
        if first_piece_s is not None and not 0 <= first_piece_s <= 60:
            raise ConfigError(f"first_piece_s must be from 0 to 60 s, got {first_piece_s}.")
        self._first_piece_s = first_piece_s
        self._tokenizer = tokenizer
        self._call = Call(self._engine.client, manner)
        self._last: Reply | None = None
        self._streams: weakref.WeakSet[SynthesizeStream | ChunkedStream] = weakref.WeakSet()

    @property
    def model(self) -> str:
        return self._model

    @property
    def voice(self) -> Voice | str | None:
        """The current voice, as it was given; None: the stock voice."""
        return self._voice

    @property
    def provider(self) -> str:
        return "csm"

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> ChunkedStream:
        stream = ChunkedStream(tts=self, input_text=text, conn_options=conn_options)
        self._streams.add(stream)
        return stream

    def stream(
        self, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> SynthesizeStream:
        stream = SynthesizeStream(tts=self, conn_options=conn_options)
        self._streams.add(stream)
        return stream

    def update_options(
        self,
        *,
        voice: NotGivenOr[Voice | str | None] = NOT_GIVEN,
        temperature: NotGivenOr[float | None] = NOT_GIVEN,
        top_k: NotGivenOr[int | None] = NOT_GIVEN,
        seed: NotGivenOr[int | None] = NOT_GIVEN,
        max_seconds: NotGivenOr[float | None] = NOT_GIVEN,
    ) -> None:
        """Change options from the next sentence on, also within a reply.

        The engine is told of a voice at once: it prefills the new one and drops the old one.
        Sampling and `max_seconds` apply to sentences sent from now on; up to four sentences of a
        reply may be at the engine already. Raises ConfigError, VoiceError, and then changes
        nothing.
        """
        changes: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "seed": seed}
        changes = {name: value for name, value in changes.items() if utils.is_given(value)}
        if utils.is_given(voice):
            changes["voice"] = wire_voice(voice)
        manner = replace(self._call.manner, **changes)
        if utils.is_given(max_seconds):
            self._max_seconds = check_seconds(max_seconds)
        if utils.is_given(voice):
            self._voice = voice
        if manner != self._call.manner:
            self._call.change(manner)

    def add_turn(
        self,
        speaker: str,
        text: str,
        audio: rtc.AudioFrame | np.ndarray[Any, Any] | bytes | None = None,
        sample_rate: int | None = None,
    ) -> None:
        """Add a turn of the caller, or of any other speaker but this voice, to the context.

        `audio`: a frame, or samples ([n] or [n, channels], float32 in [-1, 1] or int16), or mono
        16-bit PCM; all but a frame need `sample_rate`. Returns at once; the engine is told in the
        background, before the next reply. Raises TextError, AudioError, RequestError.
        """
        if isinstance(audio, rtc.AudioFrame):
            sample_rate = audio.sample_rate
            audio = np.frombuffer(audio.data, np.int16).reshape(-1, audio.num_channels)
        if audio is not None and not sample_rate:
            raise RequestError("The sound of a turn needs its sample_rate.")
        samples = None if audio is None else to_float32(audio)
        self._call.add_turn(speaker, text, samples, sample_rate or 0)

    def interrupted(self, heard_seconds: float) -> None:
        """Report that only `heard_seconds` of the last reply were heard; the rest is removed from
        the context.

        A session knows this from `playback_finished` of its audio output. Without it the engine
        uses its own clock, and does not notice an interruption after the audio was generated.
        """
        if self._last is not None:
            self._last.heard(max(0.0, heard_seconds))

    def prewarm(self) -> None:
        """Start the engine and open the conversation, in the background."""
        self._engine.start()
        self._call.open_ahead()

    async def engine_facts(self) -> dict[str, str]:
        """Participant attributes of the engine, once it is ready: `csm.model`, `csm.device`,
        `csm.clones`, `true` or `false` (not there with an older engine), and `csm.follows`, what
        replies take from a voice that the model does not clone (only if there is something).

        Raises CsmError without an engine.
        """
        status = await (await self._engine.client()).status()
        named = ("model", "device", "follows")
        facts = {f"csm.{name}": str(status[name]) for name in named if status.get(name)}
        if isinstance(status.get("clones"), bool):
            facts["csm.clones"] = "true" if status["clones"] else "false"
        return facts

    def _reply(self, emitter: tts.AudioEmitter, timeout: float) -> Reply:
        self._last = Reply(
            self._call, lambda: self._max_seconds, _Sink(emitter), self.sample_rate, timeout
        )
        return self._last

    async def aclose(self) -> None:
        for stream in list(self._streams):
            await stream.aclose()
        self._streams.clear()
        await self._call.aclose()
        await self._engine.aclose()


class ChunkedStream(tts.ChunkedStream):
    """A complete text, spoken sentence by sentence."""

    def __init__(self, *, tts: TTS, input_text: str, conn_options: APIConnectOptions) -> None:
        super().__init__(tts=tts, input_text=input_text, conn_options=conn_options)
        self._csm = tts

    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        _initialize(output_emitter, self._csm, stream=False)
        reply = self._csm._reply(output_emitter, self._conn_options.timeout)
        with _api_errors():
            sentences = _at_least_one(self._sentences(), lambda: bool(self._input_text.strip()))
            await reply.speak(sentences, self._note)

    async def _sentences(self) -> Sentences:
        if (tokenizer := self._csm._tokenizer) is not None:
            text, tokens = clean(self._input_text), Tokens()
            tokens.feed(text)
            found = tokenizer.tokenize(text)
            sentences = [sentence for token in found for sentence in tokens.sentences(token)]
        else:
            stream = TextStream()
            sentences = stream.push(self._input_text) + stream.flush()
        for sentence in numbered(sentences, more_to_come=False):
            yield sentence

    def _note(self, call: Call) -> None:
        self._acquire_time, self._connection_reused = call.acquired, call.reused


class SynthesizeStream(tts.SynthesizeStream):
    """A text that arrives in pieces; each sentence is spoken as soon as it is complete."""

    def __init__(self, *, tts: TTS, conn_options: APIConnectOptions) -> None:
        super().__init__(tts=tts, conn_options=conn_options)
        self._csm = tts
        self._given = False
        """Whether there was any text."""

    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        _initialize(output_emitter, self._csm, stream=True)
        output_emitter.start_segment(segment_id=utils.shortuuid("CSM_"))
        tokenizer = self._csm._tokenizer
        sentences = self._tokenized(tokenizer) if tokenizer else self._sentences()
        reply = self._csm._reply(output_emitter, self._conn_options.timeout)
        with _api_errors():
            await reply.speak(_at_least_one(sentences, lambda: self._given), self._note)
        output_emitter.end_segment()

    async def _sentences(self) -> Sentences:
        stream, pace, rested = TextStream(), Pace(), False
        clock = asyncio.get_running_loop().time
        began, early = 0.0, self._csm._first_piece_s
        while True:
            patience = pace.patience if stream.pending and not rested else None
            rested = False
            try:
                async with asyncio.timeout(patience):
                    item = await self._input_ch.recv()
                ended = isinstance(item, self._FlushSentinel)
                sentences = stream.flush() if ended else stream.push(self._text(item))
                pace.arrived(clock())
                began = began or clock()
            except TimeoutError:
                rested, sentences = True, stream.settle()
            except utils.aio.ChanClosed:
                break
            if early is not None and not sentences and clock() - began >= early:
                sentences = stream.piece(clock() - began)
            if sentences:
                early = None
            for sentence in numbered(sentences, more_to_come=stream.pending):
                yield sentence
                pace.interrupted()
        for sentence in numbered(stream.flush(), more_to_come=False):
            yield sentence

    async def _tokenized(self, tokenizer: tokenize.SentenceTokenizer) -> Sentences:
        """Sentences by the user's tokenizer, from cleaned text and with the same length limit."""
        stream, cleaner, tokens = tokenizer.stream(), Cleaner(), Tokens()

        def push(text: str) -> None:
            tokens.feed(text)
            if text:
                stream.push_text(text)

        async def forward() -> None:
            async for item in self._input_ch:
                if isinstance(item, self._FlushSentinel):
                    push(cleaner.flush())
                    stream.flush()
                else:
                    push(cleaner.push(self._text(item)))
            push(cleaner.flush())
            stream.end_input()

        forwarding = asyncio.create_task(forward(), name="csm-tokenizer-input")
        try:
            async for event in stream:
                for sentence in numbered(tokens.sentences(event.token), more_to_come=False):
                    yield sentence
        finally:
            await utils.aio.cancel_and_wait(forwarding)
            await stream.aclose()

    def _text(self, item: Any) -> str:
        self._given = self._given or bool(str(item).strip())
        return str(item)

    def _note(self, call: Call) -> None:
        self._mark_started()
        self._acquire_time, self._connection_reused = call.acquired, call.reused


async def _at_least_one(sentences: Sentences, given: Callable[[], bool]) -> Sentences:
    """Yields one empty sentence for a text that was only markup, which is spoken as silence."""
    none = True
    async with aclosing(sentences):
        async for sentence in sentences:
            none = False
            yield sentence
    if none and given():
        yield Sentence("", more=False)


class _Sink:
    """Passes a reply's audio and sentences to LiveKit's emitter."""

    def __init__(self, emitter: tts.AudioEmitter) -> None:
        self._emitter = emitter

    def text(self, sentence: str, seconds: float) -> None:
        self._emitter.push_timed_transcript(TimedString(sentence, start_time=seconds))

    def sound(self, pcm: bytes) -> None:
        self._emitter.push(pcm)


def _initialize(emitter: tts.AudioEmitter, owner: TTS, *, stream: bool) -> None:
    emitter.initialize(
        request_id=utils.shortuuid(),
        sample_rate=owner.sample_rate,
        num_channels=1,
        mime_type="audio/pcm",
        frame_size_ms=_FRAME_MS,
        stream=stream,
    )


@contextmanager
def _api_errors() -> Iterator[None]:
    """Map every failure to an APIError: LiveKit retries and reports nothing else."""
    try:
        yield
    except APIError:
        raise
    except CsmError as error:
        raise _api_error(error) from None
    except Exception as error:
        logger.exception("speech failed unexpectedly")
        raise APIError(f"Speech failed ({type(error).__name__}).") from None


def _api_error(error: CsmError) -> APIError:
    message = str(error)
    match error:
        case EngineTimeoutError():
            return APITimeoutError(message)
        case UnavailableError():
            return APIConnectionError(message)
        case BusyError():
            return APIStatusError(message, status_code=429)
        case AuthError():
            return APIStatusError(message, status_code=401)
        case RequestError():
            return APIStatusError(message, status_code=400)
        case ConfigError() | ModelLoadError():
            return APIError(message, retryable=False)
    return APIStatusError(message, status_code=500, retryable=error.retryable)
