"""The engine: one thread that owns the device, and methods that any thread may call.

Each round of the thread is schedule -> run -> deliver: execute the requests that have arrived, let
the scheduler assign slots and rows, prefill pieces of prompts, generate one frame for each stream
that needs one, and pass the samples to the sinks. Callers only append to an inbox, so they never
wait for the device.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..config import EngineConfig, Limits
from ..errors import (
    CsmError,
    EngineError,
    ModelLoadError,
    RequestError,
    UnavailableError,
)
from .api import EngineInfo, EngineStatus, Sampling, Sink, Turn, VoicePrompt
from .checks import (
    check_config,
    check_sampling,
    check_seconds,
    check_text,
    check_turn,
    check_voice,
)
from .context import Context
from .conversation import Conversation, Utterance
from .defaults import ContextBounds, SamplingDefaults, engine_info
from .graphs import batch_sizes, padded
from .guards import Guard, frames_for
from .loading import Checkpoint, load_checkpoint
from .marking import Marking
from .prompt import PromptWriter
from .rounds import Rounds
from .runner import Draw, Runner
from .scheduler import Job, Scheduler
from .sound import Codec

log = logging.getLogger("csm_tts_plugin.engine")

_PIECE = {"cuda": 256, "cpu": 64}
"""Positions prefilled between two frames of other streams."""

_PARKED = 32
"""Rows beyond the slots, for the KV caches of conversations that are silent at the moment."""

_SMALL = 50_000_000
"""Number of parameters up to which one CPU thread is faster than several."""

Command = Callable[[Rounds], None]


class Engine:
    """See `api.SpeechEngine`. `checkpoint`: an already loaded model instead of `config.model`."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        limits: Limits | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.config, self.limits = config, limits or Limits()
        self._checkpoint = checkpoint
        self._wake = threading.Condition()
        self._inbox: list[Command] = []
        self._news = False
        self._scheduler: Scheduler | None = None
        self._rounds: Rounds | None = None
        self._writer: PromptWriter | None = None
        self._defaults = SamplingDefaults()
        self._conversations: dict[str, Conversation] = {}
        self._info: EngineInfo | None = None
        self._detail = "not started"
        self._failure: CsmError | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None

    # Start and stop -------------------------------------------------------------------------------

    def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError("an engine is started once")
        self._detail = f"loading {self.config.model}"
        self._thread = threading.Thread(target=self._main, name="csm-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Block until ready. Raises the error of a failed start, UnavailableError after `timeout`
        seconds.
        """
        with self._wake:
            self._wake.wait_for(lambda: self._ready or self._failure is not None, timeout)
            self._require_ready()

    @property
    def _ready(self) -> bool:
        return self._rounds is not None and self._failure is None and not self._stopping

    def _require_ready(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._ready:
            raise UnavailableError(f"The engine is not ready: {self._detail}.", retry_after=1.0)

    def info(self) -> EngineInfo | None:
        return self._info

    def status(self) -> EngineStatus:
        with self._wake:
            scheduler = self._scheduler
            contexts = [conversation.context for conversation in self._conversations.values()]
            return EngineStatus(
                ready=self._ready,
                detail=str(self._failure) if self._failure else self._detail,
                slots=self.config.slots,
                speaking=scheduler.running() if scheduler else 0,
                queued=scheduler.waiting() if scheduler else 0,
                queue=self.config.queue,
                conversations=len(self._conversations),
                failure=self._failure,
                context_used=sum(map(len, contexts)),
                context_fullest=max((len(one) / one.limit for one in contexts), default=0.0),
                voices=self._rounds.voices if self._rounds else 0,
            )

    # Requests of callers --------------------------------------------------------------------------

    def open(self, voice: VoicePrompt | None = None, sampling: Sampling | None = None) -> str:
        check_voice(voice, self.limits)
        check_sampling(sampling or Sampling(), self.limits)
        with self._wake:
            self._require_ready()
            assert self._scheduler is not None
            assert self._info is not None
            id = uuid.uuid4().hex
            info = self._info
            context = Context(info.codebooks, info.max_context, info.context_turns)
            seat = self._scheduler.open(id)
            conversation = Conversation(seat, context, sampling or Sampling())
            self._conversations[id] = conversation
            if voice is not None:
                self._post(lambda rounds: rounds.set_voice(conversation, voice))
        return id

    def set_voice(self, conversation: str, voice: VoicePrompt | None) -> None:
        check_voice(voice, self.limits)
        with self._wake:
            found = self._find(conversation)
            self._post(lambda rounds: rounds.set_voice(found, voice))

    def add_turn(self, conversation: str, turn: Turn) -> None:
        check_turn(turn, self.limits)
        with self._wake:
            found = self._find(conversation)
            self._post(lambda rounds: rounds.add_turn(found, turn))

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
        text = check_text(text, self.limits)
        check_seconds(max_seconds)
        check_sampling(sampling or Sampling(), self.limits)
        with self._wake:
            found = self._find(conversation)
            assert self._writer is not None
            assert self._scheduler is not None
            text = check_text(self._writer.words(text), self.limits)
            if len(found.utterances) >= self.limits.utterances_per_conversation:
                raise RequestError(
                    f"{len(found.utterances)} sentences of this conversation wait already; "
                    "let some be spoken first."
                )
            utterance = Utterance(
                Job(uuid.uuid4().hex, live=live, more=more, due=False),
                self._writer.turn(0, text),
                sink,
                self._draw(sampling or found.sampling),
                Guard(frames_for(text, max_seconds)),
            )
            self._scheduler.admit(found.seat, utterance.job, retry_after=self._retry_after())
            found.utterances[utterance.id] = utterance
            # After the turns and the voice that were given before it.
            self._post(lambda rounds: rounds.due(utterance))
        return utterance.id

    def cancel(self, utterance: str) -> None:
        with self._wake:
            for conversation in self._conversations.values():
                if (found := conversation.utterances.get(utterance)) is not None:
                    found.cancelled = True
            self._post(lambda rounds: rounds.cancel(utterance))

    def keep_heard(self, conversation: str, utterance: str, frames: int) -> None:
        with self._wake:
            if (found := self._conversations.get(conversation)) is not None:
                self._post(lambda rounds: rounds.keep_heard(found, utterance, frames))

    def close(self, conversation: str) -> None:
        with self._wake:
            if conversation in self._conversations:
                self._post(lambda rounds: rounds.close(conversation))

    def forget_voice(self, key: str) -> None:
        with self._wake:
            self._post(lambda rounds: rounds.forget_voice(key))

    def _find(self, conversation: str) -> Conversation:
        self._require_ready()
        found = self._conversations.get(conversation)
        if found is None:
            raise RequestError("There is no such conversation: open one first.")
        return found

    def _draw(self, sampling: Sampling) -> Draw:
        seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
        return self._defaults.draw(sampling.temperature, sampling.top_k, seed)

    def _retry_after(self) -> float:
        """Estimated seconds until a slot is free: half a sentence."""
        return 1.0

    def _post(self, command: Command) -> None:
        self._inbox.append(command)
        self._tell()

    def _tell(self) -> None:
        """Wake the thread up. The lock is held."""
        self._news = True
        self._wake.notify_all()

    # The thread -----------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._load()
            self._serve()
        except CsmError as error:
            self._fail(error)
        except Exception as error:
            if not self._ready and _is_out_of_memory(error):
                return self._fail(_too_small(self.config))
            log.exception("the engine stopped")
            self._fail(EngineError(f"The engine stopped: {type(error).__name__}. Restart it."))
        finally:
            self._fail_everybody(self._failure or UnavailableError("The engine is shutting down."))

    def _load(self) -> None:
        import torch

        check_config(self.config)
        checkpoint = self._checkpoint or load_checkpoint(self.config)
        if checkpoint.device.type == "cpu":
            torch.set_num_threads(self.config.threads or _cpu_threads(checkpoint.model))
        slots = self.config.slots
        rows = slots + min(slots, _PARKED)
        limit = checkpoint.model.config.max_position_embeddings
        context = min(self.config.max_context or limit, limit)
        bounds = ContextBounds.of(checkpoint.model, whole=self.config.whole_context)
        self._detail = "packing weights"
        graphs = checkpoint.device.type == "cuda" and self.config.cuda_graphs
        batches = batch_sizes(slots) if graphs else None
        runner = Runner(
            checkpoint.model,
            rows,
            context,
            batches=batches,
            graphs=graphs,
            eight_bit_depth=self.config.eight_bit_depth,
            kernels=self.config.kernels,
        )
        stage = Marking(slots, checkpoint.device) if self.config.watermark == "perth" else None
        if stage is None:
            log.warning("generated speech has no watermark: CSM_WATERMARK=off")
        codec = Codec(
            checkpoint.model.codec_model,
            slots,
            graphs=graphs,
            stage=stage,
            kernels=self.config.kernels,
        )
        weights = runner.weights
        writer = PromptWriter(checkpoint.processor, weights.codebooks, weights.eos_code)
        self._progress("warming up")
        runner.warm_up(self._progress)
        codec.warm_up(self._progress)
        scheduler = Scheduler(
            slots=slots,
            queue=self.config.queue,
            rows=rows,
            piece=_PIECE[checkpoint.device.type],
            max_lead_s=self.config.max_lead_s,
            pad=lambda count: padded(count, runner.batches),
            by_index=runner.steps.by_index,
        )
        with self._wake:
            self._writer, self._scheduler = writer, scheduler
            self._defaults = SamplingDefaults.of(checkpoint.model)
            info = engine_info(checkpoint, context, self.config.watermark, bounds)
            self._info = replace(info, path=f"{runner.path}; codec: {codec.path}")
            self._rounds = Rounds(
                runner, codec, scheduler, writer, self._conversations, self._wake, bounds.turns
            )
            self._detail = "ready"
            self._wake.notify_all()

    def _progress(self, detail: str) -> None:
        self._detail = detail
        log.info("%s", detail)

    def _serve(self) -> None:
        rounds = self._rounds
        assert rounds is not None
        while not self._stopping:
            if self._round():
                continue
            with self._wake:
                if not self._news and not self._stopping:
                    self._wake.wait(rounds.patience(time.monotonic()))

    def _round(self) -> bool:
        """Execute the requests in the inbox, then one round. False: there was nothing to do."""
        assert self._rounds is not None
        with self._wake:
            inbox, self._inbox = self._inbox, []
            self._news = False
        for command in inbox:
            command(self._rounds)
        return self._rounds.run(time.monotonic())

    def _fail(self, error: CsmError) -> None:
        with self._wake:
            self._failure = error
            self._wake.notify_all()

    def _fail_everybody(self, error: CsmError) -> None:
        with self._wake:
            self._stopping = True
            self._detail = "stopped"
            conversations = list(self._conversations.values())
            self._conversations.clear()
            self._wake.notify_all()
        for conversation in conversations:
            for utterance in list(conversation.utterances.values()):
                utterance.fail(error)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text


def _too_small(config: EngineConfig) -> ModelLoadError:
    return ModelLoadError(
        f"{config.model} with {config.slots} slots does not fit into the memory here: lower"
        " CSM_SLOTS or --max-context, or free some."
    )


def _cpu_threads(model: Any) -> int:
    small = sum(parameter.numel() for parameter in model.parameters()) <= _SMALL
    return 1 if small else os.cpu_count() or 1
