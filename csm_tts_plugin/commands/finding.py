"""One line of `doctor`: how it stands, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mark(StrEnum):
    OK = "ok"
    NOTE = "note"
    BAD = "BAD"


@dataclass(frozen=True, slots=True)
class Finding:
    mark: Mark
    text: str


def ok(text: str) -> Finding:
    return Finding(Mark.OK, text)


def note(text: str) -> Finding:
    """Worth knowing; nothing is in the way."""
    return Finding(Mark.NOTE, text)


def bad(text: str) -> Finding:
    """Cause and cure."""
    return Finding(Mark.BAD, text)
