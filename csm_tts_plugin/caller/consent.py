"""The caller's consent to the use of their voice: one question, all ways to answer it, one state.

    unasked -> asking -> asked -> granted -> withdrawn
                              \\-> refused

The caller is asked once at most, and not at all if the answer is known. Only the caller can grant:
by the participant attribute, in their own words, or by a telephone key. An LLM may interpret
unclear words as a yes, but only words that the caller said after the question. Independent of
LiveKit, audio and voices.
"""

from __future__ import annotations

import datetime
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from .phrases import Answer, Phrases
from .policy import ConsentPolicy

logger = logging.getLogger("csm_tts_plugin.agent")

ATTRIBUTE = "csm.voice_consent"
GRANTED = "granted"
"""The only value of the attribute that grants; any other value refuses."""

YES_KEY, STOP_KEY = "1", "0"

_ONE_SENTENCE_S = 6.0
"""Within this time two pieces may be one sentence: lost packets or a pause can split it."""


class State(StrEnum):
    UNASKED = "unasked"
    ASKING = "asking"
    """The question is being spoken; it counts as asked once the caller has heard it."""
    ASKED = "asked"
    GRANTED = "granted"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"


class Path(StrEnum):
    """How consent was given, and the statement for the record."""

    ATTRIBUTE = "attribute"
    SPOKEN = "spoken"
    UNDERSTOOD = "understood"
    KEY = "key"
    WISH = "wish"

    def statement(self, question: str) -> str:
        asked = f'in answer to the question: "{question}"'
        return {
            Path.ATTRIBUTE: f"Granted by the participant attribute {ATTRIBUTE}={GRANTED}.",
            Path.SPOKEN: f"Granted aloud in the call, {asked}",
            Path.UNDERSTOOD: f"Granted aloud in the call, as the LLM understood it, {asked}",
            Path.KEY: f"Granted in the call by the telephone key {YES_KEY}, {asked}",
            Path.WISH: "The caller asked aloud in the call for replies in their own voice.",
        }[self]


@dataclass(frozen=True, slots=True)
class Grant:
    path: Path
    statement: str
    """What was agreed to and how, in words."""
    date: str
    """ISO 8601, with the time."""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(slots=True)
class VoiceConsent:
    """The consent of one caller in one call. Every method may be called in any state."""

    policy: ConsentPolicy = field(default_factory=ConsentPolicy)
    """May change during a call: an agent that takes over has its own policy."""
    telephone: bool = False
    """The caller is on a telephone and may also answer by a key."""
    clock: Callable[[], str] = _now
    now: Callable[[], float] = time.time
    state: State = field(default=State.UNASKED, init=False)
    grant: Grant | None = field(default=None, init=False)
    """Set only in the state granted."""
    _question: str = field(default="", init=False)
    """The question as it was asked."""
    _enough: str = field(default="", init=False)
    """The part of the question that the caller must have heard."""
    _attribute: str | None = field(default=None, init=False)
    _asking_at: float = field(default=0.0, init=False)
    """Time by `now` at which the question began to be spoken."""
    _key: str | None = field(default=None, init=False)
    """Key pressed while the question was being spoken."""
    _answering: bool = field(default=False, init=False)
    """The caller has said something after the question."""
    _piece: tuple[float, str] = field(default=(-math.inf, ""), init=False, repr=False)
    """When the caller said the last piece, and its text."""

    @property
    def granted(self) -> bool:
        return self.state is State.GRANTED

    @property
    def question(self) -> str:
        """The question for this caller."""
        return self._question or self.policy.question_for(telephone=self.telephone)

    @property
    def phrases(self) -> Phrases:
        return self.policy.phrases

    @property
    def wants_asking(self) -> bool:
        return self.policy.ask and self.state is State.UNASKED

    @property
    def open(self) -> bool:
        """Whether the caller has neither granted nor refused."""
        return self.state in (State.UNASKED, State.ASKING, State.ASKED)

    # The question ---------------------------------------------------------------------------------

    def saying(self, reply: str) -> None:
        """A reply is being spoken; `reply`: its text so far."""
        if self.state is State.UNASKED and self.question in reply:
            self._question, self._enough = self.question, self.policy.enough
            self._asking_at = self.now()
            self._move(State.ASKING)

    def said(self, heard: str) -> None:
        """A reply has ended; `heard`: the part of its text that the caller heard."""
        if self.state is State.ASKING:
            self._asked(self._enough in heard)
        elif self.state is State.ASKED and self._answering:
            self._move(State.REFUSED, "no answer")

    def unheard(self) -> None:
        """Another reply begins: a question that was being spoken does not count as asked."""
        if self.state is State.ASKING:
            self._asked(heard=False)

    def _asked(self, heard: bool) -> None:
        key, self._key = self._key, None
        self._question = self._question if heard else ""
        self._move(State.ASKED if heard else State.UNASKED)
        if heard and key is not None:
            self.key(key)

    # The answers ----------------------------------------------------------------------------------

    def attribute(self, value: str | None) -> None:
        """The participant attribute's value; only a change counts. None or empty: not set."""
        value = value or None
        if value == self._attribute:
            return
        self._attribute = value
        if value == GRANTED:
            self._grant(Path.ATTRIBUTE)
        else:
            self._decline("attribute")

    def heard(self, text: str, ended: float | None = None) -> None:
        """The caller said `text`: a turn or a part of one.

        `ended`: time by `now` at which they had said it, if known. On a busy machine the transcript
        of an earlier turn may arrive after the question; it is not taken as the answer.
        """
        before = ended is not None and ended < self._asking_at
        sentence = self._with_piece_before(text, self.now() if ended is None else ended)
        answer = Answer.UNCLEAR
        if self.state is State.ASKED and text.strip() and not before:
            self._answering = True
            answer = self.phrases.answer_of(text)
        if self.phrases.wants_stop(text):
            self._decline("spoken")
        elif self.phrases.wishes_voice(text):
            self._grant(Path.WISH)
        elif answer is Answer.YES:
            self._grant(Path.SPOKEN)
        elif answer is Answer.NO or self.phrases.wants_stop(sentence):
            self._decline("spoken")

    def _with_piece_before(self, text: str, ended: float) -> str:
        (at, piece), self._piece = self._piece, (ended, text)
        return f"{piece} {text}" if ended - at < _ONE_SENTENCE_S else text

    def understood(self) -> bool:
        """The LLM interprets the caller's last words as a yes. Returns whether consent is granted.

        It counts only after the question: an LLM cannot grant consent on its own.
        """
        if self.state is State.ASKED and self._answering:
            self._grant(Path.UNDERSTOOD)
        return self.granted

    def stop(self) -> None:
        """Refuses or withdraws consent, for any reason."""
        self._decline("understood")

    def key(self, digit: str) -> None:
        """A telephone key. As the answer, 1 is yes and any other no; after a yes, 0 withdraws."""
        if self.state is State.ASKING:
            self._key = digit
        elif self.state is State.ASKED and digit == YES_KEY:
            self._grant(Path.KEY)
        elif self.state is State.ASKED or (self.granted and digit == STOP_KEY):
            self._decline("key")

    # ----------------------------------------------------------------------------------------------

    def _grant(self, path: Path) -> None:
        if not self.granted:
            self.grant = Grant(path, path.statement(self.question), self.clock())
            self._move(State.GRANTED, path)

    def _decline(self, how: str) -> None:
        withdrawn = self.state in (State.GRANTED, State.WITHDRAWN)
        self.grant = None
        self._move(State.WITHDRAWN if withdrawn else State.REFUSED, how)

    def _move(self, state: State, how: str = "") -> None:
        if state is not self.state:
            self.state, self._answering = state, False
            logger.info("consent: %s%s", state, f" ({how})" if how else "")
