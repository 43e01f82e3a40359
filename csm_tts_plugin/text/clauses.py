"""Finds how much of an unfinished sentence may be spoken. Uses only the standard library."""

from __future__ import annotations

import re

SHORTEST_CHARS = 16
"""Shortest clause that is spoken alone: about 1 s of speech, during which the rest is drawn."""
_MARK = re.compile(r"[,;:—–](?=\s)|[，；、：]")
_JOINT = re.compile(r"\s(?:and|but|or|because|although|while|when|where|which|who|so|if)\s")
_JOINT_CHARS = 30


def clause_end(text: str) -> int | None:
    """Length in characters of the first clause of `text`; None: no clause end yet.

    A clause ends at a mark after at least 1 s of speech, or before a conjunction after at least
    2 s.
    """
    ends = [
        *(match.end() for match in _MARK.finditer(text) if match.end() >= SHORTEST_CHARS),
        *(match.start() for match in _JOINT.finditer(text) if match.start() >= _JOINT_CHARS),
    ]
    return min(ends, default=None)


SPOKEN_CHARS_S = 15.0
"""The pace of speech."""
_FEWEST_WORDS = 6


def piece_end(text: str, seconds: float) -> int | None:
    """Number of characters that may be spoken of a sentence that began to arrive `seconds` ago.

    This is its first clause or, if text arrives slower than speech, its words so far. None: wait.
    """
    if (end := clause_end(text)) is not None:
        return end
    whole = text.rfind(" ")
    slow = len(text) < SPOKEN_CHARS_S * seconds
    return whole if slow and len(text[: max(whole, 0)].split()) >= _FEWEST_WORDS else None
