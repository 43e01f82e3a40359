"""Shared by the engine's tests: small checkpoints, sinks, transformers as the reference, and an
engine that is stepped manually, so that random joins and ends happen at exact frames."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import AutoProcessor

from csm_tts_plugin.config import SAMPLE_RATE, EngineConfig, Limits
from csm_tts_plugin.engine.api import (
    Audio,
    Done,
    Event,
    Failed,
    Reason,
    Sampling,
    Turn,
    VoicePrompt,
)
from csm_tts_plugin.engine.context import Positions, end_frame, frame_positions, text_positions
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.engine.loading import TINY_FOLDER, Checkpoint
from csm_tts_plugin.engine.runner import Draw, Runner
from csm_tts_plugin.engine.sound import Codec
from tests.support.models import small_model

GREEDY = Sampling(temperature=0.0)
GREEDY_DRAW = Draw((0.0, 0.0), (1, 1), 0)
PATIENCE = 120.0
"""Timeout in seconds: a longer wait is a hang, even on a busy machine."""

_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|begin_of_text|>[' ~ message['role'] ~ ']' -}}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{- part['text'] ~ '<|end_of_text|>' -}}"
    "{%- else -%}{{- '<|AUDIO|><|audio_eos|>' -}}{%- endif -%}"
    "{%- endfor -%}{%- endfor -%}"
)
"""CSM's own template, for short prompts: without csm-tiny's padding to equal lengths."""


def small_processor() -> Any:
    processor = AutoProcessor.from_pretrained(TINY_FOLDER)
    processor.chat_template = _TEMPLATE
    return processor


def small_checkpoint(seed: int = 0, *, context: int = 512, **sizes: int) -> Checkpoint:
    """A random model with csm-tiny's tokenizer; greedy by default."""
    processor = small_processor()
    model = small_model(seed, context=context, **sizes)
    model.config.audio_token_id = processor.audio_token_id
    model.config.audio_eos_token_id = processor.audio_eos_token_id
    return Checkpoint("small", model, processor, torch.device("cpu"))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Audio to encode: float32 at 24 kHz."""
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def voice(key: str, seconds: float = 1.2, *, private: bool = False, seed: int = 1) -> VoicePrompt:
    turn = Turn("caller", f"my voice {key}", noise(seconds, seed))
    return VoicePrompt(key, "caller", (turn,), private)


# transformers as the reference


@torch.no_grad()
def embed(model: Any, positions: Positions) -> torch.Tensor:
    """Positions -> embeddings [1, n, hidden], by the modules of transformers."""
    numbers = torch.from_numpy(positions)
    words = model.embed_text_tokens(numbers[:, -1].clamp(min=0))
    frames = model.backbone_model.embed_tokens(numbers[None, :, :-1])[0]
    return torch.where(numbers[:, -1:] >= 0, words, frames)[None]


@torch.no_grad()
def generated(model: Any, frames: int, **inputs: Any) -> np.ndarray:
    """Greedy codes [n, K] of `generate`, including the end frame if there is one."""
    codes = model.generate(
        **inputs, max_new_tokens=frames, do_sample=False, depth_decoder_do_sample=False
    )
    return codes[0].numpy()


def truth(model: Any, positions: Positions, frames: int) -> np.ndarray:
    """What `generate` says after `positions`, without the end frame."""
    return without_end(generated(model, frames, inputs_embeds=embed(model, positions)))


def without_end(codes: np.ndarray) -> np.ndarray:
    ended = len(codes) and not codes[-1, :-1].any()
    return codes[:-1] if ended else codes


def random_positions(model: Any, rng: np.random.Generator, turns: int) -> Positions:
    """A random prompt: texts, each followed by audio frames except the last one."""
    books = model.config.num_codebooks
    codes = model.config.codec_config.codebook_size
    parts = []
    for turn in range(turns):
        tokens = rng.integers(5, 60, rng.integers(3, 14)).tolist()
        parts.append(text_positions(tokens, books))
        if turn + 1 < turns:
            frames = rng.integers(0, codes, (rng.integers(2, 9), books))
            parts += [frame_positions(frames), end_frame(books, 0)]
    return np.concatenate(parts)


def assert_begins(longer: np.ndarray, shorter: np.ndarray, least: int = 6) -> None:
    """A guard may end speech before `generate` does: frames until then must be equal and enough."""
    assert len(shorter) >= least, f"only {len(shorter)} frames to compare"
    np.testing.assert_array_equal(shorter, longer[: len(shorter)])


# Rows of the device, without conversations


class Rows:
    """A runner and the number of positions in each of its rows."""

    def __init__(self, model: Any, rows: int, context: int = 256) -> None:
        self.runner = Runner(model, rows, context)
        self.valid = [0] * rows

    def read(self, row: int, positions: Positions, rng: np.random.Generator) -> None:
        """Prefill in random pieces."""
        start = 0
        while start < len(positions):
            count = int(rng.integers(1, len(positions) - start + 1))
            self.runner.read(row, self.valid[row], positions[start : start + count])
            self.valid[row] += count
            start += count

    def start(self, row: int, draw: Draw = GREEDY_DRAW) -> None:
        self.runner.start(row, draw)

    def step(self, batch: int, candidates: int = 0) -> np.ndarray:
        """One frame of the first rows: codes [batch, K]"""
        codes = self.runner.draw(batch, candidates).codes.copy()
        self.runner.advance(batch, 1 + max(self.valid[:batch]))
        for row in range(batch):
            self.valid[row] += 1
        return codes

    def swap(self, a: int, b: int) -> None:
        self.runner.swap(a, b)
        self.valid[a], self.valid[b] = self.valid[b], self.valid[a]


# Sinks


class Heard:
    """A sink that keeps its events; `then` runs on the engine's thread after each event."""

    def __init__(self, then: Callable[[Event], None] | None = None) -> None:
        self.events: list[Event] = []
        self.id = ""
        self.strays = 0
        """Events after the end; there must be none."""
        self._then = then
        self._over = threading.Event()

    def __call__(self, event: Event) -> None:
        self.strays += self.over
        self.events.append(event)
        if not isinstance(event, Audio):
            self._over.set()
        if self._then is not None:
            self._then(event)

    def wait(self) -> Heard:
        assert self._over.wait(PATIENCE), "the utterance never ended"
        return self

    @property
    def over(self) -> bool:
        return self._over.is_set()

    @property
    def audio(self) -> list[Audio]:
        return [event for event in self.events if isinstance(event, Audio)]

    @property
    def codes(self) -> np.ndarray:
        return np.stack([event.codes for event in self.audio])

    @property
    def end(self) -> Done | Failed:
        assert self.over
        last = self.events[-1]
        assert isinstance(last, (Done, Failed))
        return last

    @property
    def reason(self) -> Reason:
        assert isinstance(self.end, Done), self.end
        return self.end.reason

    def frames(self) -> int:
        """Frames heard, checked: none missing, none twice, and as many as reported."""
        assert not self.strays
        assert [event.frame for event in self.audio] == list(range(len(self.audio)))
        assert all(event.samples.shape == (1920,) for event in self.audio)
        if isinstance(self.end, Done):
            assert self.end.frames == len(self.audio)
        return len(self.audio)


def say(engine: Engine, conversation: str, text: str = "Hello there.", **options: Any) -> Heard:
    """Greedy by default; `then` is passed to the sink."""
    heard = Heard(options.pop("then", None))
    options.setdefault("sampling", GREEDY)
    options.setdefault("live", False)
    heard.id = engine.say(conversation, text, heard, **options)
    return heard


# Engines


def started(checkpoint: Checkpoint, *, limits: Limits | None = None, **settings: Any) -> Engine:
    """Ready to speak; by default with all context that fits, like transformers, and unmarked."""
    settings = {"whole_context": True, "watermark": "off", **settings}
    engine = Engine(
        EngineConfig(model="small", threads=1, **settings), limits=limits, checkpoint=checkpoint
    )
    engine.start()
    engine.wait_ready(PATIENCE)
    return engine


class ByHand:
    """An engine without its thread: each `round` is one pass of its loop in the calling thread.

    Its clock is `now` in seconds, which does not advance by itself.
    """

    def __init__(
        self, checkpoint: Checkpoint, limits: Limits | None = None, **settings: Any
    ) -> None:
        self.now = 1_000.0
        settings.setdefault("watermark", "off")
        config = EngineConfig(model="small", threads=1, **settings)
        self.engine = Engine(config, limits=limits, checkpoint=checkpoint)
        self.engine._load()

    @property
    def rounds(self) -> Any:
        return self.engine._rounds

    @property
    def runner(self) -> Runner:
        return self.rounds._runner

    @property
    def codec(self) -> Codec:
        return self.rounds._delivery._codec

    def monotonic(self) -> float:
        return self.now

    def round(self) -> bool:
        """False when there was nothing to do."""
        with (
            mock.patch("csm_tts_plugin.engine.core.time", self),
            mock.patch("csm_tts_plugin.engine.rounds.time", self),
            mock.patch("csm_tts_plugin.engine.delivery.time", self),
        ):
            return self.engine._round()

    def run(self, limit: int = 20_000) -> None:
        """Run until there is nothing left to do; the clock advances while streams rest."""
        for _ in range(limit):
            if not self.round():
                patience = self.rounds.patience(self.now)
                if patience is None:
                    return
                self.now += patience + 0.001
        raise AssertionError("the engine never came to rest")

    def free(self) -> bool:
        """Whether no stream speaks or waits and no utterance is held."""
        status = self.engine.status()
        held = [c for c in self.engine._conversations.values() if c.utterances or c.seat.jobs]
        return not (status.speaking or status.queued or held)

    def seat(self, conversation: str) -> Any:
        return self.engine._conversations[conversation].seat

    def context(self, conversation: str) -> Any:
        return self.engine._conversations[conversation].context

    def log(self, conversation: str) -> Positions:
        """The whole conversation as the model reads it."""
        context = self.context(conversation)
        parts = [context.voice, *(part for turn in context.turns for part in turn)]
        return np.concatenate(parts)

    def drawn_of(self, heard: Heard) -> int:
        """Number of frames drawn for a current utterance; some may not be delivered yet."""
        for conversation in self.engine._conversations.values():
            if (utterance := conversation.utterances.get(heard.id)) is not None:
                return utterance.drawn
        raise AssertionError("it is over")

    def asked(self, conversation: str, text: str) -> Positions:
        """What the model read before it said `text`, its only utterance in this conversation. If
        it was interrupted, the log may hold only a part of it."""
        context, records = (
            self.context(conversation),
            self.engine._conversations[conversation].records,
        )
        turns = zip(context.turns, records, strict=True)
        others = [part for turn, record in turns if not record.ours for part in turn]
        return np.concatenate([context.voice, *others, self.engine._writer.turn(0, text)])


TEXTS = ("One.", "Two.", "And three.", "Four of them.", "Five")


def alone(checkpoint: Checkpoint, text: str, frames: int) -> np.ndarray:
    """What `generate` says to `text` as a conversation's first sentence."""
    hand = ByHand(checkpoint, slots=1, queue=0)
    return truth(checkpoint.model, hand.engine._writer.turn(0, text), frames)
