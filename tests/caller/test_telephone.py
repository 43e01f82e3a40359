"""The attributes of a telephone call: their meaning, and which are logged."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

import pytest

from csm_tts_plugin.caller import personal
from csm_tts_plugin.caller.telephone import Telephone

SIP, STANDARD = 3, 0
SOON = 0.05


@dataclass
class Person:
    status: str | None = "ringing"
    kind: int = SIP
    identity: str = "sip_+493023125987"
    name: str = ""
    more: dict = field(default_factory=dict)

    @property
    def attributes(self):
        told = {} if self.status is None else {"sip.callStatus": self.status}
        return {**told, **self.more}


class Room:
    """A room whose events are raised by the tests."""

    def __init__(self):
        self._listeners = {}

    def on(self, event, callback):
        self._listeners[event] = callback

    def tell(self, person, status):
        person.status = status
        self._listeners["participant_attributes_changed"](["sip.callStatus"], person)

    def leaves(self, person):
        self._listeners["participant_disconnected"](person)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(personal, "_filter", personal.PersonalData())


@pytest.fixture
def room():
    return Room()


@pytest.fixture
def ends():
    return []


@pytest.fixture
def line(room, ends):
    telephone = Telephone(SIP, lambda: ends.append(1), 0.25)
    telephone.watch(room)
    return telephone


async def waiting(line, person, patience=60.0):
    task = asyncio.create_task(line.answered(person, patience))
    await asyncio.sleep(0)
    assert not task.done()
    return task


@pytest.mark.parametrize("status", [None, "dialing", "ringing", "automation", "on fire"])
async def test_only_active_is_an_answer(line, room, ends, status):
    person = Person(status)
    task = await waiting(line, person)
    for before in ("ringing", "automation"):
        room.tell(person, before)
        await asyncio.sleep(0)
        assert not task.done()
    room.tell(person, "active")
    assert await task
    assert not line.dead
    assert ends == []


async def test_who_is_not_on_a_telephone_hears_at_once(line):
    assert await line.answered(Person(None, kind=STANDARD), patience_s=0.0)
    assert line.lead_in(24_000) == b""


async def test_a_call_that_is_active_already_is_answered_at_once(line):
    assert await line.answered(Person("active"), patience_s=0.0)


@pytest.mark.parametrize("status", ["ringing", "active"])
async def test_a_hang_up_is_told_once_however_it_is_known(line, room, ends, status):
    person = Person(status)
    task = asyncio.create_task(line.answered(person))
    await asyncio.sleep(0)
    room.tell(person, "hangup")
    assert ends == [1], "in the very event"
    room.tell(person, "hangup")
    room.leaves(person)
    room.tell(person, "active")
    assert ends == [1]
    assert line.dead
    assert await task == (status == "active")


async def test_leaving_is_hanging_up_also_before_anybody_waited(line, room, ends):
    room.leaves(Person())
    assert ends == [1]
    assert not await line.answered(Person("active"))


async def test_others_may_come_and_go(line, room, ends):
    person, colleague = Person("active"), Person("active", identity="sip_colleague")
    browser = Person(None, kind=STANDARD, identity="browser")
    assert await line.answered(person)
    for other in (colleague, browser):
        room.tell(other, "hangup")
        room.leaves(other)
    assert ends == []


@pytest.mark.parametrize(("status", "shown"), [("ringing", "ringing"), ("+49301", "not told")])
async def test_patience_has_an_end_and_a_line_in_the_log(line, ends, caplog, status, shown):
    assert not await line.answered(Person(status), patience_s=SOON)
    (text,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert text == (
        f"the telephone was not answered within {SOON:g} s (sip.callStatus is {shown}); "
        "ending the call"
    )
    assert ends == [], "who gives up decides what follows"


@pytest.mark.parametrize("rate", [8_000, 24_000, 48_000])
async def test_silence_leads_in_once_and_on_a_telephone_only(line, rate):
    assert await line.answered(Person("active"))
    assert line.lead_in(rate) == bytes(2 * rate // 4)
    assert line.lead_in(rate) == b""


async def test_no_lead_in_can_be_asked_for(room):
    line = Telephone(SIP, lambda: None, 0.0)
    assert await line.answered(Person("active"))
    assert line.lead_in(24_000) == b""


async def test_what_is_known_of_the_caller_is_hidden_from_then_on(line, room):
    number, trunk = "+49302312512", "030 23125 013"
    person = Person("active", name="Ada of Berlin")
    person.more = {"sip.phoneNumber": number, "sip.trunkPhoneNumber": trunk}
    assert await line.answered(person)
    record = logging.makeLogRecord(
        {"msg": f"{number[1:]} or {trunk}, Ada of Berlin, is active as {person.identity}"}
    )
    assert personal._filter.filter(record)
    hidden = personal.HIDDEN
    assert record.getMessage() == f"{hidden} or {hidden}, {hidden}, is active as {hidden}"
