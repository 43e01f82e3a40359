"""One line of `doctor` or `voices check`: a state, and what to do about it."""

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
    """For information; not a fault."""
    return Finding(Mark.NOTE, text)


def bad(text: str) -> Finding:
    """A fault, with cause and remedy."""
    return Finding(Mark.BAD, text)
