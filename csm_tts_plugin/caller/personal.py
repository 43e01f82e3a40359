"""Removes personal data from the log. LiveKit logs participants' identities, and the identity of a
telephone caller is a telephone number.

A filter for the log handlers of a process. It hides fields with personal names, telephone numbers,
SIP addresses, and every text that `hide` was called with.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "(hidden)"

_PERSONAL = re.compile(r"lk\.pii\..*|(.*[._])?(participant|(\w+_)?identity|phone_?number)", re.I)
"""Names of fields that hold a person's identity or number."""
_ROOM = re.compile(r"(.*[._])?room(_?name)?", re.I)
"""Fields with a room's name; LiveKit's dispatch rules put the caller's number into it."""
_DIGITS = re.compile(r"\+?\d{5,}")
_ADDRESS = re.compile(
    r"\bsip_[^\s\"',)]+"  # the identity that the SIP bridge gives a caller
    r"|\b(?:sips?|tel):[^\s\"',)>]+"
    r"|\+\d[\d().\- ]{5,}\d"
)
_NUMBERS = ("sip.phoneNumber", "sip.trunkPhoneNumber", "sip.fromUser", "sip.toUser")
_SHORTEST = 3
"""Shortest text in characters that is hidden; a shorter one would match everywhere."""
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


class PersonalData(logging.Filter):
    """Passes on every record, without personal data."""

    def __init__(self) -> None:
        super().__init__()
        self._known: set[str] = set()
        self._told: re.Pattern[str] | None = None

    def hide(self, *texts: str) -> None:
        """Hides each of these texts from now on, where it is not a part of a longer word."""
        new = {text for text in texts if len(text) >= _SHORTEST} - self._known
        if not new:
            return
        self._known |= new
        longest_first = sorted(self._known, key=len, reverse=True)
        words = "|".join(map(re.escape, longest_first))
        self._told = re.compile(rf"(?<![0-9A-Za-z.])(?:{words})(?![0-9A-Za-z]|\.\d)")

    def filter(self, record: logging.LogRecord) -> bool:
        self._message(record)
        self._traceback(record)
        for name in record.__dict__.keys() - _STANDARD:
            setattr(record, name, self._field(name, getattr(record, name)))
        return True

    def _message(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            # The arguments do not match the format; `logging` would print them unfiltered.
            message, record.args = str(record.msg), None
        if (cleaned := self._clean(message)) != message:
            record.msg, record.args = cleaned, None

    def _traceback(self, record: logging.LogRecord) -> None:
        text = record.exc_text or ""
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        if (cleaned := self._clean(text)) != text:
            record.exc_text, record.exc_info = cleaned, None

    def _field(self, name: str, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if _PERSONAL.fullmatch(name):
            return HIDDEN
        if isinstance(value, Mapping):
            return {key: self._field(str(key), item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._field(name, item) for item in value]
        text = str(value)
        cleaned = self._clean(text)
        if _ROOM.fullmatch(name):
            cleaned = _DIGITS.sub(HIDDEN, cleaned)
        return value if cleaned == text else cleaned

    def _clean(self, text: str) -> str:
        text = text if self._told is None else self._told.sub(HIDDEN, text)
        return _ADDRESS.sub(HIDDEN, text)


_filter = PersonalData()


def guard_logs() -> None:
    """Adds the filter to all current log handlers of this process."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_filter)


def hide(*texts: str) -> None:
    """Hides these texts in everything that this process logs from now on."""
    _filter.hide(*texts)


def numbers(attributes: Mapping[str, str]) -> Iterator[str]:
    """Telephone numbers in a SIP participant's attributes, with and without the leading plus."""
    for name, value in attributes.items():
        if name in _NUMBERS:
            yield value
            yield value.removeprefix("+")
