"""State of a telephone call: ringing, answered or hung up.

LiveKit's SIP bridge adds the caller to the room as a participant and reports the state of the line
in its attribute `sip.callStatus`. LiveKit's objects are passed in; this module does not import it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Protocol

from . import personal

logger = logging.getLogger("csm_tts_plugin.agent")

STATUS = "sip.callStatus"

PATIENCE_S = 60.0
"""Time for the call to be answered: longer than a telephone rings before voicemail answers."""


class CallStatus(StrEnum):
    """Values of `sip.callStatus`. AUTOMATION: the line is open and digits are being dialled."""

    DIALING = "dialing"
    RINGING = "ringing"
    AUTOMATION = "automation"
    ACTIVE = "active"
    HANGUP = "hangup"


class Person(Protocol):
    """The used part of LiveKit's participant."""

    @property
    def identity(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> int: ...
    @property
    def attributes(self) -> Mapping[str, str]: ...


class Room(Protocol):
    """The used part of LiveKit's room."""

    def on(self, event: Any, callback: Callable[..., None]) -> Any: ...


class Telephone:
    """The line of the room's first telephone participant, if there is one.

    `hung_up` is called once, within the event that reports the end of the line. This is the status
    `hangup`, or the participant's leaving, because a telephone participant does not come back.
    """

    def __init__(self, sip_kind: int, hung_up: Callable[[], None], lead_in_s: float) -> None:
        self._sip_kind = sip_kind
        self._hung_up = hung_up
        self._lead_in = lead_in_s
        self._caller: str | None = None
        self._status = ""
        self._news = asyncio.Event()

    def watch(self, room: Room) -> None:
        room.on("participant_attributes_changed", lambda _, person: self._look_at(person))
        room.on("participant_disconnected", self._left)

    @property
    def dead(self) -> bool:
        return self._status == CallStatus.HANGUP

    async def answered(self, person: Person, patience_s: float = PATIENCE_S) -> bool:
        """Waits until this person can hear us: returns at once unless their telephone still rings.

        False: they hung up, or did not answer within `patience_s`; the log says which.
        """
        if person.kind != self._sip_kind:
            return True
        self._look_at(person)
        try:
            async with asyncio.timeout(patience_s):
                while self._status != CallStatus.ACTIVE and not self.dead:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            logger.warning(
                "the telephone was not answered within %g s (%s is %s); ending the call",
                patience_s,
                STATUS,
                _shown(self._status),
            )
        return self._status == CallStatus.ACTIVE

    def lead_in(self, rate: int) -> bytes:
        """Silence to play before the next audio, as 16-bit mono PCM: once on a telephone, else b"".

        The media path of a call opens late after the answer and would lose the first word.
        """
        if self._caller is None or not self._lead_in:
            return b""
        seconds, self._lead_in = self._lead_in, 0.0
        return bytes(2 * round(seconds * rate))

    def _is_caller(self, person: Person) -> bool:
        return person.kind == self._sip_kind and self._caller in (None, person.identity)

    def _look_at(self, person: Person) -> None:
        if not self._is_caller(person) or self.dead:
            return
        if self._caller is None:
            self._caller = person.identity
            logger.info("the caller is on a telephone")
        personal.hide(person.identity, person.name, *personal.numbers(person.attributes))
        status = person.attributes.get(STATUS, "")
        if status == CallStatus.HANGUP:
            self._end()
        elif status != self._status:
            self._status = status
            self._news.set()

    def _left(self, person: Person) -> None:
        if self._is_caller(person) and not self.dead:
            self._end()

    def _end(self) -> None:
        before, self._status = self._status, str(CallStatus.HANGUP)
        logger.info("the caller hung up (%s was %s)", STATUS, _shown(before))
        self._news.set()
        self._hung_up()


def _shown(status: str) -> str:
    """A known status; an unknown one may be anything and is not logged."""
    return status if status in {str(known) for known in CallStatus} else "not told"
