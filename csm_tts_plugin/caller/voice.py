"""Chooses the voice of the replies in one call, from the caller's turns and consent.

Replies begin in the voice of the TTS. Until the caller has answered, their turns of the last minute
are kept in memory and not examined. After a yes a reference is made from them; after a no they are
dropped. After a yes each new turn may make a better reference; otherwise it goes to the engine as
context. When consent is withdrawn, everything is dropped at once, here and in the engine.
Independent of LiveKit.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..errors import CsmError
from ..voices.choose import Choice, Chooser, HeardTurn, SpokenWord
from ..voices.voice import Consent, Voice
from ..wire.protocol import STOCK_VOICE
from .consent import Grant, VoiceConsent
from .echo import OwnSound
from .policy import ConsentPolicy
from .turns import Cut, TurnRecorder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

logger = logging.getLogger("csm_tts_plugin.agent")

CALLER = "caller"
"""The caller's name in a conversation, and the name of the voice made from their speech."""

CUSTOM = "custom"
"""The name of a `Voice` that was passed to a TTS."""

_HELD_S = 60.0
"""Audio kept of turns before the caller has answered."""
_AROUND_S = 0.3
"""If words lie further outside of their turn, their times are on another clock."""


class Speech(Protocol):
    """The used part of a TTS."""

    @property
    def voice(self) -> Voice | str | None: ...

    def update_options(self, *, voice: Voice | str | None) -> None: ...

    def add_turn(self, speaker: str, text: str, audio: Samples, sample_rate: int) -> None: ...


class CallerVoice:
    """`speech`: the TTS; its current voice is used again when consent ends. `changed` is called
    with each new `name`. `clones`: replies may be in the caller's voice. If False they stay in the
    voice of the TTS, and a consenting caller's turns are only context.
    """

    def __init__(
        self,
        speech: Speech,
        changed: Callable[[str], None],
        *,
        clones: bool = True,
        policy: ConsentPolicy | None = None,
    ) -> None:
        self.consent = VoiceConsent(policy or ConsentPolicy())
        self.recorder = TurnRecorder()
        self.own = OwnSound()
        self.identity = CALLER
        """The person who consents, for the record."""
        self.clones = clones
        self._speech = speech
        self._base = speech.voice
        self._cloned: Voice | None = None
        """The caller's voice while the replies use it."""
        self._changed = changed
        self._spoke = False
        self._held: deque[HeardTurn] = deque()
        self._finder: VoiceFinder | None = None

    @property
    def name(self) -> str:
        """The voice of the replies: `caller`, `stock`, a stored voice's id, or `custom`."""
        return CALLER if self._cloned is not None else name_of(self._base)

    def speak_through(self, speech: Speech, *, clones: bool) -> None:
        """Use this TTS from now on: it gets the caller's voice, and the former one drops it."""
        before, name = self._speech, self.name
        self.clones = clones
        cloned = self._cloned if clones else None
        if speech is not before:
            if self._cloned is not None:
                before.update_options(voice=self._base)
            self._speech, self._base = speech, speech.voice
            if cloned is not None:
                speech.update_options(voice=cloned)
        elif cloned is not self._cloned:
            speech.update_options(voice=self._base)
        self._cloned = cloned
        self._tell_change(name)

    def question_after(self, reply: str) -> str:
        """The question for consent to append to this reply; empty: do not ask.

        Callers who only type are not asked.
        """
        if not (reply.strip() and self.clones and self._spoke and self.consent.wants_asking):
            return ""
        return f"{'' if reply.rstrip()[-1] in '.!?' else '.'} {self.consent.question}"

    def heard(
        self, text: str, words: Sequence[SpokenWord] = (), ended: float | None = None
    ) -> None:
        """The caller's turn has ended and its transcript is `text`.

        `words`: with times in seconds of the call, if known.
        `ended`: time at which the turn ended, if known.
        """
        cut = self.recorder.cut(said=bool(text.strip()))
        stop = self.consent.phrases.wants_stop(text)
        if cut is not None and not stop and self.own.echoes_in(cut.samples, cut.rate):
            logger.info("a turn is left out: it is an echo of the agent's speech")
            return
        self._spoke = self._spoke or bool(text.strip())
        self.consent.heard(text, ended)
        undecided = self.clones and self.consent.open
        if cut is not None and text.strip() and (undecided or self.consent.granted):
            self._hold(HeardTurn(text, cut.samples, cut.rate, _within(cut, words)))
        self.follow()

    def wrote(self, text: str) -> None:
        """The caller said or typed `text`; typed text can only end the use of their voice."""
        if self.consent.phrases.wants_stop(text):
            self.consent.stop()
            self.follow()

    def follow(self) -> None:
        """Applies the current consent. Call this whenever it may have changed."""
        if (grant := self.consent.grant) is not None:
            self._use(grant)
        elif not self.consent.open:
            self._forget()

    def unusable(self) -> None:
        """The engine cannot speak in the caller's voice: replies use the former voice again."""
        if self._cloned is not None:
            logger.warning(
                "the engine refuses the caller's voice; replies use the former voice again"
            )
            self._change(None)

    def _hold(self, turn: HeardTurn) -> None:
        self._held.append(turn)
        while sum(len(one.samples) / one.rate for one in self._held) > _HELD_S:
            self._held.popleft()

    def _use(self, grant: Grant) -> None:
        turns, self._held = self._held, deque()
        if self.clones:
            finder = self._finder = self._finder or VoiceFinder(self.identity, grant)
            found = [finder.add(t.text, t.samples, t.rate, t.words) for t in turns]
            voices = [voice for voice in found if voice is not None]
            if voices:
                return self._change(voices[-1])
        if self.name != STOCK_VOICE:
            for turn in turns:
                self._tell(turn)
        return None

    def _tell(self, turn: HeardTurn) -> None:
        try:
            self._speech.add_turn(CALLER, turn.text, turn.samples, turn.rate)
        except CsmError as error:
            logger.info("a turn is left out of the conversation: %s", error)

    def _forget(self) -> None:
        if self._finder is not None or self._held:
            self._finder = None
            self._held.clear()
            self.recorder.forget()
        if self._cloned is not None:
            self._change(None)

    def _change(self, cloned: Voice | None) -> None:
        before, self._cloned = self.name, cloned
        self._speech.update_options(voice=self._base if cloned is None else cloned)
        self._tell_change(before)

    def _tell_change(self, before: str) -> None:
        if self.name != before:
            logger.info("replies are spoken in the voice: %s", self.name)
            self._changed(self.name)


def name_of(voice: Voice | str | None) -> str:
    """The name of a TTS's own voice: `stock`, a stored voice's id, or `custom` for a `Voice`."""
    if voice is None:
        return STOCK_VOICE
    return voice if isinstance(voice, str) else CUSTOM


class TimedWord(Protocol):
    """A string with its times in seconds of the call; other types mean that a time is unknown."""

    @property
    def start_time(self) -> object: ...

    @property
    def end_time(self) -> object: ...


def spoken_words(words: Sequence[TimedWord]) -> list[SpokenWord]:
    """Words with times from speech-to-text; empty unless it gives times for all words."""
    found = [
        SpokenWord(str(word), float(word.start_time), float(word.end_time))
        for word in words
        if isinstance(word.start_time, (int, float)) and isinstance(word.end_time, (int, float))
    ]
    return found if len(found) == len(words) else []


def _within(cut: Cut, words: Sequence[SpokenWord]) -> tuple[SpokenWord, ...]:
    """Words with times in seconds of the turn; empty if their times are on another clock."""
    mine = tuple(SpokenWord(w.text, w.begin - cut.begin, w.end - cut.begin) for w in words)
    longest = cut.seconds + _AROUND_S
    fits = all(-_AROUND_S <= word.begin <= word.end <= longest for word in mine)
    return mine if fits else ()


@dataclass
class VoiceFinder:
    """Makes a voice from a consenting caller's turns, and a better one when possible.

    Keeps all of the caller's data, so dropping this object drops it.
    """

    identity: str
    grant: Grant
    _chooser: Chooser = field(default_factory=Chooser, repr=False)

    def add(
        self, text: str, samples: Samples, rate: int, words: Sequence[SpokenWord] = ()
    ) -> Voice | None:
        """The first or a clearly better voice; None: the turn makes neither, and the log says why.

        `words`: with times from speech-to-text, turns of more than 15 s can be used too.
        """
        verdict = self._chooser.add(HeardTurn(text, samples, rate, tuple(words)))
        if not verdict.taken:
            why = ", ".join(fault.name for fault in verdict.faults)
            logger.info("turn %d is no reference (%s): %s", verdict.turn, why, verdict.figures)
        if (choice := self._chooser.better()) is None:
            return None
        logger.info(
            "the caller's reference is turn %s, score %.2f: %s",
            " and ".join(map(str, choice.turns)),
            choice.score,
            choice.figures,
        )
        return self._voice(choice)

    def _voice(self, choice: Choice) -> Voice | None:
        path, date, statement = self.grant.path, self.grant.date, self.grant.statement
        try:
            consent = Consent(speaker=self.identity, statement=statement, date=date)
            voice = Voice.from_audio(
                choice.samples, choice.rate, transcript=choice.text, consent=consent, speaker=CALLER
            )
        except CsmError as error:
            logger.info("the caller's turns make no voice yet: %s", error)
            return None
        logger.info("consent (%s) of %s recorded for audio %s", path, date, voice.sha256)
        return voice
