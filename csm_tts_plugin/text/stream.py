"""Turns a stream of text into sentences without markup: cleans it, then splits it."""

from __future__ import annotations

from collections import deque
from statistics import fmean

from .cleaning import Cleaner, clean
from .splitting import MAX_SENTENCE_CHARS, SentenceSplitter
from .spoken import spoken
from .weight import fit

_FLOOR_S = 0.05
_CEILING_S = 1.0
_UNKNOWN_S = 0.25
"""Patience before the pace is known; enough for an LLM of 12 tokens a second."""
_GAPS = 12
"""Number of gaps between pieces from which the pace is computed."""


class Pace:
    """How long to wait after a full stop before the sentence counts as complete.

    The patience follows the gaps between the last pieces of text. An LLM of 12 tokens a second
    pauses for 80 ms between "example" and ".com", one of 100 tokens a second for 10 ms.
    """

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self._last: float | None = None

    def arrived(self, now: float) -> None:
        """A piece of text arrived at the time `now`, in seconds."""
        if self._last is not None:
            self._gaps.append(min(now - self._last, _CEILING_S))
        self._last = now

    def interrupted(self) -> None:
        """Ignore the gap before the next piece: nobody waited for it."""
        self._last = None

    @property
    def patience(self) -> float:
        """Time to wait, in seconds."""
        if len(self._gaps) < 2:
            return max([_UNKNOWN_S, *(2.5 * gap for gap in self._gaps)])
        usual = sorted(self._gaps)[len(self._gaps) // 2]
        wanted = max(3.0 * usual, 2.5 * fmean(self._gaps), 1.5 * max(self._gaps))
        return min(max(wanted, _FLOOR_S), _CEILING_S)


class TextStream:
    """Sentences of a text with markup that arrives in pieces. They do not depend on the pieces.

    Each sentence keeps the white space before it: all sentences joined give the cleaned text.
    """

    def __init__(self) -> None:
        self._cleaner = Cleaner()
        self._splitter = SentenceSplitter()

    @property
    def pending(self) -> bool:
        """Whether unfinished text is held back."""
        return self._cleaner.pending or self._splitter.pending

    def push(self, text: str) -> list[str]:
        """Returns the sentences that `text` completes."""
        return self._splitter.push(self._cleaner.push(text))

    def settle(self) -> list[str]:
        """The stream pauses: also returns the rest if it looks complete."""
        sentences = self._splitter.push(self._cleaner.settle())
        return sentences if self._cleaner.pending else sentences + self._splitter.settle()

    def piece(self, seconds: float) -> list[str]:
        """Returns what may be spoken of a sentence that began to arrive `seconds` ago."""
        return self._splitter.piece(seconds)

    def flush(self) -> list[str]:
        """The stream has ended: returns the rest."""
        return self._splitter.push(self._cleaner.flush()) + self._splitter.flush()


def sentences_of(text: str) -> list[str]:
    """Splits a whole text into the sentences to speak; [] if nothing in it sounds."""
    stream = TextStream()
    found = stream.push(text) + stream.flush()
    return [words for sentence in found if (words := spoken(sentence))]


def speakable(text: str) -> str:
    """The spoken part of a text with markup, on one line; "" if nothing in it sounds."""
    return spoken(clean(text))


class Tokens:
    """Restores the white space of another tokenizer's tokens and limits their length."""

    def __init__(self) -> None:
        self._text = ""
        """Text given to the tokenizer that has not come back."""
        self._given = False

    def feed(self, text: str) -> None:
        """Records text that is given to the tokenizer."""
        self._text += text

    def sentences(self, token: str) -> list[str]:
        """One token, split if it is longer than the longest sentence."""
        whole = self._space_before(token) + token.strip()
        if fit(whole, MAX_SENTENCE_CHARS)[0] == len(whole):
            return [whole] if whole.strip() else []
        splitter = SentenceSplitter()
        return [*splitter.push(whole), *splitter.flush()]

    def _space_before(self, token: str) -> str:
        """White space before the token; one space if the tokenizer has changed the text."""
        words = token.split()
        given, self._given = self._given, True
        if not words:
            return ""
        begin = self._text.find(words[0])
        if begin < 0 or self._text[:begin].strip():
            self._text = self._text[len(token) :]
            return " " if given else ""
        space, at = self._text[:begin], begin
        for word in words:
            found = self._text.find(word, at)
            if found < 0 or self._text[at:found].strip():
                break
            at = found + len(word)
        self._text = self._text[at:]
        return space
