"""Text on its way to speech: sentences out of a stream, and what of them can be spoken.

The splitter is ours because the ones at hand hold a finished sentence back until the next has
begun, which costs first audio. It looks one character past a full stop, seldom at the next word;
where a stream pauses there, `settle` decides without. Knows nothing of LiveKit and of the model.
"""

from __future__ import annotations

import re
import unicodedata

MAX_SENTENCE_CHARS = 120
"""About 8 s of speech, and what csm-tiny reads at once; longer sentences are cut at commas, else
between words."""

_STOPS = ".!?…"
_WIDE_STOPS = "。！？｡।"
_QUOTES = "\"'”’»)]}」』】）》"
_CLOSERS = _QUOTES + "*_`～"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TITLES = _words(
    "mr mrs ms mx dr prof st mt ft gen col sgt capt lt cmdr maj rev hon gov sen rep "
    "vs e.g i.e cf viz approx messrs mme mlle"
)
"""Never the end of a sentence."""
_NUMBERED = _words(
    "no nos nr vol p pp fig figs sec ch art op eq par jan feb apr jun jul aug sep sept oct nov dec"
)
"""Not the end where a number follows: "No. 5", but "No. I won't."."""
_OPEN_ENDED = _words("etc al a.m p.m inc ltd co corp jr sr ave blvd rd dept est ph.d m.d b.c a.d")
"""The end where a capital follows, as after an ellipsis."""

_WORD = re.compile(r"(?:[^\W_]+\.)*[^\W_]+$")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]$")
_ORDINAL = re.compile(r"\W*\d{1,3}$")
_CUT_AFTER = re.compile(r"[,;:，；、—–](?=\s)|[，；、]")


class SentenceSplitter:
    """Sentences of a text that arrives in pieces; the same ones however it is cut into pieces.

    Each keeps the white space before it, so that all of them joined are the text, but for white
    space at its very end.
    """

    def __init__(self, max_chars: int = MAX_SENTENCE_CHARS) -> None:
        if max_chars < 1:
            raise ValueError(f"max_chars must be at least 1, got {max_chars}")
        self._max = max_chars
        self._space = ""
        self._buffer = ""

    @property
    def pending(self) -> bool:
        """Whether text waits for its end."""
        return bool(self._buffer)

    def push(self, text: str) -> list[str]:
        """The sentences that `text` completes."""
        self._rest(self._buffer + text)
        return self._take(final=False)

    def settle(self) -> list[str]:
        """The stream pauses: what looks complete is taken for complete."""
        sentences = self._take(final=False)
        text = self._buffer.rstrip()
        if text and (stop := _stop_before(text)) is not None and _settled(text, stop):
            sentences.append(self._cut(len(text)))
        return sentences

    def flush(self) -> list[str]:
        """The stream is over: all that is left."""
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
        """Where the first sentence of the buffer ends; None: it takes more text to say.

        Only the characters up to the limit are looked at, however many are there: else the
        sentences would depend on the pieces.
        """
        over = len(self._buffer) > self._max
        head = self._buffer[: self._max + 1]
        end = _sentence_end(head, final=final and not over)
        if end is not None:
            return min(end, self._max)
        if over:
            return _long_cut(head[: self._max])
        return len(head) if final else None


def _sentence_end(text: str, *, final: bool) -> int | None:
    """The end of the first sentence of `text`; None: there is none, or it cannot be told yet."""
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\n":
            return at
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
    """Whether the stops [stop, after) with closing marks up to `close` end a sentence."""
    if close == len(text):
        return True if final else None
    if not text[close].isspace():
        return False
    if text[close] == "\n":
        return True
    need = _what_must_follow(text[:stop], text[stop:after], text[after:close])
    if need in ("anything", "nothing"):
        return need == "anything"
    beyond = text[close:].lstrip()
    if not beyond:
        return True if final or "\n" in text[close:] else None
    if need == "no number":
        return not beyond[0].isdigit()
    return not beyond[0].islower() if need == "no lower case" else beyond[0].isupper()


def _what_must_follow(before: str, stops: str, closing: str) -> str:
    """What has to follow the white space for these stops to end a sentence."""
    if stops == "…" or (len(stops) > 1 and set(stops) == {"."}):
        return "a capital"
    if any(mark in _QUOTES for mark in closing):
        return "no lower case"
    if stops != ".":
        return "anything"
    match = _WORD.search(before)
    word = match.group().lower() if match else ""
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
    """Where the run of stops begins that `text`, but for closing marks, ends with."""
    end = len(text.rstrip(_CLOSERS))
    start = len(text[:end].rstrip(_STOPS + _WIDE_STOPS))
    return start if start < end else None


def _settled(text: str, stop: int) -> bool:
    """Whether a pause after these stops is the end: not after "Mr.", and not after "3."."""
    after = _skip(text, stop, _STOPS + _WIDE_STOPS)
    if text[stop:after] == "." and text[:stop][-1:].isdigit():
        return False
    return _what_must_follow(text[:stop], text[stop:after], text[after:]) != "nothing"


def _long_cut(head: str) -> int:
    """Where to cut a sentence that does not end within `head`."""
    clauses = [match.end() for match in _CUT_AFTER.finditer(head)]
    if clauses and clauses[-1] > len(head) // 3:
        return clauses[-1]
    space = max((at for at, char in enumerate(head) if char.isspace()), default=0)
    return space or len(head)


_MARKUP: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^\s*(?:```|~~~).*$", re.MULTILINE), " "),
    (re.compile(r"!?\[([^\[\]]{0,300})\]\([^()\s]{0,300}\)"), r"\1"),
    (re.compile(r"</?[A-Za-z][^<>]{0,200}>"), " "),
    (re.compile(r"^\s*(?:>\s*)+", re.MULTILINE), ""),
    (re.compile(r"^\s*#{1,6}(?:\s+|$)", re.MULTILINE), ""),
    (re.compile(r"^\s*[-+*•‣]\s+", re.MULTILINE), ""),
    (re.compile(r"`+|~~+|\*\*+"), ""),
    (re.compile(r"\*(?=\S)|(?<=\S)\*"), ""),
    (re.compile(r"(?<!\w)_+|_+(?!\w)"), ""),
    (re.compile(r"\s*\|\s*"), " "),
)
_KEPT_SYMBOLS = frozenset("°©®™№")
_DROPPED = frozenset({"So", "Sk", "Cc", "Cf", "Cs", "Co", "Cn", "Me"})
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def speakable(text: str) -> str:
    """What of `text` can be spoken, on one line: no markup, emoji or control characters.

    "" where nothing is left that sounds ("...", an emoji, a rule of dashes).
    """
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    text = "".join(map(_plain, _SELECTORS.sub("", unicodedata.normalize("NFC", text))))
    text = " ".join(text.split())
    return text if any(char.isalnum() for char in text) else ""


def _plain(char: str) -> str:
    """A character as it is, as a blank, or nothing."""
    if char.isspace():
        return " "
    if unicodedata.category(char) not in _DROPPED or char in _KEPT_SYMBOLS:
        return char
    # A picture stands between words; a joiner stands inside one.
    return " " if unicodedata.category(char) == "So" else ""
