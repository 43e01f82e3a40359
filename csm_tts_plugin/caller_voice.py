"""The voice of one call: from what the caller says and allows to the voice that replies are in.

The stock voice first. Until the caller has answered, their turns of the last minute are held in
memory and looked at by nobody; a yes makes a reference of them, a no drops them. From then on
each turn may make a better reference, or goes to the engine as context. Whoever takes consent back
is forgotten here and in the engine at once. Knows nothing of LiveKit.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from .consent import Grant, VoiceConsent
from .ear import CallerEar, Cut
from .echo import OwnSound
from .errors import CsmError
from .phrases import wants_stop
from .protocol import STOCK_VOICE
from .voices.choose import Choice, Chooser, HeardTurn, SpokenWord
from .voices.voice import Consent, Voice

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

logger = logging.getLogger("csm_tts_plugin.agent")

CALLER = "caller"
"""The caller's name in a conversation, and of the voice made from their speech."""

_HELD_S = 60.0
"""Of turns said before the caller has answered."""
_AROUND_S = 0.3
"""Words whose times lie further outside of a turn belong to another clock."""


class Speech(Protocol):
    """What is asked of the TTS."""

    def update_options(self, *, voice: Voice | None) -> None: ...

    def add_turn(self, speaker: str, text: str, audio: Samples, sample_rate: int) -> None: ...


class CallerVoice:
    """`clones`: replies may be in the caller's voice; else `name` is the voice of all replies, and
    a consenting caller's turns are context only. `changed` is told each new name.
    """

    def __init__(
        self, speech: Speech, changed: Callable[[str], None], *, stored: str | None = None
    ) -> None:
        self.consent = VoiceConsent()
        self.ear = CallerEar()
        self.own = OwnSound()
        self.identity = CALLER
        """Whose consent it is, for the record."""
        self.name = stored or STOCK_VOICE
        self._clones = stored is None
        self._speech = speech
        self._changed = changed
        self._spoke = False
        self._held: deque[HeardTurn] = deque()
        self._finder: VoiceFinder | None = None

    def question_after(self, reply: str) -> str:
        """How the reply goes on to ask for consent; empty where it does not. Who only writes is not
        asked.
        """
        if not (reply.strip() and self._clones and self._spoke and self.consent.wants_asking):
            return ""
        return f"{'' if reply.rstrip()[-1] in '.!?' else '.'} {self.consent.question}"

    def heard(self, text: str, words: Sequence[SpokenWord] = ()) -> None:
        """What the caller has just said; `words`: with seconds of the call, if they are known."""
        cut = self.ear.cut()
        if cut is not None and self.own.echoes_in(cut.samples, cut.rate) and not wants_stop(text):
            logger.info("the caller's line brought our own sound: left out")
            return
        self._spoke = self._spoke or bool(text.strip())
        self.consent.heard(text)
        undecided = self._clones and self.consent.open
        if cut is not None and text.strip() and (undecided or self.consent.granted):
            self._hold(HeardTurn(text, cut.samples, cut.rate, _within(cut, words)))
        self.follow()

    def wrote(self, text: str) -> None:
        """What the caller said or wrote; written, it can end the use of their voice only."""
        if wants_stop(text):
            self.consent.stop()
            self.follow()

    def follow(self) -> None:
        """Do what the consent says now: call this whenever it may have changed."""
        if (grant := self.consent.grant) is not None:
            self._use(grant)
        elif not self.consent.open:
            self._forget()

    def unusable(self) -> None:
        """The engine cannot speak in the caller's voice: the stock voice goes on."""
        if self.name == CALLER:
            logger.warning("the engine does not take the caller's voice; the stock voice goes on")
            self._change(None)

    def _hold(self, turn: HeardTurn) -> None:
        self._held.append(turn)
        while sum(len(one.samples) / one.rate for one in self._held) > _HELD_S:
            self._held.popleft()

    def _use(self, grant: Grant) -> None:
        turns, self._held = self._held, deque()
        if self._clones:
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
            self.ear.forget()
        if self.name == CALLER:
            self._change(None)

    def _change(self, voice: Voice | None) -> None:
        self._speech.update_options(voice=voice)
        name = CALLER if voice is not None else STOCK_VOICE
        if name != self.name:
            self.name = name
            logger.info("replies are spoken in the voice: %s", name)
            self._changed(name)


class TimedWord(Protocol):
    """A string with the seconds of the call at which it was said, or with no numbers there."""

    @property
    def start_time(self) -> object: ...

    @property
    def end_time(self) -> object: ...


def spoken_words(words: Sequence[TimedWord]) -> list[SpokenWord]:
    """Words as an STT gives them; none unless it gives times for all."""
    found = [
        SpokenWord(str(word), float(word.start_time), float(word.end_time))
        for word in words
        if isinstance(word.start_time, (int, float)) and isinstance(word.end_time, (int, float))
    ]
    return found if len(found) == len(words) else []


def _within(cut: Cut, words: Sequence[SpokenWord]) -> tuple[SpokenWord, ...]:
    """With seconds of the turn; none where their clock is not ours."""
    mine = tuple(SpokenWord(w.text, w.begin - cut.begin, w.end - cut.begin) for w in words)
    longest = cut.seconds + _AROUND_S
    fits = all(-_AROUND_S <= word.begin <= word.end <= longest for word in mine)
    return mine if fits else ()


@dataclass
class VoiceFinder:
    """Makes a voice of a consenting caller's turns, and a better one when there is one.

    All that it keeps of the caller goes with it.
    """

    identity: str
    grant: Grant
    _chooser: Chooser = field(default_factory=Chooser, repr=False)

    def add(
        self, text: str, samples: Samples, rate: int, words: Sequence[SpokenWord] = ()
    ) -> Voice | None:
        """The voice, once there is one or a clearly better one; the log says why not.

        `words`: with the times that the STT gives, turns of more than 15 s can be used too.
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
