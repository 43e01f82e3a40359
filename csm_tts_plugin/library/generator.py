"""The library API: load a model, pass it a conversation, get audio chunks as they are generated.

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

from ..audio.playback import Loudspeaker
from ..audio.recording import GrowingFile
from ..config import SAMPLE_RATE, EngineConfig
from ..engine.api import Codes, Reason
from ..engine.chunks import pieces
from ..engine.context import Positions
from ..engine.loading import load_checkpoint
from ..engine.marking import MarkedStream
from ..engine.runner import Runner
from ..engine.sound import Codec
from ..errors import BusyError, NumericError, RequestError
from .dialogue import load_reference_audio, messages_of, processed
from .inputs import read_ids, read_positions
from .options import LogitsShaper, Options, is_whole, read_options, stops

__all__ = [
    "Generator",
    "Metrics",
    "Progress",
    "generate_streaming_audio",
    "load_csm_1b",
    "load_reference_audio",
]

log = logging.getLogger("csm_tts_plugin.library.generator")

Samples = npt.NDArray[np.float32]


@dataclass(slots=True)
class Metrics:
    """Figures of one stream so far. Time is counted from the request until samples are yielded, but
    not while the consumer processes a chunk.
    """

    frames: int = 0
    """Frames yielded."""
    audio_seconds: float = 0.0
    """Seconds of speech yielded."""
    seconds: float = 0.0
    """Seconds it took to generate them."""
    first_audio: float | None = None
    """Seconds until the first chunk."""
    reason: str | None = None
    """Why it ended: `end`, `length`, `stopped` (by a criterion), `cancelled` (closed early) or
    `failed`; None before its end."""

    @property
    def rtf(self) -> float | None:
        """Real-time factor: generation time over duration; below 1 is faster than playback."""
        return self.seconds / self.audio_seconds if self.audio_seconds else None


@dataclass(frozen=True, slots=True)
class Progress:
    """Reports one generated chunk, and the figures of the stream so far."""

    chunk: int
    """From 1."""
    frames: int
    audio_seconds: float
    seconds: float
    """Time since the request, or since the chunk before."""
    total: Metrics

    @property
    def rtf(self) -> float:
        return self.seconds / self.audio_seconds


@dataclass(slots=True)
class _Request:
    """A stream to be generated; `metrics` are those that the caller sees."""

    ids: Tensor
    positions: Positions
    options: Options
    max_frames: int
    chunk_frames: int
    progress: Callable[[Progress], None] | None
    metrics: Metrics


class Generator:
    """Generates speech with any `CsmForConditionalGeneration`; the model itself stays usable.

    Its weights are packed here: after a later change of them, make a new generator.

    `metrics` are those of the last requested stream.
    """

    def __init__(
        self, model: Any, processor: Any, device: torch.device | str | None = None
    ) -> None:
        """`processor`: the model's CsmProcessor; `device`: None for the model's device."""
        if not hasattr(model, "depth_decoder") or not hasattr(model, "codec_model"):
            raise RequestError("Generator takes a CsmForConditionalGeneration, with its codec.")
        self.device = torch.device(model.device if device is None else device)
        self.model = model.to(self.device).eval()
        self.processor = processor
        self.metrics: Metrics | None = None
        config = EngineConfig.from_env()
        graphs = self.device.type == "cuda" and config.cuda_graphs
        context = model.config.max_position_embeddings
        self._runner = Runner(self.model, 1, context, graphs=graphs, kernels=config.kernels)
        self._runner.warm_up()
        self._codec = Codec(self.model.codec_model, 1, graphs=graphs, kernels=config.kernels)
        self._codec.warm_up()
        self._speaking = threading.Lock()

    def generate_stream(
        self, inputs: Any, chunk_token_size: int = 20, **kwargs: Any
    ) -> abc.Generator[Tensor, None, None]:
        """Generate speech for a processed conversation.

        `inputs`: the processor's output (input_ids, and input_values with input_values_cutoffs
        where there is audio), one prompt. `chunk_token_size`: frames per chunk at most; chunks
        begin with one frame and double up to it, so that the first is heard early.

        Options are those of transformers' `generate`: do_sample, temperature, top_k, top_p, min_p,
        max_new_tokens, max_length, max_time, suppress_tokens, `depth_decoder_*`,
        generation_config, logits_processor, stopping_criteria. `do_sample=False` makes the depth
        decoder greedy too unless `depth_decoder_do_sample` says otherwise. In addition, `seed`
        makes sampling repeatable (without it, torch's generator is used), and `progress` is called
        with a `Progress` after every chunk.

        Returns an iterator of chunks: float32 tensors [samples] at 24 kHz on the device, nominally
        in [-1, 1]. Concatenated they equal the audio of `generate(..., output_audio=True)` for the
        same codes. `close()` ends it early.

        Raises RequestError at once for invalid inputs or options; while iterating BusyError if
        another stream of this generator is open, and NumericError for NaN in the model.
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
        """`generate_stream` with the entries of the processor's output as separate arguments."""
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
        """Number of frames that fit after a prompt of `length` positions."""
        context = self._runner.state.context
        if length >= context:
            raise RequestError(
                f"The prompt takes {length} of the model's {context} positions and leaves no room "
                "to speak: use a shorter reference or fewer turns."
            )
        return context - length

    def _chunks(self, request: _Request) -> abc.Generator[Tensor, None, None]:
        """The request's frames in chunks of 1, 2, 4, ..., each reported and yielded."""
        if not self._speaking.acquire(blocking=False):
            raise BusyError("This generator is speaking: finish or close() its other stream first.")
        metrics, row = request.metrics, self._codec.take()
        try:
            began, number, size = time.monotonic(), 0, 1
            pending: list[Codes] = []
            # The time its preparation took belongs to the first chunk.
            began -= metrics.seconds
            metrics.seconds = 0.0
            for frame in self._frames(request):
                pending.append(frame)
                if len(pending) == size:
                    number += 1
                    yield self._chunk(request, number, row, pending, began)
                    began, pending = time.monotonic(), []
                    size = min(2 * size, request.chunk_frames)
            if pending:
                yield self._chunk(request, number + 1, row, pending, began)
        except GeneratorExit:
            metrics.reason = str(Reason.CANCELLED)
            raise
        except BaseException:
            metrics.reason = "failed"
            raise
        finally:
            self._runner.wipe(0)
            self._codec.give(row)
            self._speaking.release()
            log.info("%s", _summary(metrics))

    def _frames(self, request: _Request) -> Iterator[Codes]:
        """Yields the codes [K] of each frame, without the end frame."""
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
            yield codes
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
        """The reason to stop after the last frame of `history`, None to go on."""
        criteria = request.options.criteria
        if criteria or shaper is not None:
            codes = torch.from_numpy(np.stack(history))[None].to(self.device)
            if shaper is not None:
                shaper.history = codes
            # All criteria are called, as in transformers, because some have state.
            if sum(stops(criterion, codes) for criterion in criteria):
                return "stopped"
        return str(Reason.LENGTH) if len(history) >= request.max_frames else None

    def _chunk(
        self, request: _Request, number: int, row: int, frames: list[Codes], began: float
    ) -> Tensor:
        """Decode frames to the chunk to yield, with metrics and progress."""
        samples = torch.from_numpy(self._sound(row, np.stack(frames, axis=1))).to(self.device)
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

    def _sound(self, row: int, codes: Codes) -> Samples:
        """Codes [K, frames] -> samples, in as few codec calls as possible"""
        parts, begin = [], 0
        for length in pieces(codes.shape[1]):
            piece = codes[None, :, begin : begin + length]
            parts += self._codec.decode([row], piece, [False]).samples
            begin += length
        return np.concatenate(parts)


def load_csm_1b(model_path: str = "eustlb/csm-1b", adapter: str | None = None) -> Generator:
    """A generator for a hub id, a folder, or `tiny`, on the device `CSM_DEVICE` and in the dtype
    `CSM_DTYPE`.

    `adapter`: a LoRA adapter's folder or hub id, merged into the weights; None: `CSM_ADAPTER`.

    Raises ModelLoadError or ConfigError, each with one sentence that says what to do.
    """
    config = EngineConfig.from_env()
    config = replace(config, model=str(model_path), adapter=adapter or config.adapter)
    checkpoint = load_checkpoint(config)
    return Generator(checkpoint.model, checkpoint.processor, checkpoint.device)


def generate_streaming_audio(
    generator: Generator,
    conversation: str | Sequence[Mapping[str, Any]],
    output_filename: str | Path | None = None,
    play_audio: bool = True,
    chunk_token_size: int = 20,
    reference_data: Sequence[Mapping[str, Any]] | None = None,
    watermark: bool | None = None,
    **kwargs: Any,
) -> Samples:
    """Generate speech for a text or the last turn of a conversation: float32 [samples] at 24 kHz.

    `conversation`: a text, or turns as `{"role": speaker, "content": [{"type": "text", ...},
    {"type": "audio", "audio": samples at 24 kHz, or "path": file}]}`. `reference_data`: as for
    `load_reference_audio`, or its result; it precedes the conversation. The file (.wav, .flac or
    .ogg) grows with every chunk. Playback needs the package `sounddevice`; without a usable device
    there is a warning and no playback. A line is printed for each chunk, unless `progress` is None
    or a function; the other options are those of `Generator.generate_stream`.

    `watermark`: watermark the speech from the fifth frame on, in the file, in playback and in the
    result; None: yes unless `CSM_WATERMARK` is `off`.

    Raises RequestError (TextError, AudioError) for invalid texts, references, options and files.
    """
    if watermark is None:
        watermark = EngineConfig.from_env().watermark != "off"
    progress = kwargs.pop("progress", print_progress)
    messages = messages_of(conversation, reference_data)
    inputs = processed(generator.processor, messages)
    stream = generator.generate_stream(inputs, chunk_token_size, progress=progress, **kwargs)
    chunks: list[Samples] = []
    with ExitStack() as stack:
        speaker = stack.enter_context(Loudspeaker()) if play_audio else None
        file = stack.enter_context(GrowingFile(output_filename)) if output_filename else None
        plain = stack.enter_context(closing(stream))
        for chunk in _marked(plain, generator.device) if watermark else plain:
            chunks.append(np.clip(chunk.cpu().numpy(), -1.0, 1.0))
            if file is not None:
                file.write(chunks[-1])
            if speaker is not None:
                speaker.play(chunks[-1])
    if progress is print_progress and generator.metrics is not None:
        print(_summary(generator.metrics), flush=True)
    return np.concatenate(chunks) if chunks else np.zeros(0, np.float32)


def _marked(stream: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The stream watermarked; chunks may be delayed."""
    marks = MarkedStream(device)
    for chunk in stream:
        if len(out := marks.push(chunk)):
            yield out
    if len(out := marks.finish()):
        yield out


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
