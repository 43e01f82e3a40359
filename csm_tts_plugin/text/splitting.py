"""Splits a stream of text into sentences.

Other splitters hold a finished sentence back until the next one begins, which delays the first
audio. This one looks one character past a full stop, and rarely at the next word. If the stream
pauses there, `settle` decides. Independent of LiveKit and of the model.
"""

from __future__ import annotations

import re

from .clauses import piece_end
from .weight import fit

MAX_SENTENCE_CHARS = 120
"""About 8 s of speech, which csm-tiny prefills at once. Longer sentences are cut at a comma, or
else between words. Digits and symbols count by the time they take to say."""

_LOOK_AHEAD = 16
"""Characters past the limit that must be there before a sentence is cut: enough to recognise an
address."""

_STOPS = ".!?…"
_WIDE_STOPS = "。！？｡।"
_QUOTES = "\"'”’»)]}」』】）》"
_CLOSERS = _QUOTES + "*_`～"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TITLES = _words(
    "mr mrs ms mx dr prof st mt ft gen col sgt capt lt cmdr maj rev hon gov sen rep "
    "vs e.g i.e cf viz approx messrs mme mlle sra srta dra ud uds herr frau bzw cpl pvt adm supt "
    "insp pres"
)
"""A full stop after one of these never ends a sentence."""
_NUMBERED = _words(
    "no nos nr vol p pp fig figs sec ch art op eq par jan feb apr jun jul aug sep sept oct nov dec "
    "ext tel apt rm ver v ca max min"
)
"""No sentence end if a number follows: "No. 5", but "No. I won't."."""
_OPEN_ENDED = _words("etc al a.m p.m inc ltd co corp jr sr ave blvd rd dept est ph.d m.d b.c a.d")
"""A sentence end if a capital follows, as after an ellipsis."""

_WORD = re.compile(r"(?:[^\W_]+\.)*[^\W_]+$")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]$")
_ORDINAL = re.compile(r"\W*\d{1,3}$")
_DAY_HALF = re.compile(r"\b[ap]\.\s?m$", re.IGNORECASE)
_HALF_BEGUN = re.compile(r"\d\s?[ap]$", re.IGNORECASE)
_NAME_LIKE = re.compile(r"[@/\\_:.\d]|^(?:www|https?|ftp)$", re.IGNORECASE)
"""The last word looks like a name or an address, which may go on after a full stop."""
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
_CUT_AFTER = re.compile(r"[,;:，；、—–](?=\s)|[，；、]")


class SentenceSplitter:
    """Splits text that arrives in pieces. The result does not depend on the pieces.

    A single line break is a space; a blank line ends a sentence. Each sentence keeps the white
    space before it: all sentences joined give the text, without white space at its end.

    Raises ValueError for a `max_chars` below 1.
    """

    def __init__(self, max_chars: int = MAX_SENTENCE_CHARS) -> None:
        if max_chars < 1:
            raise ValueError(f"max_chars must be at least 1, got {max_chars}")
        self._max = max_chars
        self._space = ""
        self._buffer = ""

    @property
    def pending(self) -> bool:
        """Whether unfinished text is held back."""
        return bool(self._buffer)

    def push(self, text: str) -> list[str]:
        """Returns the sentences that `text` completes."""
        self._rest(self._buffer + text)
        return self._take(final=False)

    def settle(self) -> list[str]:
        """The stream pauses: also returns the rest if it looks complete."""
        sentences = self._take(final=False)
        text = self._buffer.rstrip()
        if text and (stop := _stop_before(text)) is not None and _settled(text, stop):
            sentences.append(self._cut(len(text)))
        return sentences

    def piece(self, seconds: float) -> list[str]:
        """Returns what may be spoken of a sentence that began to arrive `seconds` ago."""
        end = piece_end(self._buffer, seconds)
        return [] if end is None else [self._cut(end)]

    def flush(self) -> list[str]:
        """The stream has ended: returns the rest."""
        sentences = self._take(final=True)
        self._space = ""
        return sentences

    def _take(self, *, final: bool) -> list[str]:
        sentences = []
        while self._buffer and (end := self._end(final)) is not None:
            sentences.append(self._cut(end))
        return sentences

    def _cut(self, end: int) -> str:
        text = self._buffer[:end].rstrip()
        sentence = self._space + text
        self._space = ""
        self._rest(self._buffer[len(text) :])
        return sentence

    def _rest(self, text: str) -> None:
        self._buffer = text.lstrip()
        self._space += text[: len(text) - len(self._buffer)]

    def _end(self, final: bool) -> int | None:
        """End of the first sentence in the buffer; None: more text is needed.

        Looks only at the characters up to the limit, even if more have arrived. Otherwise the
        sentences would depend on the pieces.
        """
        fitting = max(1, fit(self._buffer, self._max)[0])
        beyond = len(self._buffer) - fitting
        head = self._buffer[: fitting + 1]
        end = _sentence_end(head, final=final and not beyond)
        if end is not None:
            return min(end, fitting)
        if beyond > _LOOK_AHEAD or (final and beyond):
            return _long_cut(head[:fitting])
        return len(head) if final else None


def _sentence_end(text: str, *, final: bool) -> int | None:
    """End of the first sentence of `text`; None: there is none, or more text is needed."""
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\n":
            rest = text[at + 1 :].lstrip(" \t\r\f\v")
            if rest.startswith("\n"):
                return at
            if not rest and not final:
                return None
            at += 1
            continue
        if char in _WIDE_STOPS:
            close = _skip(text, at, _WIDE_STOPS + _STOPS + _CLOSERS)
            return close if final or close < len(text) else None
        if char in _STOPS:
            after = _skip(text, at, _STOPS)
            close = _skip(text, after, _CLOSERS)
            verdict = _is_end(text, at, after, close, final)
            if verdict is None:
                return None
            if verdict:
                return close
            at = close
        else:
            at += 1
    return None


def _is_end(text: str, stop: int, after: int, close: int, final: bool) -> bool | None:
    """Whether the stops in [stop, after), with closing marks up to `close`, end a sentence."""
    if close == len(text):
        return True if final else None
    if not text[close].isspace():
        return False
    if _PARAGRAPH.match(text, close):
        return True
    need = _what_must_follow(text[:stop], text[stop:after], text[after:close])
    if need in ("anything", "nothing"):
        return need == "anything"
    beyond = text[close:].lstrip()
    if not beyond:
        return True if final else None
    if need == "no number":
        return not beyond[0].isdigit()
    return not beyond[0].islower() if need == "no lower case" else beyond[0].isupper()


def _what_must_follow(before: str, stops: str, closing: str) -> str:
    """What must follow the white space, so that these stops end a sentence."""
    if stops == "…" or (len(stops) > 1 and set(stops) == {"."}):
        return "a capital"
    if any(mark in _QUOTES for mark in closing):
        return "no lower case"
    if stops != ".":
        return "anything"
    match = _WORD.search(before)
    word = match.group().lower() if match else ""
    if _DAY_HALF.search(before) or _HALF_BEGUN.search(before):
        return "a capital"
    if word in _TITLES or _ORDINAL.fullmatch(before):
        return "nothing"
    if word in _OPEN_ENDED:
        return "a capital"
    if word in _NUMBERED:
        return "no number"
    if word != "i" and _INITIALS.fullmatch(word):
        return "nothing"
    return "anything"


def _skip(text: str, at: int, chars: str) -> int:
    while at < len(text) and text[at] in chars:
        at += 1
    return at


def _stop_before(text: str) -> int | None:
    """Start of the run of stops at the end of `text`, before closing marks; None: no stops."""
    end = len(text.rstrip(_CLOSERS))
    start = len(text[:end].rstrip(_STOPS + _WIDE_STOPS))
    return start if start < end else None


def _settled(text: str, stop: int) -> bool:
    """Whether a pause after these stops ends the sentence: not after "Mr.", "No." or "3."."""
    after = _skip(text, stop, _STOPS + _WIDE_STOPS)
    if text[stop:after] != ".":
        return True
    before = text[:stop]
    last = before.split()[-1].strip(_CLOSERS + "([{“‘") if before.split() else ""
    match = _WORD.search(before)
    word = match.group().lower() if match else ""
    if _NAME_LIKE.search(last) or word in _NUMBERED or (word in _OPEN_ENDED and word != "etc"):
        return False
    if _DAY_HALF.search(before) or _HALF_BEGUN.search(before):
        return False
    return _what_must_follow(before, ".", text[after:]) != "nothing"


def _long_cut(head: str) -> int:
    """Position at which to cut a sentence that does not end within `head`."""
    clauses = [match.end() for match in _CUT_AFTER.finditer(head)]
    if clauses and clauses[-1] > len(head) // 3:
        return clauses[-1]
    space = max((at for at, char in enumerate(head) if char.isspace()), default=0)
    return space or len(head)
