"""Strict parsing of external JSON: every member is typed, bounded and known.

Independent of the messages. Errors name the field, never its value.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from ..config import Limits
from ..errors import AudioError, RequestError, TextError

_BYTE_ORDER_MARK = "\ufeff"
"""Written before JSON by some editors and shells."""
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_NAMED_MAX = 4

WHOLE_MAX = 2**63 - 1
"""The largest accepted integer."""


def read_object(text: str, limits: Limits) -> dict[str, Any]:
    """Parses one JSON object. Raises RequestError, also for NaN, repeated
    names and deep nesting.
    """
    if len(text) > limits.message_bytes:
        raise RequestError(f"A message may have at most {limits.message_bytes} bytes.")
    try:
        value = json.loads(
            text.removeprefix(_BYTE_ORDER_MARK),
            parse_constant=_refuse_constant,
            object_pairs_hook=_unique,
        )
    except (ValueError, RecursionError):  # JSONDecodeError, an integer of thousands of digits
        raise RequestError("A message must be one JSON object.") from None
    if not isinstance(value, dict):
        raise RequestError("A message must be one JSON object.")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are not JSON


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a field twice")
    return members


class Fields:
    """The members of one JSON object, taken one by one; those that are left
    at the end are unknown.
    """

    def __init__(self, members: dict[str, Any], where: str) -> None:
        self._members = members
        self._where = where

    def finish(self, *, named: bool = False) -> None:
        """Raises RequestError for members that were not taken. `named`: the message has their
        names, but never their values, and no name that could be a text.
        """
        if not self._members:
            return
        names = [name for name in self._members if _FIELD_NAME.fullmatch(name)][:_NAMED_MAX]
        if not named or not names:
            raise RequestError(f"{self._where}: {len(self._members)} unknown field(s).")
        others = len(self._members) - len(names)
        told = ", ".join(names) + (f" and {others} more" if others else "")
        raise RequestError(f"{self._where}: unknown field(s) {told}; leave them out.")

    def bad(self, name: str, what: str, kind: type[RequestError] = RequestError) -> RequestError:
        return kind(f"{self._where}.{name} must be {what}.")

    def raw(self, name: str) -> Any:
        """The member's value, None if it is absent or null."""
        return self._members.pop(name, None)

    def string(self, name: str, what: str = "a string", default: str | None = None) -> str:
        value = self.raw(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.bad(name, what)
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise self.bad(name, "valid Unicode, without lone surrogates")
        return value

    def match(self, name: str, pattern: re.Pattern[str]) -> str:
        value = self.string(name)
        if not pattern.fullmatch(value):
            raise self.bad(name, f"like {pattern.pattern}")
        return value

    def name(self, name: str, limits: Limits, default: str | None = None) -> str:
        """A speaker's name: short, printable, not blank."""
        value = self.string(name, default=default)
        if not value.strip() or len(value) > limits.name_chars or not value.isprintable():
            raise self.bad(name, f"1 to {limits.name_chars} printable characters")
        return value

    def speech(self, name: str, limits: Limits) -> str:
        """A text: not blank, not too long."""
        value = self.string(name)
        if not value.strip():
            raise self.bad(name, "some text, not blank", TextError)
        if len(value) > limits.text_chars:
            raise self.bad(name, f"at most {limits.text_chars} characters long", TextError)
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(name, "true or false")
        return value

    def integer(self, name: str, low: int, high: int, *, schema: bool = False) -> int | None:
        """`schema`: accept 1.0 as an integer, as JSON Schema does."""
        value = self.raw(name)
        if value is None:
            return None
        if schema and type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self.bad(name, f"a whole number from {low} to {high}")
        return value

    def count(self, name: str) -> int:
        value = self.integer(name, 0, WHOLE_MAX)
        if value is None:
            raise self.bad(name, "a whole number")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.raw(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.bad(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def audio(self, name: str, limits: Limits) -> bytes:
        """An encoded file in base64; its length is checked before decoding."""
        value = self.string(name)
        if len(value) > 4 * ((limits.reference_bytes + 2) // 3):
            raise self.bad(name, f"a file of at most {limits.reference_bytes} bytes", AudioError)
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise self.bad(name, "an audio file in base64", AudioError) from None
        if not 0 < len(data) <= limits.reference_bytes:
            raise self.bad(name, f"a file of 1 to {limits.reference_bytes} bytes", AudioError)
        return data

    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def object(self, name: str) -> dict[str, Any]:
        value = self.raw(name)
        if not isinstance(value, dict):
            raise self.bad(name, "an object")
        return value
