"""Turns as positions of the model, by the checkpoint's own tokenizer and chat template.

One turn is rendered at a time, so that it can be prefilled when it arrives. That is correct only if
the template renders each turn independently of its neighbours; `PromptWriter` checks this at load
time.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CsmError, ModelLoadError, TextError
from .context import Positions, end_frame, frame_positions, text_positions

_SPEAKER_TAG = re.compile(r"(?:\s*\[\s*\d+\s*\])+")


class PromptWriter:
    """Renders turns for one checkpoint. Thread-safe: the tokenizer is only read.

    No text can produce the model's control tokens: control tokens and a speaker tag at the
    beginning of a text are removed, and the ids are checked to contain none.

    Raises ModelLoadError if the checkpoint's files cannot render a turn.
    """

    def __init__(self, processor: Any, codebooks: int, eos_code: int) -> None:
        self._processor = processor
        self._codebooks, self._eos_code = codebooks, eos_code
        try:
            self._read(processor)
        except CsmError:
            raise
        except Exception as error:
            # Templates and tokenizers belong to the checkpoint and may raise anything.
            raise ModelLoadError(
                f"The checkpoint's tokenizer or chat template cannot write a turn"
                f" ({type(error).__name__}): fetch its files again."
            ) from None

    def _read(self, processor: Any) -> None:
        self._tokenizer = processor.tokenizer
        self._audio_token: int = processor.audio_token_id
        self._audio_eos_token: int = processor.audio_eos_token_id
        self._marks = control_marks(self._tokenizer)
        ids = self._tokenizer.convert_tokens_to_ids(sorted(self._marks))
        # The token for unknown characters is special, but not a control token.
        self._mark_ids = frozenset(ids) - {self._tokenizer.unk_token_id}
        self._check_template()
        self._own_marks = {
            audio: self._marks_of(self._ids(0, "one", audio)) for audio in (False, True)
        }

    def words(self, text: str) -> str:
        """`text` without control tokens and leading speaker tags; "" if nothing is left."""
        return without_marks(text, self._marks).strip()

    def turn(
        self, speaker: int, text: str, codes: npt.NDArray[np.int64] | None = None
    ) -> Positions:
        """The positions of a turn: its text and, if it has audio, its codes [n, K]."""
        tokens = self._tokens(speaker, text, audio=codes is not None)
        if codes is None:
            return text_positions(tokens, self._codebooks)
        parts: list[Positions] = []
        for token in tokens:
            if token == self._audio_token:
                parts.append(frame_positions(codes))
            elif token == self._audio_eos_token:
                parts.append(end_frame(self._codebooks, self._eos_code))
            else:
                parts.append(text_positions([token], self._codebooks))
        return np.concatenate(parts)

    def _tokens(self, speaker: int, text: str, *, audio: bool) -> list[int]:
        tokens = self._ids(speaker, self.words(text) or ".", audio)
        if self._marks_of(tokens) != self._own_marks[audio]:
            raise TextError("The text holds the model's own marks; leave them out.")
        return tokens

    def _ids(self, speaker: int, text: str, audio: bool) -> list[int]:
        rendered = self._render([_message(speaker, text, audio=audio)])
        ids: list[int] = self._tokenizer(rendered, add_special_tokens=False)["input_ids"]
        return ids

    def _marks_of(self, tokens: list[int]) -> list[int]:
        return [token for token in tokens if token in self._mark_ids]

    def _render(self, messages: list[dict[str, Any]]) -> str:
        return self._processor.apply_chat_template(messages, tokenize=False)  # type: ignore[no-any-return]

    def _check_template(self) -> None:
        one = _message(0, "one", audio=True)
        two = _message(1, "two", audio=False)
        if self._render([one, two]) != self._render([one]) + self._render([two]):
            raise ModelLoadError(
                "The checkpoint's chat template does not write turns independently of each other; "
                "this engine cannot add turns to a conversation with it."
            )


def control_marks(tokenizer: Any) -> frozenset[str]:
    """The control tokens of a tokenizer: its special tokens and the added ones."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values())
    return frozenset(added) | frozenset(map(str, tokenizer.all_special_tokens))


def without_marks(text: str, marks: frozenset[str]) -> str:
    """`text` without control tokens and without speaker tags at its beginning.

    Removing one may form another one, so this is repeated until there is none.
    """
    before = None
    while before != text:
        before = text
        for mark in marks:
            text = text.replace(mark, " ")
        if tag := _SPEAKER_TAG.match(text):
            text = text[tag.end() :]
    return text


def _message(speaker: int, text: str, *, audio: bool) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if audio:
        # The template only uses the type; the audio's codes are inserted afterwards.
        content.append({"type": "audio"})
    return {"role": str(speaker), "content": content}
