"""The filter removes everything that identifies a caller and keeps all other text."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from livekit.agents.cli.log import JsonFormatter

from csm_tts_plugin.caller.personal import HIDDEN, PersonalData

NUMBER = "+493023125987"
CALLER = f"sip_{NUMBER}"


@pytest.fixture
def log():
    """A logger with the filter and LiveKit's own JSON format."""
    lines = []

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    logger, handler, guard = logging.Logger("test"), Lines(), PersonalData()
    handler.setFormatter(JsonFormatter("%(message)s"))
    handler.addFilter(guard)
    logger.addHandler(handler)
    logger.guard, logger.lines = guard, lines
    return logger


FIELDS = [
    "participant",
    "identity",
    "participant_identity",
    "lk.pii.participant_identity",
    "lk.pii.sip.phoneNumber",
    "sip.phoneNumber",
    "caller_identity",
]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [CALLER, "Ada", {"identity": "Ada"}])
def test_fields_that_name_somebody_are_hidden_whatever_they_hold(log, field, value):
    log.info("linked", extra={field: value})
    assert json.loads(log.lines[0])[field] == HIDDEN


@pytest.mark.parametrize(
    "text",
    [CALLER, f"sip:{NUMBER[1:]}@example.com", f"tel:{NUMBER}", NUMBER, "+49 (30) 23125-987"],
)
def test_what_looks_like_a_number_or_an_address_is_hidden_anywhere(log, text):
    log.info("%s called %s", text, "us", extra={"job": {"of": [text, 1]}, "detail": f"<{text}>"})
    assert "3125" not in log.lines[0]
    record = json.loads(log.lines[0])
    assert record["message"] == f"{HIDDEN} called us"
    assert record["job"] == {"of": [HIDDEN, 1]}


@pytest.mark.parametrize("name", ["room", "room_name", "lk.room_name"])
def test_a_room_keeps_its_name_but_not_the_number_in_it(log, name):
    log.info("joined", extra={name: f"call-_{NUMBER}_aBcDe", "room_id": "RM_12345678"})
    log.info("joined", extra={name: "call-_493023125987_aBcDe"})
    log.info("joined", extra={name: "call-3f2a"})
    first, second, third = map(json.loads, log.lines)
    assert first[name] == second[name] == f"call-_{HIDDEN}_aBcDe"
    assert third[name] == "call-3f2a"
    assert first["room_id"] == "RM_12345678"


def test_tracebacks_are_looked_at_too(log):
    try:
        raise ValueError(f"no such participant {CALLER}")
    except ValueError:
        log.error("it failed", exc_info=sys.exc_info())
    assert NUMBER not in log.lines[0]
    assert "ValueError" in log.lines[0]
    assert "test_personal.py" in log.lines[0], "where it happened stays"


def test_a_line_that_does_not_fit_its_arguments_is_logged_without_them(log):
    log.info("%d calls", CALLER)
    assert json.loads(log.lines[0])["message"] == "%d calls"


def test_what_it_was_told_of_is_hidden_where_it_stands_by_itself(log):
    log.guard.hide("Ada", "101", "no", "")
    log.info("Ada of Adana at 101, 1.101 s, 1101: no", extra={"who": "by Ada", "n": 101})
    record = json.loads(log.lines[0])
    assert record["message"] == f"{HIDDEN} of Adana at {HIDDEN}, 1.101 s, 1101: no"
    assert (record["who"], record["n"]) == (f"by {HIDDEN}", 101)


def test_everything_else_passes_as_it_is(log):
    turn = json.dumps({"turn": 1, "spoke_at": 1763853532.123, "e2e": 1.5, "voice": "caller"})
    url = "ws://127.0.0.1:43567"
    log.info("turn %s", turn, extra={"url": url, "at": "2026-11-22T23:00:00+00:00", "n": None})
    record = json.loads(log.lines[0])
    assert record["message"] == f"turn {turn}"
    assert (record["url"], record["at"], record["n"]) == (url, "2026-11-22T23:00:00+00:00", None)
