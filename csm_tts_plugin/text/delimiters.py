"""Delimiters of emphasis: where a run of `*`, `_` or `~` opens and where it closes.

Follows CommonMark's flanking rules, with two exceptions: a delimiter inside a word is text, and
telephone keys are text.
"""

from __future__ import annotations

import re

from .marks import in_word, is_punctuation

_REACH = 160
"""Characters in which a delimiter's partner is searched for."""
_SENTENCE_END = re.compile(r"[.!?…]['\"”’)\]]*\s|[。！？]")
STOPS_AT_END = re.compile(r"[.!?…。！？]['\"”’)\]]*$")
_TELEPHONE_KEYS = re.compile(r"[*#]*[\d#*]+|[A-Z]{2,}")


def opens(before: str, after: str) -> bool:
    """Whether a run is left-flanking and at a word boundary."""
    if after.isspace() or in_word(before):
        return False
    return not is_punctuation(after) or before.isspace() or is_punctuation(before)


def closes(before: str, after: str) -> bool:
    """Whether a run is right-flanking and at a word boundary."""
    return opens(after, before)


def has_partner(run: str, text: str, dialled: bool, final: bool, paused: bool) -> bool | None:
    """Whether `run`, followed by `text`, is closed; None: more text is needed.

    If the sentence ends first, a run before a word counts as closed; a telephone key does not.
    """
    within = text[:_REACH]
    paragraph = within.find("\n\n")
    known = len(within) == _REACH or final or paragraph >= 0
    end = _SENTENCE_END.search(within, 0, paragraph + 1 if paragraph >= 0 else len(within))
    within = within[:paragraph] if paragraph >= 0 else within
    keys = _TELEPHONE_KEYS.match(within) if dialled else None
    closing = _closing(run, within, known)
    if closing is not None and closing < len(within):
        return not (keys and len(run) == 1 and keys.end() >= closing)
    ended = end is not None or (paused and STOPS_AT_END.search(within) is not None)
    if closing is None and ended and not keys and within[:1].isalpha():
        return True
    return False if known and closing is None else None


def _closing(run: str, within: str, known: bool) -> int | None:
    """Position of the partner; len(within): perhaps at the end; None: there is none."""
    for found in re.finditer(rf"{re.escape(run[0])}+", within):
        if found.group() != run:
            continue
        if found.end() == len(within) and not known:
            return len(within)
        before, after = within[found.start() - 1 : found.start()], within[found.end() :][:1]
        if before and closes(before, after or " "):
            return found.start()
    return None
