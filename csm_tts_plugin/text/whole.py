"""Passes on only whole sentences of a reply that a limit may cut off."""

from __future__ import annotations

from .splitting import SentenceSplitter

_NEVER = 1_000_000


class WholeSentences:
    """Holds the unfinished end of a reply back, so that only whole sentences are spoken.

    A first sentence that arrives slowly is passed on before its end, so that speech can begin.
    Later text is passed on by sentences. This costs no time, because speech is slower than text.
    """

    def __init__(self) -> None:
        self._splitter = SentenceSplitter(max_chars=_NEVER)
        self._text = ""
        self._whole = 0
        """Characters in whole sentences."""
        self._passed = 0

    @property
    def passed(self) -> bool:
        """Whether anything was passed on."""
        return bool(self._text[: self._passed].strip())

    def push(self, text: str, *, slow: bool = False) -> str:
        """Text to pass on now. `slow`: the first sentence takes too long; do not wait for it."""
        self._text += text
        self._whole += sum(map(len, self._splitter.push(text)))
        return self._pass(len(self._text) if slow and not self._whole else self._whole)

    def end(self, *, cut: bool) -> str:
        """The rest to pass on. `cut`: the reply was cut off; drop its unfinished sentence."""
        self._whole += sum(map(len, self._splitter.settle()))
        return self._pass(self._whole if cut else len(self._text))

    def _pass(self, until: int) -> str:
        begin, self._passed = self._passed, max(self._passed, until)
        return self._text[begin : self._passed]
