"""Removes markup and chat template leftovers from text that arrives in pieces.

Follows CommonMark where possible. Exceptions serve speech: delimiters pair only at word boundaries,
and the asterisk of a product or of a telephone key stays. Text that may begin a construct is held
back until the construct ends or its longest length is reached. A parser of whole documents cannot
do this, and knows no telephone keys, SSML or chat templates; see docs/decisions.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .delimiters import STOPS_AT_END, closes, has_partner, opens
from .inline import COMMENT_END, Inline, Step, entity, link, tag
from .marks import DIALLING, ROLES, UNSEEN, is_punctuation

_PLAIN = re.compile(r"[^\\*_`~<&\[!\n\r【|]+")
_BLANKS = " \t\u00a0\u2009\u202f"
_CLOSING = ".,;:!?…)”’»。，；：！？）"
"""Marks that have no space before them."""
_CODE_CHARS = 300
_LINE_CHARS = 160
"""The most of a line that is held back to find out its kind."""
_TAIL_CHARS = 48

_BLANK = re.compile(r"[ \t]*")
_FENCE = re.compile(r"[ \t]*(```+|~~~+)[^`\n]*(?:\n|$)")
_RULE = re.compile(
    r"[ \t]*(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,}|={3,}[ \t]*)(?:\n|$)"
)
_MAYBE_RULE = re.compile(r"[ \t]*(?:[-:|\s]+|[*\s]+|[_\s]+|=+[ \t]*)$")
_TABLE_RULE = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-*:?[ \t]*)+(?:\n|$)")
_BULLET = re.compile(r"[ \t]*[-+*•‣◦▪–—][ \t]+(?:\[[ xX]\][ \t]+)?")
_MAYBE_BOX = re.compile(r"\[(?:[ xX](?:\][ \t]*)?)?")
_ORDERED = re.compile(r"[ \t]*(\d{1,3})[.)][ \t]+")
_HEADING = re.compile(r"[ \t]*#{1,6}(?:[ \t]+|(?=\n)|$)")
_QUOTE = re.compile(r"[ \t]*>[ \t]*(?![ \t]*\d)")
_REFERENCE = re.compile(
    r"[ \t]*\[[^\]\n]{1,60}\]:[ \t]*<?(?:\w+://|www\.|mailto:)\S*[^\n]*(?:\n|$)"
)
_FOOTNOTE = re.compile(r"[ \t]*\[\^[^\]\n]{1,60}\]:[ \t]*")


@dataclass(slots=True)
class _Open:
    """Delimiters that are not closed yet."""

    runs: list[str] = field(default_factory=list)

    def close(self, run: str) -> bool:
        if run not in self.runs:
            return False
        del self.runs[self.runs.index(run) :]
        return True


class Cleaner:
    """Removes the markup of a text. The result does not depend on how the text is cut into pieces.

    Separate blocks (paragraphs, headings, items, rows) are separated by a blank line.
    """

    def __init__(self, *, line_start: bool = True) -> None:
        self._buffer = ""
        self._line_start = line_start
        self._tail = ""
        """The last characters read."""
        self._out = ""
        """The last two characters returned."""
        self._open = _Open()
        self._hidden: str | None = None
        """The closing tag of hidden text, in lower case."""
        self._fence: str | None = None
        self._own_line = False
        """The line is a heading or a table row: a blank line follows it."""
        self._row = False
        self._item = 0
        """The number of the last ordered item."""
        self._role = False
        """The name of a chat template's role may follow."""
        self._final = self._paused = False

    @property
    def pending(self) -> bool:
        """Whether text is held back."""
        return bool(self._buffer) and self._hidden is None

    def push(self, text: str) -> str:
        """Adds `text` and returns the cleaned text that is certain by now."""
        self._buffer += UNSEEN.sub("", text)
        return self._run()

    def settle(self) -> str:
        """The stream pauses: stop waiting for the partner of a delimiter after a sentence's end."""
        self._paused = True
        text = self._run()
        self._paused = False
        return text

    def flush(self) -> str:
        """The stream has ended: returns the rest. The next `push` begins a new text."""
        self._final = True
        text = self._run()
        self.__init__()  # type: ignore[misc]
        return text

    def _run(self) -> str:
        out: list[str] = []
        while self._buffer and (step := self._step()) is not None:
            taken, text = step
            read, self._buffer = self._buffer[:taken], self._buffer[taken:]
            self._tail = (self._tail + read)[-_TAIL_CHARS:]
            if text:
                out.append(text)
                self._out = (self._out + text)[-2:]
        return "".join(out)

    def _step(self) -> Step | None:
        """Number of characters to consume, and the text for them; None: more text is needed."""
        if self._hidden is not None:
            return self._skip_hidden()
        if self._role:
            return self._skip_role()
        if self._line_start:
            return self._begin_line()
        if self._fence is not None:
            return self._in_fence()
        if plain := _PLAIN.match(self._buffer):
            return self._plain(plain.group())
        return self._special(self._buffer[0])

    def _plain(self, text: str) -> Step | None:
        """Text without marks. The space after it is held back: a citation would remove it."""
        words = text.rstrip(_BLANKS)
        blanks, behind = text[len(words) :], self._buffer[len(text) : len(text) + 1]
        if not blanks or (behind and behind not in "[【"):
            return len(text), text
        if words:
            return len(words), words
        ended = not self._out.strip() or self._out[-1].isspace() or STOPS_AT_END.search(self._out)
        if ended or (not behind and (self._final or self._paused)):
            return len(text), text  # the end of a sentence does not wait for a citation
        return self._before_bracket(blanks) if behind else None

    def _before_bracket(self, blanks: str) -> Step | None:
        """Space before a citation is removed with it, unless a word follows directly."""
        at = len(blanks)
        while (char := self._buffer[at : at + 1]) and char in "[【":
            found = link(self._buffer[at:], self._final, self._tail + blanks, _inline)
            if found is None:
                return None
            if found.step[1]:
                break
            at += found.step[0]
        cited, behind = at > len(blanks), self._buffer[at : at + 1]
        if cited and not behind and not self._final:
            return None
        goes = cited and (not behind or behind.isspace() or behind in _CLOSING)
        return (at, "") if goes else (len(blanks), blanks)

    def _skip_hidden(self) -> Step | None:
        assert self._hidden is not None
        at = self._buffer.lower().find(self._hidden)
        if at >= 0:
            end, self._hidden = at + len(self._hidden), None
            return end, ""
        most = len(self._buffer) if self._final else len(self._buffer) - len(self._hidden) + 1
        return (most, "") if most > 0 else None

    def _skip_role(self) -> Step | None:
        word = re.match(r"\s*[a-z]*", self._buffer)
        assert word is not None
        name = word.group().strip()
        if word.end() == len(self._buffer) and not self._final and self._a_role_begins(name):
            return None
        self._role = False
        if name not in ROLES:
            return 0, ""
        self._line_start = True
        return word.end(), ""

    @staticmethod
    def _a_role_begins(name: str) -> bool:
        return any(role.startswith(name) for role in ROLES)

    # Lines

    def _begin_line(self) -> Step | None:
        """Handles block markup at the start of a line; the rest of the line is inline text."""
        blank = _BLANK.match(self._buffer)
        at = blank.end() if blank else 0
        if at == len(self._buffer) and not self._final:
            return None
        line, whole = self._line()
        if not whole and line.lstrip() in ("`", "``", "~", "~~"):
            return None
        if self._fence is not None or line.lstrip().startswith(("```", "~~~")):
            return self._fence_line(line, whole)
        marked = line[at : at + 1]
        if marked and marked in "-*_=+•‣◦▪–—#>|[0123456789":
            step = self._marked_line(line, whole)
            if step is None or step[0] >= 0:
                return step
        self._line_start = False
        return 0, ""

    def _line(self) -> tuple[str, bool]:
        """The line, at most `_LINE_CHARS` of it, and whether that part is complete."""
        end = self._buffer.find("\n")
        if 0 <= end < _LINE_CHARS:
            return self._buffer[: end + 1], True
        return self._buffer[:_LINE_CHARS], len(self._buffer) >= _LINE_CHARS or self._final

    def _fence_line(self, line: str, whole: bool) -> Step | None:
        if not whole:
            return None if line.lstrip()[:1] in ("`", "~", "") else self._plain_line()
        fence = _FENCE.match(line)
        if fence is None or (self._fence and not fence.group(1).startswith(self._fence)):
            return self._plain_line()
        self._fence = None if self._fence else fence.group(1)[:3]
        return fence.end(), self._apart()

    def _plain_line(self) -> Step:
        self._line_start = False
        return 0, ""

    def _in_fence(self) -> Step:
        end = self._buffer.find("\n")
        if end:
            return (end, self._buffer[:end]) if end > 0 else (len(self._buffer), self._buffer)
        self._line_start = True
        return 1, "\n\n"

    def _marked_line(self, line: str, whole: bool) -> Step | None:
        """A block that begins with one of its marks; consumes -1 characters if there is none."""
        if not whole and _MAYBE_RULE.match(line):
            return None
        if whole and (rule := _RULE.match(line) or _TABLE_RULE.match(line)):
            return rule.end(), self._apart()
        mark = line.lstrip()[0]
        if mark == "|":
            return self._table_row(line, whole)
        if mark == "[":
            return self._definition(line, whole)
        if mark.isdigit():
            return self._ordered_item(line, whole)
        for kind in (_HEADING, _BULLET, _QUOTE):
            if found := kind.match(line):
                if not whole and (
                    found.end() == len(line) or _MAYBE_BOX.fullmatch(line, found.end())
                ):
                    return None
                return self._begin(kind, found)
        if mark in "#>" and not whole and not line.strip("#> \t"):
            return None
        return (-1, "") if whole or line.strip()[1:2] else None

    def _begin(self, kind: re.Pattern[str], found: re.Match[str]) -> Step:
        if kind is _QUOTE:
            return found.end(), ""  # another mark may follow
        self._line_start = False
        self._own_line = kind is _HEADING
        return found.end(), self._apart()

    def _table_row(self, line: str, whole: bool) -> Step | None:
        if not whole and not line.strip("|-: \t"):
            return None  # may be the rule under a table's head
        self._line_start, self._row, self._own_line = False, True, True
        return line.index("|") + 1, self._apart()

    def _definition(self, line: str, whole: bool) -> Step | None:
        if footnote := _FOOTNOTE.match(line):
            if footnote.end() == len(line) and not whole:
                return None
            self._line_start = False
            return footnote.end(), self._apart()
        if not whole and re.match(r"[ \t]*\[[^\]\n]{0,60}(?:\](?::|$)|$)", line):
            return None
        reference = _REFERENCE.match(line)
        return (reference.end(), self._apart()) if reference else (-1, "")

    def _ordered_item(self, line: str, whole: bool) -> Step | None:
        item = _ORDERED.match(line)
        if item is None:
            begun = re.fullmatch(r"[ \t]*\d{1,3}(?:[.)][ \t]*)?", line)
            return None if begun and not whole else (-1, "")
        number = int(item.group(1))
        if number not in (1, self._item + 1):
            return -1, ""  # the number is part of the text
        self._item = number
        self._line_start = False
        return item.end(), self._apart() + item.group()

    def _apart(self) -> str:
        """The line breaks that are missing for a blank line."""
        if not self._tail.strip() or self._out.endswith("\n\n"):
            return ""
        return "\n" if self._out.endswith("\n") else "\n\n"

    # Inside a line

    def _special(self, char: str) -> Step | None:
        if char in "\r\n":
            return self._end_line(char)
        if char == "\\":
            return self._escape()
        if char == "|":
            return 1, " " if self._row else "|"
        if char == "`":
            return self._code()
        if char in "*_~":
            return self._delimiter(char)
        found = self._construct(char)
        if found is None:
            return None
        if found.hides == COMMENT_END or (found.hides is not None and self._begins_line()):
            self._hidden = found.hides
        elif found.hides is not None:
            return found.step[0], " "
        self._role = self._role or found.role
        return found.step

    def _construct(self, char: str) -> Inline | None:
        if char == "&":
            return entity(self._buffer, self._final)
        if char == "<":
            return tag(self._buffer, self._final)
        paused = self._paused and self._buffer == "!"
        return link(self._buffer, self._final or paused, self._tail, _inline)

    def _begins_line(self) -> bool:
        return not self._tail.rpartition("\n")[2].strip()

    def _end_line(self, char: str) -> Step | None:
        if char == "\r":
            if len(self._buffer) == 1 and not self._final:
                return None
            if self._buffer[1:2] == "\n":
                return 1, ""
        self._line_start = True
        blank = not self._tail.rpartition("\n")[2].strip()
        if blank:
            self._open.runs.clear()
        own, self._own_line, self._row = self._own_line, False, False
        return 1, "\n\n" if own else "\n"

    def _escape(self) -> Step | None:
        if len(self._buffer) == 1:
            return (1, "\\") if self._final else None
        follower = self._buffer[1]
        if follower.isascii() and is_punctuation(follower):
            return 2, follower
        return 1, "\\"

    def _code(self) -> Step | None:
        run = re.match(r"`+", self._buffer)
        assert run is not None
        if run.end() == len(self._buffer) and not self._final:
            return None
        within = self._buffer[run.end() : run.end() + _CODE_CHARS]
        closing = re.search(rf"(?<!`){run.group()}(?!`)", within)
        paragraph = within.find("\n\n")
        if closing and not 0 <= paragraph < closing.start():
            end_known = closing.end() < len(within) or self._final or len(within) == _CODE_CHARS
            if not end_known:
                return None
            code = within[: closing.start()].replace("\n", " ")
            return run.end() + closing.end(), code.strip() or code
        if paragraph < 0 and len(within) < _CODE_CHARS and not self._final:
            return None
        return run.end(), run.group()

    # Delimiters

    def _delimiter(self, char: str) -> Step | None:
        run = re.match(rf"{re.escape(char)}+", self._buffer)
        assert run is not None
        marks, size = run.group(), run.end()
        if size == len(self._buffer) and not (self._final or self._paused):
            return None
        before, after = self._tail[-1:] or " ", self._buffer[size : size + 1] or " "
        if size > 3 or (char == "~" and size != 2):
            return size, marks
        if closes(before, after) and self._open.close(marks):
            return size, ""
        if not opens(before, after):
            return size, marks
        dialled = DIALLING.search(self._tail) is not None
        verdict = has_partner(marks, self._buffer[size:], dialled, self._final, self._paused)
        if verdict is None:
            return None
        if verdict:
            self._open.runs.append(marks)
        return size, "" if verdict else marks


def _inline(text: str) -> str:
    """Removes the markup of a link's label."""
    cleaner = Cleaner(line_start=False)
    return cleaner.push(text) + cleaner.flush()


def clean(text: str) -> str:
    """Removes the markup of a whole text."""
    cleaner = Cleaner()
    return cleaner.push(text) + cleaner.flush()
