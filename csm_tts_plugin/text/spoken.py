"""Turns a sentence into the text that is spoken: symbols by name, without silent characters.

The names are English, as the voices are. Numbers, money, percentages and dates stay: the model
reads them itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from .marks import CONTROL, DIALLING, UNSEEN

_TLD = (
    "com|org|net|io|ai|dev|app|edu|gov|mil|co|uk|de|fr|es|eu|nl|ch|at|pl|ca|au|jp|cn|ru|br|info|"
    "biz|tv|ly|gg|xyz|shop|tech|cloud|online|site|live"
)
_FILE = (
    "pdf|txt|docx?|xlsx?|pptx?|csv|json|ya?ml|toml|xml|html?|css|jsx?|tsx?|py|rs|go|java|cpp|sh|"
    "exe|zip|tar|gz|png|jpe?g|gif|svg|mp3|mp4|wav|flac|ogg|md|log|env|db|sql"
)
_HOST = r"(?:[A-Za-z0-9](?:[\w-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,}"
_URL = re.compile(r"(?<!\w)(?:[A-Za-z][A-Za-z0-9+.-]{1,11}://|www\.)[^\s<>\"”]+")
_EMAIL = re.compile(rf"(?<![\w.+-])([\w.+-]*\w)@({_HOST})(?!\w)")
_DOMAIN = re.compile(
    rf"(?<![\w.@-])((?:[A-Za-z0-9][\w-]*\.)+(?:{_TLD}))(?![\w-]|\.\w)((?:/[\w~%.-]*)*)"
)
_FILE_NAME = re.compile(rf"(?<![\w.])([\w-]+(?:\.[\w-]+)*)\.({_FILE})(?![\w-]|\.\w)")
_ADDRESS = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)")
_PATH_CHARS = 40

_KEYS = re.compile(r"(?<![\w*#.,])(?=[\d*#]*[*#])(?=[*#]*\d)[\d*#]+(?![\w*#])")
_PRODUCT = r"(?:(?<=\d)|(?<=[)\]])|(?<=\b[A-Za-z])|(?<=[a-z]{3}))"
_FACTOR = r"(?=[(\d.]|[A-Za-z]\b|[a-z]{3})"
_VALUE = r"[-+]?[$€£]?\.?\d"

_Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def spoken(sentence: str) -> str:
    """Text for the engine, on one line, of a sentence without markup.

    "" if nothing in it sounds ("...", an emoji, a rule of dashes).
    """
    text = unicodedata.normalize("NFC", UNSEEN.sub("", _SELECTORS.sub("", sentence)))
    text = CONTROL.sub(" ", CONTROL.sub(" ", text))
    if not any(map(str.isalnum, text)):
        return ""
    for pattern, replacement in _NAMES:
        text = _named(text, pattern, replacement)
    text = _named(text, _KEYS, _keys)
    for pattern, replacement in _SIGNS:
        text = _named(text, pattern, replacement)
    text = "".join(map(_plain, text))
    text = " ".join(text.split())
    return text if any(char.isalnum() for char in text) else ""


def _named(text: str, pattern: re.Pattern[str], name: str | Callable[[re.Match[str]], str]) -> str:
    """Replaces matches by their name; removes the space between a name and a mark after it."""

    def put(found: re.Match[str]) -> str:
        named = found.expand(name) if isinstance(name, str) else name(found)
        behind = found.string[found.end() : found.end() + 1]
        return named.rstrip() if behind and behind in ".,;:!?)" else named

    return pattern.sub(put, text)


# Addresses


def _url(found: re.Match[str]) -> str:
    """The host and a short path; scheme, user, query and fragment are not spoken."""
    written = found.group()
    bare = written.rstrip(".,;:!?'’)]}*_")
    after = written[len(bare) :]
    scheme, _, rest = bare.partition("://") if "://" in bare else ("", "", bare)
    if scheme and "@" in rest.split("/")[0]:
        rest = rest.partition("@")[2]
    rest = re.split(r"[?#]", rest)[0].rstrip("/")
    host, _, path = rest.partition("/")
    return _dotted(host) + _path(f"/{path}" if path else "") + after


def _path(path: str) -> str:
    if not path.strip("/") or len(path) > _PATH_CHARS:
        return ""
    return "".join(f" slash {_dotted(part)}" for part in path.split("/") if part)


def _dotted(name: str) -> str:
    name = re.sub(r"\.(?=.)", " dot ", name)
    return re.sub(r":(?=\d)", " colon ", name).replace("_", " underscore ").replace("-", " dash ")


def _email(found: re.Match[str]) -> str:
    local = _dotted(found.group(1)).replace("+", " plus ")
    return f"{local} at {_dotted(found.group(2))}"


def _domain(found: re.Match[str]) -> str:
    path = found.group(2)
    bare = path.rstrip(".")
    return _dotted(found.group(1)) + _path(bare) + path[len(bare) :]


_NAMES: tuple[_Rule, ...] = (
    (_URL, _url),
    (_EMAIL, _email),
    (_DOMAIN, _domain),
    (_FILE_NAME, lambda found: f"{found.group(1).replace('_', ' ')} dot {found.group(2)}"),
    (_ADDRESS, lambda found: found.group().replace(".", " dot ")),
)


# Telephone keys


def _keys(found: re.Match[str]) -> str:
    """`*67`, `*100#`, `**21*555#`. `#5`, `5*`, `3*4` and `2**8` only if they are dialled."""
    written, before = found.group(), found.string[: found.start()]
    dialled = DIALLING.search(before) is not None
    inner = re.fullmatch(r"\d+\*{1,2}\d+(?:\*\d+)*", written)
    if inner and not dialled:
        return written
    if re.fullmatch(r"#\d+", written) and not dialled:
        return f"number {written[1:]}"
    if re.fullmatch(r"\d+\*", written) and not dialled:
        return f"{written[:-1]} star"
    if re.search(r"[\d)]\s$", before) and re.fullmatch(r"\*\d+", written) and not dialled:
        return f"times {written[1:]}"
    named = written.replace("*", " star ").replace("#", " pound ")
    return f" {' '.join(named.split())} "


def _lone_star(found: re.Match[str]) -> str:
    """The name of a key, or "times" between two values."""
    before, after = found.string[: found.start()], found.string[found.end() :]
    if re.search(r"[\d)\]%]\s+$", before) and re.match(r"\s+[\w(.$€£-]", after):
        return " times "
    if DIALLING.search(before) or not (before.endswith(" ") and after.startswith(" ")):
        return " star "
    if re.match(r"\s+[$€£]?\d", after) or re.search(r"\b[A-Za-z]\s+$", before):
        return " times "
    names = re.match(r"\s+(?:key|sign|symbol|button|character|or|and|then|to|for|is|on)\b", after)
    if names or re.search(r"\b(?:the|a|an|with|by|of|or|and|then)\s+$", before, re.I):
        return " star "
    return " times " if re.match(r"\s+\w", after) and re.search(r"\w\s+$", before) else " star "


# Operators and signs


def _power(found: re.Match[str]) -> str:
    exponent = found.group(1)
    named = {"2": " squared", "3": " cubed"}.get(exponent)
    return named or f" to the power of {exponent.replace('-', 'minus ')}"


def _comparison(sign: str) -> re.Pattern[str]:
    """Matches `sign` between two values, one of which is a number or a single letter."""
    number, letter = r"(?<=[\d)%°])", r"(?<=\b[A-Za-z])"
    sides = [
        rf"(?<=[\w)\]%°]){{0}}{sign}{{0}}(?={_VALUE}|[A-Za-z]\b)",
        rf"{number}{{0}}{sign}{{0}}(?=\w)",
        rf"{letter}{{0}}{sign}{{0}}(?=[a-z])",
    ]
    return re.compile("|".join(side.format(space) for side in sides for space in ("", r"\s")))


_SIGNS: tuple[_Rule, ...] = (
    # products and powers
    (re.compile(r"(?<=[\w)\]])\s?\*\*\s?[({]?(-?\w+)[)}]?"), _power),
    (re.compile(r"(?<=[\w)\]])\s?\^\s?[({]?(-?\w+)[)}]?"), _power),
    (re.compile(rf"{_PRODUCT}\*{_FACTOR}"), " times "),
    (re.compile(r"\s*[×⋅]\s*"), " times "),
    (re.compile(r"²"), " squared"),
    (re.compile(r"³"), " cubed"),
    # stars and number signs by themselves
    (re.compile(r"(?<![\w*)\]])\*(?![\w*(])"), _lone_star),
    (re.compile(r"(?<=[\d)]\s)\*(?=\d)"), "times "),
    (re.compile(r"(?<=\d)\*(?!\w)"), " star "),
    (re.compile(r"(?<![\w*])\*(?=[A-Z]{2,}\b|\d)"), " star "),
    (re.compile(r"\*"), ""),
    (re.compile(r"\b([CFGcfg])#(?!\w)"), r"\1 sharp"),
    (re.compile(r"(?<![\w&#])#(?=\d)"), "number "),
    (re.compile(r"(?<![\w#])#(?![\w#])"), " pound "),
    (re.compile(r"#"), " "),
    # comparisons and arithmetic
    (re.compile(r"<?[-=–]{1,2}>|[→⇒➔➜]"), " to "),
    (re.compile(r"<=|≤|⩽"), " is at most "),
    (re.compile(r">=|≥|⩾"), " is at least "),
    (re.compile(r"!==?|≠"), " is not equal to "),
    (re.compile(r"\s*(?:≈|≃)\s*"), " is about "),
    (re.compile(r"(?<!\w)~\s?(?=[$€£]?\d)"), "about "),
    (re.compile(r"\s<3+(?=\s*[.!?]*$)"), " "),  # a heart
    (_comparison("<"), " is less than "),
    (_comparison(">"), " is greater than "),
    (re.compile(rf"<\s?(?={_VALUE})"), " less than "),
    (re.compile(rf">\s?(?={_VALUE})"), " more than "),
    (re.compile(r"(?<=\w)\s>\s(?=\w)"), ", "),
    (re.compile(r"[<>]"), " "),
    (re.compile(r"\s*={2,3}\s*|(?<=[\w)\]%])\s?=\s?(?=[\w($€£.-])"), " equals "),
    (re.compile(r"="), " "),
    (re.compile(r"\s*÷\s*"), " divided by "),
    (re.compile(r"\s*±\s*"), " plus or minus "),
    (re.compile(r"(?<=\w)\+\+(?!\w)"), " plus plus "),
    (re.compile(r"\+(?=\s?[\w(.$€£])|(?<=\w)\+|(?<=\w\s)\+(?=\s)"), " plus "),
    (re.compile(r"\+"), " "),
    (re.compile(r"−\s?(?=[\d.$€£])|(?:(?<=^)|(?<=[\s(\[]))-(?=\.?\d)"), " minus "),
    (re.compile(r"−"), "-"),
    (re.compile(r"(?<!\S)@(?=\w)|(?<=\s)@(?=\s)"), " at "),
    # brackets and other marks
    (re.compile(r"\s?\([\s,;]*\)"), ""),  # also left behind by a removed citation
    (re.compile(r"(?<!\S)`(?!\S)"), " backtick "),
    (re.compile(r"(?<=\w)\\(?=\w)|(?<=:)\\"), " backslash "),
    (re.compile(r"(?<!\w)_+|_+(?!\w)"), " "),
    (re.compile(r"[\[\]{}|\\【】]+"), " "),
)


# Characters

_KEPT_SYMBOLS = frozenset("°©®™№")
_DROPPED = frozenset({"So", "Sk", "Cc", "Cf", "Cs", "Co", "Cn", "Me"})
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def _plain(char: str) -> str:
    """The character itself, a space, or nothing."""
    if char.isspace():
        return " "
    if unicodedata.category(char) not in _DROPPED or char in _KEPT_SYMBOLS:
        return char
    # An emoji separates words; a joiner is inside one.
    return " " if unicodedata.category(char) == "So" else ""
