"""How an agent obtains the caller's consent: whether it asks, and in which words and languages."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .phrases import Phrases, load_phrases


@dataclass(frozen=True, slots=True)
class ConsentPolicy:
    """`ask`: ask once, at the end of a reply. If False, a caller consents by the participant
        attribute or by a wish in their own words. They can say stop in either case.
    `question`: the words of the question; None: the question of the first language.
    `languages`: the languages of the callers' answers: `en`, `de`, or paths of TOML files in the
        format of `assets/phrases/`. Callers may answer in any of them.

    Raises ConfigError for a language or a file that is missing or invalid.
    """

    ask: bool = True
    question: str | None = None
    languages: tuple[str, ...] = ("en",)

    def __post_init__(self) -> None:
        if isinstance(self.languages, str):
            raise ConfigError(f'languages must be a tuple such as ("{self.languages}",).')
        object.__setattr__(self, "languages", tuple(self.languages))
        if self.question is not None and not self.question.strip():
            raise ConfigError("The question for consent must not be empty; use ask=False.")
        load_phrases(self.languages)

    @property
    def phrases(self) -> Phrases:
        return load_phrases(self.languages)

    def question_for(self, *, telephone: bool) -> str:
        """The question for a caller; on a telephone with the hint that a key answers it."""
        question = self.question or self.phrases.question
        return f"{question} {self.phrases.key_hint}" if telephone else question

    @property
    def enough(self) -> str:
        """The part of the question that the caller must have heard for it to count as asked."""
        question = self.question or self.phrases.question
        return self.phrases.enough if self.phrases.enough in question else question.rstrip(" .?!")
