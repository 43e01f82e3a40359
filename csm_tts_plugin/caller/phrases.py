"""Classifies the caller's words about the use of their voice: a yes, a no, a stop, a wish.

A list of phrases decides, not a model: the same words always have the same result. Unclear words
are never a yes, and anything that may be a stop is a stop. The phrases of each language are TOML
files in `assets/phrases/`; `en.toml` explains the format.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import ConfigError

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "phrases"

_LISTS = ("stop", "wish", "before", "after", "yes", "filler", "no", "agreed", "unsure")
_TEXTS = ("question", "enough", "key_hint")
_AGREED = "_agreed_"
"""Placeholder for a phrase of `agreed` in a text."""
_YES_WORDS = 12
"""A turn with more words is not taken as a yes, whatever it begins with."""


class Answer(Enum):
    YES = auto()
    NO = auto()
    UNCLEAR = auto()


@dataclass(frozen=True, slots=True, eq=False)
class Phrases:
    """The phrases of one or several languages; the question is in the first language."""

    question: str
    enough: str
    key_hint: str
    same: Mapping[str, str]
    stop: re.Pattern[str]
    wish: re.Pattern[str]
    yes: re.Pattern[str]
    no: re.Pattern[str]
    agreed: re.Pattern[str]
    unsure: re.Pattern[str]

    def wants_stop(self, text: str) -> bool:
        """Whether the caller does not want their voice to be used, asked or not."""
        return self.stop.search(self._plain(text)) is not None

    def wishes_voice(self, text: str) -> bool:
        """Whether a whole sentence asks for replies in the caller's own voice.

        Questions, conditions and reports do not count.
        """
        if self.wants_stop(text):
            return False
        sentences = re.split(r"[.!;]+\s*", text)
        return any(self.wish.fullmatch(self._plain(one)) for one in sentences if "?" not in one)

    def answer_of(self, text: str) -> Answer:
        """The answer in `text` to the question for consent."""
        plain = self.agreed.sub(_AGREED, self._plain(text))
        no = self.no.search(plain) is not None
        yes = self.yes.match(plain) is not None and len(plain.split()) <= _YES_WORDS
        unsure = self.unsure.search(plain) is not None or "?" in text
        if self.wants_stop(text) or (no and not yes):
            return Answer.NO
        return Answer.YES if yes and not no and not unsure else Answer.UNCLEAR

    def _plain(self, text: str) -> str:
        """Lower case, one space between words, apostrophes only inside words."""
        lower = text.lower().replace("\u2019", "'")
        for form, meant in self.same.items():
            lower = lower.replace(form, meant)
        return " ".join(re.findall(r"\w+(?:'\w+)*", lower))


@lru_cache(maxsize=16)
def load_phrases(languages: tuple[str, ...] = ("en",)) -> Phrases:
    """The phrases of several languages together; words in any of them are understood.

    `languages`: names of files in `assets/phrases/` such as `en` and `de`, or paths of TOML files
    in the same format. Raises ConfigError, which names the file and the problem.
    """
    if not languages:
        raise ConfigError("Name at least one language of the caller's phrases, such as en.")
    found = [_read(name) for name in languages]
    first = found[0]

    def any_of(name: str) -> str:
        return "|".join(f"(?:{entry})" for one in found for entry in one[name])

    wish = rf"(?:(?:{any_of('before')}) )*(?:{any_of('wish')})(?: (?:{any_of('after')}))*"
    return Phrases(
        **{name: first[name] for name in _TEXTS},
        same={form: meant for one in found for form, meant in one["same"].items()},
        stop=re.compile(rf"\b(?:{any_of('stop')})\b"),
        wish=re.compile(wish),
        yes=re.compile(rf"(?:(?:{any_of('filler')}) )*(?:{any_of('yes')})\b"),
        no=re.compile(rf"\b(?:{any_of('no')})\b"),
        agreed=re.compile(rf"\b(?:{any_of('agreed')})\b"),
        unsure=re.compile(rf"\b(?:{any_of('unsure')})\b"),
    )


def _read(name: str) -> dict[str, Any]:
    """Reads one language. Its phrases become regular expressions. Raises ConfigError."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        shipped = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise ConfigError(
            f"No phrases for the language {name!r}; take one of {shipped}, or name a TOML file."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}.") from None
    return _checked(path, data)


def _checked(path: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    words = {"agreed": _AGREED, **_strings(path, data, "words")}
    found: dict[str, Any] = {"same": _strings(path, data, "same")}
    for name in _TEXTS:
        if not isinstance(data.get(name), str) or not data[name].strip():
            raise ConfigError(f"{path}: {name} must be a text.")
        found[name] = data[name]
    for name in _LISTS:
        found[name] = [
            _expression(path, name, entry, words) for entry in _entries(path, data, name)
        ]
    return found


def _strings(path: Path, data: Mapping[str, Any], name: str) -> dict[str, str]:
    table = data.get(name, {})
    if not isinstance(table, dict) or not all(isinstance(text, str) for text in table.values()):
        raise ConfigError(f"{path}: [{name}] must hold texts.")
    return table


def _entries(path: Path, data: Mapping[str, Any], name: str) -> Sequence[str]:
    entries = data.get(name)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: {name} must be a list of phrases.")
    if not all(isinstance(entry, str) and entry.strip() for entry in entries):
        raise ConfigError(f"{path}: {name} must hold texts only.")
    return entries


def _expression(path: Path, name: str, entry: str, words: Mapping[str, str]) -> str:
    """A phrase as a regular expression: replaces `<word>` and dots. Raises ConfigError."""
    try:
        text = re.sub(r"<(\w+)>", lambda found: f"(?:{words[found[1]]})", entry)
        text = re.sub(r" \.\.\. ", r"(?: [\\w']+){0,5}? ", text)
        text = re.sub(r" \.\. ", r"(?: [\\w']+){0,2}? ", text)
        re.compile(text)
    except KeyError as error:
        raise ConfigError(f"{path}: {name} uses <{error.args[0]}>, which [words] lacks.") from None
    except re.error as error:
        raise ConfigError(f"{path}: {name} has the phrase {entry!r}: {error}.") from None
    return text
