"""Estimates the length of speech, in letters of plain English: about 14 of them a second."""

from __future__ import annotations

import re

_DIGIT = 5
"""A digit is spoken as a word; long numbers also have words such as "thousand"."""
_BETWEEN_DIGITS = 3
_SYMBOLS = {
    **dict.fromkeys("%$€£¥₹°§©®™№", 8),
    **dict.fromkeys("+=<>×÷±≈≤≥≠^*#", 8),
    **dict.fromkeys("@&~\\½¼¾²³", 6),
}
_CAPITAL = 2
"""After another capital: "IBM" is spelled."""
_WIDE = 3
"""One syllable of Chinese, Japanese or Korean."""
_ADDRESS = re.compile(r"(?:\w{2,12}://|www\.)[^\s/?#]*[^\s]*")
_ADDRESS_CHARS = 48
"""Limit for an address: only its host and a short path are spoken."""


def weight(text: str) -> int:
    """The length of `text` in letters."""
    return fit(text, len(text) * 10 + _ADDRESS_CHARS)[1]


def fit(text: str, most: int) -> tuple[int, int]:
    """The number of first characters of `text` that weigh at most `most`, and their weight.

    The weight of a character depends only on those before it, so more text does not change the
    result. Exception: the rest of a long address weighs nothing.
    """
    total, at, before = 0, 0, " "
    while at < len(text):
        char = text[at]
        step, cost = 1, _cost(char, before)
        if char.isalpha() and not before.isalnum() and (address := _ADDRESS.match(text, at)):
            step = address.end() - at
            cost = min(step, _ADDRESS_CHARS)
        if total + cost > most:
            break
        total, at, before = total + cost, at + step, text[at + step - 1]
    return at, total


def _cost(char: str, before: str) -> int:
    if char.isdigit():
        return _DIGIT
    if before.isdigit() and char in ",.:/-":
        return _BETWEEN_DIGITS
    if char.isupper() and before.isupper():
        return _CAPITAL
    if "\u3040" <= char <= "\u9fff" or "\uac00" <= char < "\ud7b0":
        return _WIDE
    return _SYMBOLS.get(char, 1)
