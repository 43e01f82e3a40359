"""One round of the engine's thread: requests, prefill, one frame, delivery.

Runs on the engine's thread only. The lock guards the scheduler and the table of conversations,
which callers use too; it is never held while the device works.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from dataclasses import replace

import numpy as np

from ..config import FRAME_SECONDS
from ..errors import CsmError, EngineError, NumericError, VoiceError
from .api import Reason, Turn, VoicePrompt
from .context import Positions, end_frame, frame_positions
from .conversation import Conversation, Record, Utterance
from .delivery import Delivery
from .prompt import PromptWriter
from .runner import Frame, Runner
from .scheduler import Begin, Plan, Read, Scheduler
from .sound import Codec

log = logging.getLogger("csm_tts_plugin.engine")

_LEAST_FRAMES = 13
"""A second. An utterance is not started with less room than this in the context."""

_VOICES_KEPT = 64
"""The most references that are cached as positions, a few hundred KB each."""


class Rounds:
    def __init__(
        self,
        runner: Runner,
        codec: Codec,
        scheduler: Scheduler,
        writer: PromptWriter,
        conversations: dict[str, Conversation],
        lock: threading.Condition,
        most_turns: int | None = None,
    ) -> None:
        self._runner, self._scheduler, self._writer = runner, scheduler, writer
        self._conversations, self._lock = conversations, lock
        self._most_turns = most_turns
        self._delivery = Delivery(codec, scheduler, lock, lambda seat: conversations[seat.id])
        self._voices: OrderedDict[str, Positions] = OrderedDict()
        self._end = end_frame(runner.weights.codebooks, runner.weights.eos_code)

    @property
    def voices(self) -> int:
        """Number of references cached as positions."""
        return len(self._voices)

    # Requests -------------------------------------------------------------------------------------

    def set_voice(self, conversation: Conversation, voice: VoicePrompt | None) -> None:
        """Change the voice at once, or after the utterance being spoken."""
        if conversation.speaking:
            waiting = conversation.waiting_voice
            leaving = {_given_up(one, voice) for one in (conversation.voice, *waiting)}
            turns = [turn for turn in conversation.waiting_turns if turn.speaker not in leaving]
            conversation.waiting_voice, conversation.waiting_turns = [voice], turns
            return
        try:
            positions = self._voice_positions(voice)
            self._check_length(positions, conversation.context.limit)
        except CsmError as error:
            conversation.broken = error
            self._forget(voice)
            return
        old = conversation.voice
        if _key(voice) == _key(old) and conversation.broken is None:
            conversation.voice = voice
            return
        conversation.voice, conversation.broken = voice, None
        conversation.speakers.clear()
        # Whose voice is given up is forgotten with it: their turns go too.
        gone = _given_up(old, voice)
        kept = [r for r in conversation.records if not r.ours and r.name != gone]
        conversation.records = deque(kept)
        conversation.context.set_voice(positions, [[self._write(conversation, r)] for r in kept])
        conversation.fit()
        if conversation.seat.row is not None:
            if old is not None and old.private:
                self._runner.wipe(conversation.seat.row)
            self._restore(conversation)
        conversation.refresh()
        self._forget(old)

    def add_turn(self, conversation: Conversation, turn: Turn) -> None:
        """Add the turn at once, or after the utterance being spoken."""
        if conversation.speaking:
            conversation.waiting_turns.append(turn)
            return
        if self._most_turns == 0:
            return
        codes = None if turn.audio is None else self._runner.encode(turn.audio)
        record = Record(turn.speaker, turn.text, codes, ours=False)
        # A turn that cannot be added must not end the call: it goes on without the turn.
        try:
            positions = self._write(conversation, record)
        except CsmError as error:
            log.warning("a turn was left out of the conversation: %s", error)
            return
        conversation.add_turn(record, positions)
        conversation.fit()

    def due(self, utterance: Utterance) -> None:
        """All earlier requests for its conversation are done: the utterance may be spoken."""
        with self._lock:
            utterance.job.due = True

    def cancel(self, id: str) -> None:
        with self._lock:
            conversations = list(self._conversations.values())
        for conversation in conversations:
            utterance = conversation.utterances.get(id)
            if utterance is not None:
                self._over(conversation, utterance, Reason.CANCELLED)
                return

    def keep_heard(self, conversation: Conversation, utterance: str, frames: int) -> None:
        """At once, or after the utterance being spoken. One that still
        speaks is ended by `cancel`.
        """
        if conversation.speaking:
            conversation.waiting_cuts[utterance] = frames
        else:
            conversation.keep_heard(utterance, frames, self._end)

    def close(self, id: str) -> None:
        with self._lock:
            conversation = self._conversations.pop(id, None)
        if conversation is None:
            return
        for utterance in list(conversation.utterances.values()):
            self._over(conversation, utterance, Reason.CANCELLED)
        if conversation.seat.row is not None:
            self._runner.wipe(conversation.seat.row)
        with self._lock:
            self._scheduler.close(conversation.seat)
        self._forget(conversation.voice)

    def forget_voice(self, key: str) -> None:
        """Conversations with this voice keep it to their end; it is a private voice from now on."""
        with self._lock:
            conversations = list(self._conversations.values())
        for conversation in conversations:
            if conversation.voice is not None and conversation.voice.key == key:
                conversation.voice = replace(conversation.voice, private=True)
            conversation.waiting_voice = [
                replace(voice, private=True) if voice is not None and voice.key == key else voice
                for voice in conversation.waiting_voice
            ]
        self._drop_unused(key)

    # One round ------------------------------------------------------------------------------------

    def run(self, now: float) -> bool:
        """Run one round. False: there was nothing to do."""
        with self._lock:
            begin = self._scheduler.begin()
        self._hand_out(begin, now)
        with self._lock:
            plan = self._scheduler.plan(now)
        for a, b in plan.swaps:
            self._runner.swap(a, b)
        if plan.reads:
            self._read(plan.reads)
        if plan.step:
            self._step(plan)
            decoded = True
        else:
            self._delivery.collect()
            decoded = self._delivery.decode(now, 0)
        self._finish()
        worked = not plan.idle or bool(begin.started) or decoded
        if worked:
            self._delivery.round_took(time.monotonic() - now)
        return worked

    def patience(self, now: float) -> float | None:
        """Seconds until there is work to do without a new request; None: never."""
        with self._lock:
            waits = (self._scheduler.next_event(now), self._delivery.wait(now))
        return min((wait for wait in waits if wait is not None), default=None)

    def _hand_out(self, begin: Begin, now: float) -> None:
        for seat in begin.evicted:
            conversation = self._conversations[seat.id]
            conversation.context.valid = 0
            conversation.refresh()
        for seat in begin.placed:
            assert seat.row is not None
            self._runner.wipe(seat.row)
            conversation = self._conversations[seat.id]
            self._restore(conversation)
            conversation.refresh()
        for seat in begin.started:
            self._begin(self._conversations[seat.id], now)

    def _begin(self, conversation: Conversation, now: float) -> None:
        """Add the text of the next utterance to the context."""
        job, row = conversation.seat.job, conversation.seat.row
        assert job is not None
        assert row is not None
        utterance = conversation.utterances[job.id]
        utterance.started = now
        context, guard = conversation.context, utterance.guard
        conversation.add_turn(
            Record(conversation.voice_name, "", None, ours=True, utterance=utterance.id),
            utterance.prompt,
        )
        room = context.limit - len(context.voice) - len(utterance.prompt) - 1
        guard.max_frames = min(guard.max_frames, max(room, _LEAST_FRAMES))
        try:
            if conversation.broken is not None:
                raise conversation.broken
            conversation.make_room(guard.max_frames + 1)
        except CsmError as error:
            self._failed(conversation, utterance, error)
            return
        self._runner.start(row, utterance.draw)
        self._delivery.begin(utterance)

    def _read(self, reads: list[Read]) -> None:
        """Prefill pieces of prompts in one pass of the backbone."""
        pieces = []
        for read in reads:
            context, row = self._conversations[read.seat.id].context, read.seat.row
            assert row is not None
            pieces.append((row, context.valid, context.unread(read.count)))
        self._runner.read_all(pieces)
        for read, (row, _, _) in zip(reads, pieces, strict=True):
            conversation = self._conversations[read.seat.id]
            context = conversation.context
            context.valid += read.count
            if context.valid >= len(context.voice):
                self._runner.keep_voice(conversation.voice_key, row, len(context.voice))
            with self._lock:
                self._scheduler.read_done(read)
            utterance = conversation.speaking
            if utterance is not None and not context.pending:
                utterance.read = time.monotonic()

    def _step(self, plan: Plan) -> None:
        """One frame for the rows of the plan: draw it, decode what is due, run
        the backbone on it.
        """
        batch = len(plan.step)
        self._runner.select(plan.rows)
        conversations = [self._conversations[seat.id] for seat in plan.step]
        speaking = [conversation.must_speak() for conversation in conversations]
        codes = self._runner.weights.codes
        frame = self._runner.draw(batch, max(u.draw.candidates(codes) for u in speaking))
        longest = 1 + max(conversation.context.valid for conversation in conversations)
        # A CUDA device computes while the host delivers audio; on a CPU delivery comes first, so
        # that listeners do not wait for the backbone.
        if self._runner.runs_behind:
            self._runner.advance(batch, longest)
        self._delivery.collect()
        for row, (conversation, utterance) in enumerate(zip(conversations, speaking, strict=True)):
            # The level of earlier frames, which was just examined, may have ended it.
            if utterance.ending is None:
                self._take(row, frame, conversation, utterance)
                conversation.context.valid += 1
        self._delivery.decode(time.monotonic(), batch)
        if not self._runner.runs_behind:
            self._runner.advance(batch, longest)
        for conversation in conversations:
            conversation.refresh()

    def _take(
        self, row: int, frame: Frame, conversation: Conversation, utterance: Utterance
    ) -> None:
        """Add one row's frame to the context and pass it on to be decoded."""
        seat = conversation.seat
        if not frame.sound[row]:
            error = NumericError("The model produced NaN or Inf; this utterance ends here.")
            self._delivery.end(seat, utterance, error)
            return
        codes = frame.codes[row]
        conversation.context.extend_turn(frame_positions(codes[None]))
        if (codes == self._runner.weights.eos_code).all():
            utterance.closed = True
            self._delivery.end(seat, utterance, Reason.END)
            return
        self._delivery.drawn(seat, utterance, codes)
        if (reason := utterance.guard.drawn(codes)) is not None:
            self._delivery.end(seat, utterance, reason)

    # Ends -----------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """End the utterances whose last audio was delivered."""
        with self._lock:
            seats = [seat for seat in self._scheduler.seats() if seat.jobs]
        for seat in seats:
            conversation = self._conversations[seat.id]
            utterance = conversation.speaking
            if utterance is None or not utterance.delivered:
                continue
            if isinstance(utterance.ending, Reason):
                self._over(conversation, utterance, utterance.ending)
            elif utterance.ending is not None:
                self._failed(conversation, utterance, utterance.ending)
            conversation.refresh()

    def _over(self, conversation: Conversation, utterance: Utterance, reason: Reason) -> None:
        """End an utterance. For any reason the context is left as after a complete turn."""
        if utterance.started and not utterance.frames:
            conversation.drop_turn()
        elif utterance.started:
            if not utterance.closed:
                conversation.context.extend_turn(self._end)
            kept = utterance.frames
            if reason is Reason.CANCELLED and utterance.job.live:
                # Frames ahead of playback were generated, but nobody has heard them.
                lead = max(0.0, conversation.seat.play_end - time.monotonic())
                kept = max(0, kept - int(lead / FRAME_SECONDS + 1e-6))
            if kept < utterance.drawn:
                conversation.keep_heard(utterance.id, kept, self._end)
        self._leave(conversation, utterance, silence=reason is Reason.CANCELLED)
        utterance.hand(utterance.done(reason))

    def _failed(self, conversation: Conversation, utterance: Utterance, error: CsmError) -> None:
        """Remove the failed turn; the row is wiped if it may contain NaN."""
        row = conversation.seat.row
        if isinstance(error, EngineError) and row is not None:
            self._runner.wipe(row)
            conversation.context.valid = 0
        conversation.drop_turn()
        self._leave(conversation, utterance, silence=False)
        utterance.fail(error)

    def _leave(self, conversation: Conversation, utterance: Utterance, *, silence: bool) -> None:
        started = bool(utterance.started)
        self._delivery.drop(utterance)
        with self._lock:
            conversation.utterances.pop(utterance.id, None)
            self._scheduler.remove(conversation.seat, utterance.job)
            if silence and started:
                self._scheduler.silence(conversation.seat, time.monotonic())
        conversation.refresh()
        if started:
            self._after(conversation)

    def _after(self, conversation: Conversation) -> None:
        """Execute the requests that waited for the end of an utterance."""
        cuts, conversation.waiting_cuts = conversation.waiting_cuts, {}
        for utterance, frames in cuts.items():
            conversation.keep_heard(utterance, frames, self._end)
        voices, conversation.waiting_voice = conversation.waiting_voice, []
        turns, conversation.waiting_turns = conversation.waiting_turns, []
        for voice in voices:
            self.set_voice(conversation, voice)
        for turn in turns:
            self.add_turn(conversation, turn)

    # Voices and turns -----------------------------------------------------------------------------

    def _voice_positions(self, voice: VoicePrompt | None) -> Positions:
        """The reference as positions, encoded once and cached."""
        if voice is None or not voice.turns:
            return self._end[:0]
        if voice.key not in self._voices:
            parts = []
            for turn in voice.turns:
                codes = None if turn.audio is None else self._runner.encode(turn.audio)
                number = 0 if turn.speaker == voice.speaker else 1
                parts.append(self._writer.turn(number, turn.text, codes))
            self._voices[voice.key] = np.concatenate(parts)
            while len(self._voices) > _VOICES_KEPT:
                self._voices.popitem(last=False)
        self._voices.move_to_end(voice.key)
        return self._voices[voice.key]

    @staticmethod
    def _check_length(positions: Positions, limit: int) -> None:
        if len(positions) + _LEAST_FRAMES > limit:
            raise VoiceError(
                f"The reference takes {len(positions)} of the model's {limit} positions and "
                "leaves no room to speak: use a shorter one."
            )

    def _write(self, conversation: Conversation, record: Record) -> Positions:
        return self._writer.turn(conversation.speaker(record.name), record.text, record.codes)

    def _restore(self, conversation: Conversation) -> None:
        """Fill a new row of this conversation with its cached voice, if there is one."""
        row = conversation.seat.row
        assert row is not None
        conversation.context.valid = self._runner.restore_voice(conversation.voice_key, row)

    def _forget(self, voice: VoicePrompt | None) -> None:
        """Drop a private voice when the last conversation with it has closed."""
        if voice is not None and voice.private:
            self._drop_unused(voice.key)

    def _drop_unused(self, key: str) -> None:
        with self._lock:
            others = list(self._conversations.values())
        if not any(other.voice_key == key for other in others):
            self._voices.pop(key, None)
            self._runner.forget_voice(key)


def _given_up(old: VoicePrompt | None, new: VoicePrompt | None) -> str | None:
    """The speaker of `old`, unless `new` has the same speaker."""
    return None if old is None or (new and new.speaker == old.speaker) else old.speaker


def _key(voice: VoicePrompt | None) -> str | None:
    return voice.key if voice else None
