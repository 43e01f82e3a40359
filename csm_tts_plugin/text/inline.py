"""Inline constructs in brackets: tags, entities, links, citations, control tokens.

Each function reads a text that begins with one. It returns the characters to consume and the text
for them, or None if more text is needed. Each looks ahead a limited distance, so no text is held
back forever.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import NamedTuple

from .indexes import is_index
from .marks import (
    BLOCK_TAGS,
    BRACKETED,
    CITATION,
    CONTROL,
    CUT_CONTROL,
    DIALLING,
    HIDING_TAGS,
    INLINE_TAGS,
    ROLE_TOKENS,
    SOUNDS,
    UNSEEN,
)

Step = tuple[int, str]


class Inline(NamedTuple):
    step: Step
    hides: str | None = None
    """The closing tag up to which text is hidden."""
    role: bool = False
    """The name of a chat template's role may follow."""


COMMENT_END = "-->"
_TAG_CHARS = 1_000
_BARE_ATTRIBUTES = 3
"""Most attributes without a value in a tag; more of them are words."""
_LABEL_CHARS = 300
_TARGET_CHARS = 2_048
_TOKEN_CHARS = 70

_ENTITY = re.compile(r"&(?:amp;)*(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_ENTITY_BEGUN = re.compile(
    r"&(?:amp;)*(?:#(?:\d{0,7}|[xX][0-9a-fA-F]{0,6})|[A-Za-z][A-Za-z0-9]{0,31})?"
)
_ADDRESS = re.compile(
    r"<(?:(?:mailto|tel|sms|sip|sips|callto):)?"
    r"((?:[A-Za-z][A-Za-z0-9+.-]{1,31}://[^\s<>]*)|[^\s<>@\"'=]+@[^\s<>@\"'=]+"
    r"|\+\d[\d().-]{2,}|[^\s<>\"'=/]+\.[A-Za-z][^\s<>\"'=]*)>"
)
_TAG_NAME = re.compile(r"</?([A-Za-z][\w:.-]*)")
_ATTRIBUTE = re.compile(r"\s+[A-Za-z_:@][\w:-]*")
_VALUE = re.compile(r"\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'=<>`]+)")
_TARGET = re.compile(
    r"\(\s*(?:<[^<>\n]*>|[^\s]*)(?:\s+(?:\"[^\"]*\"|'[^']*'|\([^()]*\)))?\s*\)", re.DOTALL
)

_WORDS = re.compile(r"\(\s*[^\s<]\S*\s+[^\s\"'()]")
"""Words in brackets instead of a link's target."""


def entity(text: str, final: bool) -> Inline | None:
    """An entity such as `&amp;`, also one that is escaped twice."""
    if found := _ENTITY.match(text):
        twice = found.group(1) == "amp" and re.fullmatch(r"#?\w{0,32}", text[found.end() :])
        if twice and not final:
            return None
        decoded = html.unescape(f"&{found.group(1)};")
        return Inline((found.end(), UNSEEN.sub("", decoded)))
    begun = _ENTITY_BEGUN.match(text)
    if begun and begun.end() == len(text) and not final:
        return None
    return Inline((1, "&"))


def tag(text: str, final: bool) -> Inline | None:
    """A tag, a comment, a control token, an address in angle brackets, or the sign `<`."""
    if len(text) == 1:
        return Inline((1, "<")) if final else None
    if len(text) >= _TARGET_CHARS:
        text, final = text[:_TARGET_CHARS], True
    if text.startswith("<!--"):
        return Inline((4, ""), hides=COMMENT_END)
    follower = text[1]
    if follower in "|｜" or text.startswith("<<"):
        return _control(text, final)
    if follower in "!?":
        return _declaration(text, final)
    if follower == "/" and len(text) == 2:
        return Inline((1, "<")) if final else None
    if address := _ADDRESS.match(text):
        return Inline((address.end(), address.group(1)))
    named = _TAG_NAME.match(text)
    if named is None:
        return _unnamed(text, final)
    return _named(text, named, final)


def _unnamed(text: str, final: bool) -> Inline | None:
    """May be a telephone number in angle brackets; otherwise a comparison."""
    begun = re.match(r"<\+[\d().-]{0,24}", text)
    if begun and begun.end() == len(text) and not final:
        return None
    return Inline((1, "<"))


def _control(text: str, final: bool) -> Inline | None:
    if found := CONTROL.match(text):
        return Inline((found.end(), ""), role=ROLE_TOKENS.match(text) is not None)
    if "<<SYS>>".startswith(text) or "<</SYS>>".startswith(text):
        return Inline((1, "<")) if final else None
    begun = CUT_CONTROL.match(text)
    if begun and begun.end() == len(text) and len(text) < _TOKEN_CHARS:
        cut = re.fullmatch(r"<[|｜][\w▁.-]+[|｜]?", text)
        return (Inline((len(text), "")) if cut else Inline((1, "<"))) if final else None
    return Inline((1, "<"))


def _declaration(text: str, final: bool) -> Inline | None:
    if "<!--".startswith(text) and not final:
        return None
    if not re.match(r"<(?:!(?:$|[A-Za-z\[-])|\?(?:$|[A-Za-z]))", text):
        return Inline((1, "<"))
    end = text.find(">", 0, _LABEL_CHARS)
    if end >= 0:
        return Inline((end + 1, " "))
    return Inline((1, "<")) if final or len(text) >= _LABEL_CHARS else None


def _named(text: str, named: re.Match[str], final: bool) -> Inline | None:
    end, attributes, values = _tag_end(text, named.end())
    if end is None or end == len(text) + 1:
        space = re.search(r"[\s<>]", text[1:])
        if not final and space is None and len(text) < _TARGET_CHARS:
            return None  # an address may be longer than the name of a tag
        if end is not None and not final:
            return None
        if end is not None and final and not attributes:
            return Inline((1, "<"))
        return Inline((len(text), "")) if end is not None and values else Inline((1, "<"))
    name, written = named.group(1).lower(), text[:end]
    if ROLE_TOKENS.match(written):
        return Inline((end, ""), role=True)
    if _is_markup(name, written, attributes, values):
        hides = f"</{name}>" if name in HIDING_TAGS and not _is_closed(written) else None
        return Inline((end, "" if hides or name in INLINE_TAGS else " "), hides=hides)
    if attributes or len(name) == 1:
        return Inline((1, "<"))  # x <y and z> w
    return Inline((end, named.group(1)))  # the name of a key or a placeholder


def _is_closed(written: str) -> bool:
    return written.startswith("</") or written.endswith("/>")


def _is_markup(name: str, written: str, attributes: int, values: int) -> bool:
    if _is_closed(written) or values:
        return True
    if name in INLINE_TAGS | BLOCK_TAGS | HIDING_TAGS | SOUNDS:
        return len(name) > 1 or not attributes
    return not attributes and len(name) > 1 and written[1:-1].islower()


def _tag_end(text: str, at: int) -> tuple[int | None, int, int]:
    """End of the tag, number of its attributes, number of those with a value.

    The end is None if it is no tag, and len(text) + 1 if more text is needed.
    """
    attributes = values = 0
    more = len(text) + 1
    while at < _TAG_CHARS:
        rest = text[at:]
        closing = re.match(r"\s*/?>", rest)
        if closing:
            return at + closing.end(), attributes, values
        if re.fullmatch(r"\s*/?", rest):
            return more, attributes, values
        attribute = _ATTRIBUTE.match(rest)
        if attribute is None or attributes - values >= _BARE_ATTRIBUTES:
            return None, attributes, values
        attributes += 1
        at += attribute.end()
        if value := _VALUE.match(text, at):
            values += 1
            at = value.end()
        elif re.fullmatch(r"\s*=\s*(?:\"[^\"]*|'[^']*)?", text[at:]):
            return more, attributes, values + 1
    return None, attributes, values


def link(text: str, final: bool, before: str, inline: Callable[[str], str]) -> Inline | None:
    """`[label](target)`, `![alt](target)`, `[1]`, `[INST]`, `【4†source】`, or a plain mark.

    before: the text read before it; inline: removes the markup of a label.
    """
    if text[0] == "!":
        if len(text) == 1 and not final:
            return None
        if text[1:2] != "[":
            return Inline((1, "!"))
    start = 1 if text[0] == "!" else 0
    end = _label_end(text, start)
    if end is None:
        spent = final or len(text) - start > _LABEL_CHARS or "\n\n" in text
        return Inline((start + 1, text[: start + 1])) if spent else None
    label, rest = text[start + 1 : end], text[end + 1 :]
    if text[start] == "【":
        return Inline((end + 1, "" if CITATION.fullmatch(label) else text[: end + 1]))
    if not rest and not final:
        return None
    if rest[:1] == "(":
        after = _target_end(rest, final)
        if after is None:
            return None
        if after:
            return Inline((end + 1 + after, inline(label)))
    return _bracketed(text, start, end, before, inline, final)


def _label_end(text: str, start: int) -> int | None:
    closing = "】" if text[start] == "【" else "]"
    depth = 0
    for at in range(start, min(len(text), start + _LABEL_CHARS)):
        if text[at] == text[start]:
            depth += 1
        elif text[at] == closing:
            depth -= 1
            if not depth:
                return at
        elif text.startswith("\n\n", at):
            return None
    return None


def _target_end(text: str, final: bool) -> int | None:
    """End of `(target)`; 0: there is no target; None: more text is needed."""
    depth = 0
    for at, char in enumerate(text[:_TARGET_CHARS]):
        depth += (char == "(") - (char == ")")
        if not depth:
            return at + 1 if _TARGET.fullmatch(text[: at + 1]) else 0
        if text.startswith("\n\n", at) or _WORDS.fullmatch(text[: at + 1]):
            return 0
    return 0 if final or len(text) >= _TARGET_CHARS else None


def _bracketed(
    text: str, start: int, end: int, before: str, inline: Callable[[str], str], final: bool
) -> Inline | None:
    label = text[start + 1 : end]
    if CITATION.fullmatch(label.strip()):
        return _citation(text, start, end, before, final)
    if BRACKETED.fullmatch(label) or label.strip().lower() in SOUNDS:
        return Inline((end + 1, " "))
    if text[end + 1 : end + 2] == "[":  # [label][reference]
        closing = text.find("]", end + 1, end + 80)
        if closing < 0 and len(text) < end + 80 and not final:
            return None
        reference = text[end + 2 : closing] if closing >= 0 else ""
        if closing >= 0 and not CITATION.fullmatch(reference) and "\n" not in reference:
            return Inline((closing + 1, inline(label)))
    return Inline((start + 1, text[: start + 1]))


def _citation(text: str, start: int, end: int, before: str, final: bool) -> Inline | None:
    """Removes a citation. An index, a key to press and the mark of "Oh![1]" stay."""
    mark, label = text[:start], text[start + 1 : end].strip()
    if not mark:
        index = is_index(before, label, text[end + 1 :], final)
        if index is None:
            return None
        if index:
            return Inline((1, "["))
        if label.isdigit() and not before[-1:].isalnum() and DIALLING.search(before):
            return Inline((end + 1, label))
    return Inline((end + 1, mark))
