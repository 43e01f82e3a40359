"""`say`: speaks a text into a file or a pipe and prints timings."""

from __future__ import annotations

import argparse
import asyncio
import queue
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path

from ..audio.resample import StreamResampler, to_pcm16
from ..client.engine import EngineClient
from ..config import OUTPUT_RATES, SAMPLE_RATE, Limits, ServerConfig
from ..engine.api import (
    Audio,
    Done,
    EngineInfo,
    Event,
    Failed,
    Sampling,
    SpeechEngine,
    VoicePrompt,
)
from ..errors import ConfigError, TextError
from ..server.report import describe
from ..server.voices import resolve
from ..text.stream import sentences_of
from ..voices.voice import Consent, Voice
from ..wire.protocol import STOCK_VOICE, VOICE_ID
from .options import add_engine_options, engine_config, load_engine, whole
from .output import Output

_LOAD_POLL_S = 0.05


def add(parser: argparse.ArgumentParser) -> None:
    add_engine_options(parser)
    parser.add_argument("text", help="the text to speak")
    parser.add_argument("--voice", help="reference audio to clone, or the id of a stored voice")
    parser.add_argument("--transcript", help="the words spoken in the reference audio")
    parser.add_argument(
        "-o",
        "--output",
        default="out.wav",
        metavar="FILE",
        help="ends in .wav, .mp3, .flac, .ogg, .opus or .aac; -: WAV to stdout (%(default)s)",
    )
    parser.add_argument(
        "--rate", type=int, choices=OUTPUT_RATES, default=SAMPLE_RATE, help="sample rate in Hz"
    )
    parser.add_argument("--seed", type=whole, help="the same seed gives the same speech")
    parser.add_argument("--temperature", type=float, help="sampling temperature; 0 is greedy")
    parser.add_argument("--engine-url", help="use this engine server instead of loading the model")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns 0. Raises CsmError."""
    sentences = _sentences(args.text)
    sampling = _sampling(args)
    output = Output(args.output, args.rate)
    voice = _voice(args, output)
    with ExitStack() as stack:
        stack.enter_context(output)
        if args.engine_url:
            asyncio.run(_say_there(args, sentences, voice, sampling, output))
        else:
            engine = load_engine(engine_config(args))
            # Also if loading fails: a thread still in torch would crash the process at its end.
            stack.callback(engine.stop)
            _wait_ready(engine, output)
            _say_here(engine, sentences, voice, sampling, output)
    output.summarise()
    return 0


def _sentences(text: str) -> list[str]:
    sentences = sentences_of(text)
    if not sentences:
        raise TextError("There is nothing to say: the text has no words.")
    return sentences


def _sampling(args: argparse.Namespace) -> Sampling:
    most = Limits().temperature_max
    if args.temperature is not None and not 0.0 <= args.temperature <= most:
        raise ConfigError(f"--temperature must be from 0 to {most:g}, got {args.temperature:g}.")
    return Sampling(args.temperature, None, args.seed)


def _voice(args: argparse.Namespace, output: Output) -> str | Voice:
    """The id of a stored voice, or the voice of a recording whose consent the user confirms."""
    if args.voice is None:
        if args.transcript is not None:
            raise ConfigError("--transcript holds the words of a --voice: give the recording too.")
        return STOCK_VOICE
    path = Path(args.voice)
    if VOICE_ID.fullmatch(args.voice) and not path.exists():
        return str(args.voice)
    output.say(f"voice of {path.name}: use it only with that person's consent")
    consent = Consent(
        speaker="recorded person",
        statement="The person who ran the command confirms the consent of the recorded person.",
        date=date.today().isoformat(),
    )
    transcript = args.transcript or ""
    return Voice.from_file(path, transcript=transcript, consent=consent, speaker="voice")


# In this process


def _wait_ready(engine: SpeechEngine, output: Output) -> None:
    """Waits until the engine is ready. Raises its failure."""
    began, told = time.monotonic(), ""
    engine.start()
    while not (status := engine.status()).ready:
        if status.failure is not None:
            raise status.failure
        if status.detail != told:
            told = status.detail
            output.say(f"  {told}")
        time.sleep(_LOAD_POLL_S)
    output.say(f"ready: {describe(engine.info(), status)}, after {time.monotonic() - began:.1f} s")


def _say_here(
    engine: SpeechEngine,
    sentences: list[str],
    voice: str | Voice,
    sampling: Sampling,
    output: Output,
) -> None:
    named = voice.inline() if isinstance(voice, Voice) else voice
    prompt = resolve(named, ServerConfig.from_env(), engine.info())
    if named != STOCK_VOICE:
        _say_what_is_used(engine.info(), prompt, output)
    conversation = engine.open(prompt, sampling)
    resampler = StreamResampler(SAMPLE_RATE, output.rate)
    output.begin()
    for event in _events(engine, conversation, sentences):
        output.write(to_pcm16(resampler.push(event.samples)))
    output.write(to_pcm16(resampler.flush()))


def _say_what_is_used(info: EngineInfo | None, prompt: VoicePrompt | None, output: Output) -> None:
    """Tells the user what the model makes of their voice, unless it clones it."""
    if prompt is not None and prompt.key == STOCK_VOICE:
        if info is not None and info.reference_seconds:
            most = f"uses at most {info.reference_seconds:g} s of reference audio"
            output.say(f"  this model {most}, and this is longer: the stock voice speaks")
        else:
            output.say("  this model cannot use another voice: the stock voice speaks")
    elif info is not None and info.follows is not None:
        _say_what_follows(info.follows, output)


def _say_what_follows(follows: str, output: Output) -> None:
    output.say(f"  this model follows the {follows} of the voice and does not clone it")


def _events(engine: SpeechEngine, conversation: str, sentences: list[str]) -> Iterator[Audio]:
    """The audio of all sentences in order. Raises the error of a failed sentence."""
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
    output: Output,
) -> None:
    named = voice.inline() if isinstance(voice, Voice) else voice
    key = ServerConfig.from_env().key
    async with EngineClient(args.engine_url, key=key, timeout=60.0) as client:
        if named != STOCK_VOICE and (follows := (await client.status()).get("follows")):
            _say_what_follows(str(follows), output)
        conversation = await client.conversation(
            named, rate=output.rate, temperature=sampling.temperature, seed=sampling.seed
        )
        output.begin()
        for number, sentence in enumerate(sentences, 1):
            utterance = await conversation.say(sentence, more=number < len(sentences))
            async for chunk in utterance:
                output.write(chunk.pcm)
