"""`say`: one text into a WAV file, with what it took to make it."""

from __future__ import annotations

import argparse
import asyncio
import queue
import time
import wave
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Self

from ..audio.resample import StreamResampler, to_pcm16
from ..client import EngineClient
from ..config import FRAME_SECONDS, OUTPUT_RATES, SAMPLE_RATE, Limits, ServerConfig
from ..engine.api import Audio, Done, Event, Failed, Sampling, SpeechEngine
from ..errors import ConfigError, TextError
from ..protocol import STOCK_VOICE, VOICE_ID
from ..server.report import describe
from ..server.voices import resolve
from ..text import SentenceSplitter, speakable
from ..voices.voice import Consent, Voice
from .options import add_engine_options, engine_config, load_engine, whole

_LOAD_POLL_S = 0.05
_SHOW_EVERY_S = 2.0


def add(parser: argparse.ArgumentParser) -> None:
    add_engine_options(parser)
    parser.add_argument("text", help="what to say")
    parser.add_argument("--voice", help="a recording to speak like, or the id of a stored voice")
    parser.add_argument("--transcript", help="the words of that recording")
    parser.add_argument("-o", "--output", type=Path, default=Path("out.wav"), help="WAV to write")
    parser.add_argument("--rate", type=int, choices=OUTPUT_RATES, default=SAMPLE_RATE, help="Hz")
    parser.add_argument("--seed", type=whole, help="the same seed gives the same speech")
    parser.add_argument("--temperature", type=float, help="0: always the likeliest code")
    parser.add_argument("--engine-url", help="speak through a server instead of loading the model")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0. Raises CsmError."""
    sentences = _sentences(args.text)
    sampling = _sampling(args)
    voice = _voice(args)
    with ExitStack() as stack:
        output = stack.enter_context(_Output(args.output, args.rate))
        if args.engine_url:
            asyncio.run(_say_there(args, sentences, voice, sampling, output))
        else:
            engine = _ready_engine(args)
            stack.callback(engine.stop)
            _say_here(engine, sentences, voice, sampling, output)
    output.summarise()
    return 0


def _sentences(text: str) -> list[str]:
    splitter = SentenceSplitter()
    found = [*splitter.push(text), *splitter.flush()]
    sentences = [words for sentence in found if (words := speakable(sentence).strip())]
    if not sentences:
        raise TextError("There is nothing to say: the text holds no words.")
    return sentences


def _sampling(args: argparse.Namespace) -> Sampling:
    most = Limits().temperature_max
    if args.temperature is not None and not 0.0 <= args.temperature <= most:
        raise ConfigError(f"--temperature must be from 0 to {most:g}, got {args.temperature:g}.")
    return Sampling(args.temperature, None, args.seed)


def _voice(args: argparse.Namespace) -> str | Voice:
    """A stored voice's id, or the voice of a recording that the user vouches for."""
    if args.voice is None:
        if args.transcript is not None:
            raise ConfigError("--transcript tells the words of a --voice; name the recording too.")
        return STOCK_VOICE
    path = Path(args.voice)
    if VOICE_ID.fullmatch(args.voice) and not path.exists():
        return str(args.voice)
    print(f"speaking like {path.name}: do so only with that person's consent", flush=True)
    consent = Consent(
        speaker="recorded person",
        statement="Whoever ran the command vouches for the consent of the recorded person.",
        date=date.today().isoformat(),
    )
    transcript = args.transcript or ""
    return Voice.from_file(path, transcript=transcript, consent=consent, speaker="voice")


@dataclass(slots=True)
class _Output:
    """The WAV file, and figures of how the sound came; removed again when none did."""

    path: Path
    rate: int
    began: float = 0.0
    first: float = 0.0
    ended: float = 0.0
    samples: int = 0
    shown: float = 0.0
    files: ExitStack = field(default_factory=ExitStack)
    wav: wave.Wave_write | None = None

    def __enter__(self) -> Self:
        try:
            file = self.files.enter_context(self.path.open("wb"))
        except OSError as error:
            raise ConfigError(
                f"Cannot write {self.path} ({error.strerror}); choose another with -o."
            ) from None
        self.wav = self.files.enter_context(wave.open(file, "wb"))
        self.wav.setnchannels(1)
        self.wav.setsampwidth(2)
        self.wav.setframerate(self.rate)
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()
        if not self.samples:
            self.path.unlink(missing_ok=True)

    def begin(self) -> None:
        self.began = self.shown = time.monotonic()

    def write(self, pcm: bytes) -> None:
        assert self.wav is not None
        self.ended = time.monotonic()
        if pcm and not self.samples:
            self.first = self.ended
            print(f"first audio after {self.first - self.began:.3f} s", flush=True)
        self.samples += len(pcm) // 2
        self.wav.writeframesraw(pcm)
        if self.ended - self.shown >= _SHOW_EVERY_S:
            self.shown = self.ended
            print(f"  {self.samples / self.rate:.1f} s spoken", flush=True)

    def summarise(self) -> None:
        took, speech = self.ended - self.began, self.samples / self.rate
        factor = took / max(speech, FRAME_SECONDS)
        print(f"{speech:.2f} s of speech in {took:.2f} s (real-time factor {factor:.2f})")
        print(f"wrote {self.path}", flush=True)


# In this process


def _ready_engine(args: argparse.Namespace) -> SpeechEngine:
    began, told = time.monotonic(), ""
    engine = load_engine(engine_config(args))
    engine.start()
    while not (status := engine.status()).ready:
        if status.failure is not None:
            raise status.failure
        if status.detail != told:
            told = status.detail
            print(f"  {told}", flush=True)
        time.sleep(_LOAD_POLL_S)
    print(f"ready: {describe(engine.info(), status)}, after {time.monotonic() - began:.1f} s")
    return engine


def _say_here(
    engine: SpeechEngine,
    sentences: list[str],
    voice: str | Voice,
    sampling: Sampling,
    output: _Output,
) -> None:
    named = voice.inline() if isinstance(voice, Voice) else voice
    prompt = resolve(named, ServerConfig.from_env(), engine.info())
    conversation = engine.open(prompt, sampling)
    resampler = StreamResampler(SAMPLE_RATE, output.rate)
    output.begin()
    for event in _events(engine, conversation, sentences):
        output.write(to_pcm16(resampler.push(event.samples)))
    output.write(to_pcm16(resampler.flush()))


def _events(engine: SpeechEngine, conversation: str, sentences: list[str]) -> Iterator[Audio]:
    """The sound of all sentences in order. Raises what failed."""
    incoming: queue.SimpleQueue[Event] = queue.SimpleQueue()
    for number, sentence in enumerate(sentences, 1):
        engine.say(conversation, sentence, incoming.put, more=number < len(sentences), live=False)
        while not isinstance(event := incoming.get(), Done):
            if isinstance(event, Failed):
                raise event.error
            yield event


# Through a server


async def _say_there(
    args: argparse.Namespace,
    sentences: list[str],
    voice: str | Voice,
    sampling: Sampling,
    output: _Output,
) -> None:
    named = voice.inline() if isinstance(voice, Voice) else voice
    key = ServerConfig.from_env().key
    async with EngineClient(args.engine_url, key=key, timeout=60.0) as client:
        conversation = await client.conversation(
            named, rate=output.rate, temperature=sampling.temperature, seed=sampling.seed
        )
        output.begin()
        for number, sentence in enumerate(sentences, 1):
            utterance = await conversation.say(sentence, more=number < len(sentences))
            async for chunk in utterance:
                output.write(chunk.pcm)
