"""Streaming speech as a library: load a model, pass it a conversation, get chunks as they are made.

    generator = load_csm_1b("eustlb/csm-1b")
    audio = generate_streaming_audio(generator, "Hello there.", output_filename="hello.wav")

One `Generator` speaks one stream at a time on the engine's frame step; a service for many callers
is `python -m csm_tts_plugin serve`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .audio.playback import Loudspeaker
from .audio.recording import GrowingFile
from .config import SAMPLE_RATE, EngineConfig
from .dialogue import load_reference_audio, messages_of, processed
from .engine.api import Codes, Reason
from .engine.context import Positions
from .engine.inputs import read_ids, read_positions
from .engine.loading import load_checkpoint
from .engine.options import LogitsShaper, Options, is_whole, read_options, stops
from .engine.runner import Runner
from .errors import BusyError, NumericError, RequestError

__all__ = [
    "Generator",
    "Metrics",
    "Progress",
    "generate_streaming_audio",
    "load_csm_1b",
    "load_reference_audio",
]

log = logging.getLogger("csm_tts_plugin.generator")

Samples = npt.NDArray[np.float32]


@dataclass(slots=True)
class Metrics:
    """One stream's figures so far. Time counts from the request until samples are handed over, and
    stands still while the consumer holds a chunk.
    """

    frames: int = 0
    """Frames of speech handed over."""
    audio_seconds: float = 0.0
    """Speech handed over."""
    seconds: float = 0.0
    """Time that took."""
    first_audio: float | None = None
    """Seconds until the first chunk."""
    reason: str | None = None
    """Why it ended: `end`, `length`, `stopped` (by a criterion), `cancelled` (closed early) or
    `failed`; None while it goes on."""

    @property
    def rtf(self) -> float | None:
        """Real-time factor: below 1 is faster than the speech plays."""
        return self.seconds / self.audio_seconds if self.audio_seconds else None


@dataclass(frozen=True, slots=True)
class Progress:
    """One chunk that was just made, and the stream so far."""

    chunk: int
    """From 1."""
    frames: int
    audio_seconds: float
    seconds: float
    """Everything since the request, or since the chunk before."""
    total: Metrics

    @property
    def rtf(self) -> float:
        return self.seconds / self.audio_seconds


@dataclass(slots=True)
class _Request:
    """A stream about to be spoken; `metrics` are the caller's view of it."""

    ids: Tensor
    positions: Positions
    options: Options
    max_frames: int
    chunk_frames: int
    progress: Callable[[Progress], None] | None
    metrics: Metrics


class Generator:
    """Speaks with any `CsmForConditionalGeneration`; the model stays usable by itself.

    `metrics` are those of the last stream that was asked for.
    """

    def __init__(
        self, model: Any, processor: Any, device: torch.device | str | None = None
    ) -> None:
        """`processor`: the model's CsmProcessor; `device`: where to work, None: where it is."""
        if not hasattr(model, "depth_decoder") or not hasattr(model, "codec_model"):
            raise RequestError("Generator takes a CsmForConditionalGeneration, with its codec.")
        self.device = torch.device(model.device if device is None else device)
        self.model = model.to(self.device).eval()
        self.processor = processor
        self.metrics: Metrics | None = None
        graphs = self.device.type == "cuda" and EngineConfig.from_env().cuda_graphs
        context = model.config.max_position_embeddings
        self._runner = Runner(self.model, 1, context, graphs=graphs)
        self._runner.warm_up()
        self._speaking = threading.Lock()

    def generate_stream(
        self, inputs: Any, chunk_token_size: int = 20, **kwargs: Any
    ) -> abc.Generator[Tensor, None, None]:
        """Speak what the processor made of a conversation.

        `inputs`: the processor's output (input_ids, and input_values with input_values_cutoffs
        where there is audio), one prompt. `chunk_token_size`: frames per chunk at most; chunks
        begin with one frame and double up to it, so that the first is heard early.

        Options are those of transformers' `generate`: do_sample, temperature, top_k, top_p, min_p,
        max_new_tokens, max_length, max_time, suppress_tokens, `depth_decoder_*`,
        generation_config, logits_processor, stopping_criteria. `do_sample=False` makes the depth
        decoder greedy too unless `depth_decoder_do_sample` says otherwise. Further, `seed` makes
        sampling repeatable (else torch's generator decides), `progress` is called with a
        `Progress` after every chunk.

        Returns an iterator of chunks: float32 tensors [samples] at 24 kHz on the device, nominally
        in [-1, 1]. Joined they are what `generate(..., output_audio=True)` gives for the same
        codes. `close()` ends it early.

        Raises RequestError at once for what cannot be spoken; while iterating BusyError where
        another stream of this generator goes on, and NumericError for NaN in the model.
        """
        if not isinstance(inputs, Mapping):
            raise RequestError("inputs must be what the processor returned: a mapping of tensors.")
        return self._generate_stream(**{**inputs, "chunk_token_size": chunk_token_size, **kwargs})

    def _generate_stream(
        self,
        input_ids: Any = None,
        input_values: Any = None,
        input_values_cutoffs: Any = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        synced_gpus: bool | None = None,
        chunk_token_size: int = 20,
        **kwargs: Any,
    ) -> abc.Generator[Tensor, None, None]:
        """`generate_stream` with the processor's output as arguments of their own."""
        began = time.monotonic()
        if synced_gpus:
            raise RequestError("synced_gpus is not supported: a stream is spoken by one device.")
        if not is_whole(chunk_token_size, 1):
            raise RequestError("chunk_token_size must be a whole number of at least 1.")
        progress = kwargs.pop("progress", None)
        mask = kwargs.pop("attention_mask", None)
        kwargs.pop("labels", None)
        runner = self._runner
        ids = read_ids(runner.weights, input_ids, mask)
        room = self._room(ids.shape[1])
        options = read_options(
            self.model,
            ids.shape[1],
            generation_config,
            logits_processor,
            stopping_criteria,
            kwargs,
        )
        positions = read_positions(
            runner.weights, runner.encode, ids, input_values, input_values_cutoffs
        )
        most = min(room, options.max_frames or room)
        self.metrics = Metrics(seconds=time.monotonic() - began)
        request = _Request(ids, positions, options, most, chunk_token_size, progress, self.metrics)
        return self._chunks(request)

    def _room(self, length: int) -> int:
        """Frames that fit behind a prompt of `length` positions."""
        context = self._runner.state.context
        if length >= context:
            raise RequestError(
                f"The prompt takes {length} of the model's {context} positions and leaves no room "
                "to speak: use a shorter reference or fewer turns."
            )
        return context - length

    def _chunks(self, request: _Request) -> abc.Generator[Tensor, None, None]:
        """The request's frames in chunks of 1, 2, 4, ..., each reported, then handed over."""
        if not self._speaking.acquire(blocking=False):
            raise BusyError("This generator is speaking: finish or close() its other stream first.")
        metrics = request.metrics
        try:
            began, number, size = time.monotonic(), 0, 1
            pending: list[Samples] = []
            # The time its preparation took belongs to the first chunk.
            began -= metrics.seconds
            metrics.seconds = 0.0
            for frame in self._frames(request):
                pending.append(frame)
                if len(pending) == size:
                    number += 1
                    yield self._chunk(request, number, pending, began)
                    began, pending = time.monotonic(), []
                    size = min(2 * size, request.chunk_frames)
            if pending:
                yield self._chunk(request, number + 1, pending, began)
        except GeneratorExit:
            metrics.reason = str(Reason.CANCELLED)
            raise
        except BaseException:
            metrics.reason = "failed"
            raise
        finally:
            self._runner.wipe(0)
            self._speaking.release()
            log.info("%s", _summary(metrics))

    def _frames(self, request: _Request) -> Iterator[Samples]:
        """Samples [1920] of one frame after the other; the end frame is not speech."""
        runner, options, metrics = self._runner, request.options, request.metrics
        shaper = self._shaper(request)
        candidates = options.draw.candidates(runner.weights.codes)
        runner.start(0, options.draw)
        runner.read(0, 0, request.positions)
        history: list[Codes] = []
        while True:
            frame = runner.draw(1, candidates, shaper)
            if not frame.sound[0]:
                raise NumericError("The model produced NaN or Inf; this stream ends here.")
            codes = frame.codes[0].copy()
            if (codes == runner.weights.eos_code).all():
                metrics.reason = str(Reason.END)
                return
            history.append(codes)
            metrics.reason = self._reason_to_stop(request, history, shaper)
            yield frame.samples[0].copy()
            if metrics.reason is not None:
                return
            runner.advance(1, len(request.positions) + len(history))

    def _shaper(self, request: _Request) -> LogitsShaper | None:
        processors = request.options.processors
        if processors is None:
            return None
        return LogitsShaper(processors, self._runner.weights.vocab, request.ids.to(self.device))

    def _reason_to_stop(
        self, request: _Request, history: list[Codes], shaper: LogitsShaper | None
    ) -> str | None:
        """The reason to stop after the last of `history`; shows it to those who look at it."""
        criteria = request.options.criteria
        if criteria or shaper is not None:
            codes = torch.from_numpy(np.stack(history))[None].to(self.device)
            if shaper is not None:
                shaper.history = codes
            # All are asked, as transformers does: some count what they have seen.
            if sum(stops(criterion, codes) for criterion in criteria):
                return "stopped"
        return str(Reason.LENGTH) if len(history) >= request.max_frames else None

    def _chunk(self, request: _Request, number: int, frames: list[Samples], began: float) -> Tensor:
        """Frames as the chunk to hand over, counted and reported."""
        samples = torch.from_numpy(np.concatenate(frames)).to(self.device)
        metrics, seconds = request.metrics, time.monotonic() - began
        metrics.frames += len(frames)
        metrics.audio_seconds += len(samples) / SAMPLE_RATE
        metrics.seconds += seconds
        if metrics.first_audio is None:
            metrics.first_audio = seconds
        report = Progress(
            number, len(frames), len(samples) / SAMPLE_RATE, seconds, replace(metrics)
        )
        log.debug("%s", _line(report))
        if request.progress is not None:
            request.progress(report)
        return samples


def load_csm_1b(model_path: str = "eustlb/csm-1b") -> Generator:
    """A generator for a hub id, a folder, or `tiny`, on the device and in the dtype that
    `CSM_DEVICE` and `CSM_DTYPE` say.

    Raises ModelLoadError or ConfigError, each with one sentence that names the cure.
    """
    config = replace(EngineConfig.from_env(), model=str(model_path))
    checkpoint = load_checkpoint(config)
    return Generator(checkpoint.model, checkpoint.processor, checkpoint.device)


def generate_streaming_audio(
    generator: Generator,
    conversation: str | Sequence[Mapping[str, Any]],
    output_filename: str | Path | None = None,
    play_audio: bool = True,
    chunk_token_size: int = 20,
    reference_data: Sequence[Mapping[str, Any]] | None = None,
    **kwargs: Any,
) -> Samples:
    """Speak a text, or the last turn of a conversation; the speech as float32 [samples], 24 kHz.

    `conversation`: a text, or turns as `{"role": speaker, "content": [{"type": "text", ...},
    {"type": "audio", "audio": samples at 24 kHz, or "path": file}]}`. `reference_data`: as for
    `load_reference_audio` (or what it returned), put before it. The file (.wav, .flac or .ogg)
    grows with every chunk; playing needs the package `sounddevice`, and where nothing can play
    speech is made without, after a warning. A line is printed for each chunk, unless `progress` is
    None or a function of one's own; the other options are those of `Generator.generate_stream`.

    Raises RequestError (TextError, AudioError) for what cannot be spoken, read or written.
    """
    progress = kwargs.pop("progress", print_progress)
    messages = messages_of(conversation, reference_data)
    inputs = processed(generator.processor, messages)
    stream = generator.generate_stream(inputs, chunk_token_size, progress=progress, **kwargs)
    chunks: list[Samples] = []
    with ExitStack() as stack:
        speaker = stack.enter_context(Loudspeaker()) if play_audio else None
        file = stack.enter_context(GrowingFile(output_filename)) if output_filename else None
        for chunk in stack.enter_context(closing(stream)):
            chunks.append(np.clip(chunk.cpu().numpy(), -1.0, 1.0))
            if file is not None:
                file.write(chunks[-1])
            if speaker is not None:
                speaker.play(chunks[-1])
    if progress is print_progress and generator.metrics is not None:
        print(_summary(generator.metrics), flush=True)
    return np.concatenate(chunks) if chunks else np.zeros(0, np.float32)


def print_progress(progress: Progress) -> None:
    print(_line(progress), flush=True)


def _line(progress: Progress) -> str:
    return (
        f"chunk {progress.chunk}: {progress.audio_seconds:.2f} s of speech "
        f"in {progress.seconds:.3f} s (RTF {progress.rtf:.2f})"
    )


def _summary(metrics: Metrics) -> str:
    if metrics.rtf is None or metrics.first_audio is None:
        return f"no speech: {metrics.reason}"
    return (
        f"{metrics.audio_seconds:.2f} s of speech in {metrics.seconds:.2f} s "
        f"(RTF {metrics.rtf:.2f}), first audio after {metrics.first_audio:.3f} s: {metrics.reason}"
    )
