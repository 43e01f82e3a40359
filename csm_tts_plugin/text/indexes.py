"""Tells an index of code from a citation: a number in brackets directly after a word.

`array[1]` and `word[1]` look alike, and citations are far more frequent in prose. A number counts
as an index only if the word is recognisably a name in code:

- the name has an underscore (`my_list`), an inner capital (`myList`) or ends with `()`;
- it is a single small letter (`x`), or a name that prose does not use (`arr`, `argv`, `kwargs`);
- it is a singular noun of programming (`array`, `list`) without an article or another noun before
  it: "array[1] is", "of list[2]", not "the list[2]", "a shopping list[2]";
- the sentence mentions an index, an element or a variable just before;
- the number is 0, which no citation has; or `=` or another index `[0]` follows.

Every other number is a citation. Code in backticks is handled before.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"(?<!\w)([A-Za-z]\w*(?:\(\))?)((?:\[[^\[\]\n]{1,16}\])*)$")
"""A word that may be a name, with the indexes after it."""
_OF_CODE = re.compile(
    r"[a-z]|[A-Za-z]\w*\(\)|[A-Za-z]\w*_\w*[A-Za-z0-9]|[a-z]{2,}(?:[A-Z][a-z]+)+"
    r"|arrs?|argv|args|kwargs|lst|dict|tuple|vec|buf|ptr|idx|nums|vals|tmp|elem|str|df"
)
_NOUNS = re.compile(r"array|list|matrix|vector|string|stack|queue|buffer|column|row", re.I)
_BEFORE_NOUN = re.compile(
    r"(?:^|[.!?:;,=(\n]|\b(?:in|of|is|are|to|at|from|for|with|by|and|or|than|set|get|print|use|read"
    r"|access|equals?|returns?|swap|increment|add|compare|then|that|if|while|when|like|as))\s*$",
    re.I,
)
_TALK_OF_CODE = re.compile(
    r"\b(?:index|indexes|indices|elements?|subscripts?|variables?|expressions?)\b[^.!?\n]{0,40}$",
    re.I,
)
_CODE_BEHIND = re.compile(r"\s?[-+*/%]?=(?!>)|\[0\]")
_CODE_BEGUN = re.compile(r"\s?[-+*/%]?=?|\[0?")


def is_index(before: str, label: str, after: str, final: bool) -> bool | None:
    """Whether `[label]` between `before` and `after` is an index; None: more text is needed.

    final: no more text will come.
    """
    found = _NAME.search(before)
    if found is None:
        return False
    name, indexes = found.groups()
    if label.strip() == "0" or "[0]" in indexes or _OF_CODE.fullmatch(name):
        return True
    context = before[: found.start()]
    if _NOUNS.fullmatch(name) and _BEFORE_NOUN.search(context):
        return True
    if _TALK_OF_CODE.search(context) or _CODE_BEHIND.match(after):
        return True
    return None if not final and _CODE_BEGUN.fullmatch(after) else False
