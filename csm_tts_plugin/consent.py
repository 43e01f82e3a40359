"""Whether the caller lets their voice be used: one question, every way to answer it, one state.

    unasked -> asking -> asked -> granted -> withdrawn
                              \\-> refused

Asked once at most, and not at all once the answer is known. Only the caller moves this to granted:
by the participant attribute, by their own words, by a key of a phone. An LLM may understand a yes
where the words are not plain, but only in what the caller said after the question. Knows nothing of
LiveKit, sound or voices.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from .phrases import Answer, answer_of, wants_stop, wishes_voice

logger = logging.getLogger("csm_tts_plugin.agent")

ATTRIBUTE = "csm.voice_consent"
GRANTED = "granted"
"""The attribute's one value that grants; any other refuses."""

YES_KEY, STOP_KEY = "1", "0"

QUESTION = (
    "By the way, I can go on in your own voice, made from what you say in this call."
    " Is that all right with you?"
)
PHONE_QUESTION = f"{QUESTION} You can also press one for yes."
_ASKED_BY = "your own voice"
"""Whoever heard this much of the question knows what is asked."""


class State(StrEnum):
    UNASKED = "unasked"
    ASKING = "asking"
    """The question is on its way to the caller's ear; it counts when it has been heard."""
    ASKED = "asked"
    GRANTED = "granted"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"


class Path(StrEnum):
    """How consent was given, with the statement that the record keeps."""

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
    """Of one caller in one call. Every method may be called in any state."""

    question: str = QUESTION
    """As it is put to this caller; settled before it is asked."""
    clock: Callable[[], str] = _now
    state: State = field(default=State.UNASKED, init=False)
    grant: Grant | None = field(default=None, init=False)
    """Of the state granted; None in all others."""
    _attribute: str | None = field(default=None, init=False)
    _key: str | None = field(default=None, init=False)
    """Pressed while the question was being spoken."""
    _answering: bool = field(default=False, init=False)
    """The caller has said something since they heard the question."""

    @property
    def granted(self) -> bool:
        return self.state is State.GRANTED

    @property
    def wants_asking(self) -> bool:
        return self.state is State.UNASKED

    @property
    def open(self) -> bool:
        """Neither yes nor no yet."""
        return self.state in (State.UNASKED, State.ASKING, State.ASKED)

    # The question ---------------------------------------------------------------------------------

    def saying(self, reply: str) -> None:
        """A reply begins, or goes on, with these words so far."""
        if self.state is State.UNASKED and self.question in reply:
            self._move(State.ASKING)

    def said(self, heard: str) -> None:
        """A reply is over; `heard`: as much of it as the caller heard."""
        if self.state is State.ASKING:
            self._asked(_ASKED_BY in heard)
        elif self.state is State.ASKED and self._answering:
            self._move(State.REFUSED, "no answer")

    def unheard(self) -> None:
        """Another reply begins: a question that was on its way is not."""
        if self.state is State.ASKING:
            self._asked(heard=False)

    def _asked(self, heard: bool) -> None:
        key, self._key = self._key, None
        self._move(State.ASKED if heard else State.UNASKED)
        if heard and key is not None:
            self.key(key)

    # The answers ----------------------------------------------------------------------------------

    def attribute(self, value: str | None) -> None:
        """The attribute as it is now; only a change says something. None or empty: not set."""
        value = value or None
        if value == self._attribute:
            return
        self._attribute = value
        if value == GRANTED:
            self._grant(Path.ATTRIBUTE)
        else:
            self._decline("attribute")

    def heard(self, text: str) -> None:
        """What the caller said: a turn, or a part of one."""
        if wants_stop(text):
            self._decline("spoken")
        elif wishes_voice(text):
            self._grant(Path.WISH)
        elif self.state is State.ASKED and text.strip():
            self._answering = True
            answer = answer_of(text)
            if answer is Answer.YES:
                self._grant(Path.SPOKEN)
            elif answer is Answer.NO:
                self._decline("spoken")

    def understood(self) -> bool:
        """The LLM takes what the caller last said for a yes; whether their voice may be used.

        Counts as the answer to the question only: nothing that the LLM calls grants by itself.
        """
        if self.state is State.ASKED and self._answering:
            self._grant(Path.UNDERSTOOD)
        return self.granted

    def stop(self) -> None:
        """However the wish became known."""
        self._decline("understood")

    def key(self, digit: str) -> None:
        """A key of the caller's phone: 1 is yes and any other no, once asked; 0 is a stop later."""
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
