"""Turns as positions, through the checkpoint's own tokenizer and chat template.

One turn is rendered at a time, so that a turn can be read by the model when it arrives. That is
sound only where the template writes turns one after the other without looking at their neighbours;
`PromptWriter` checks it once, at load time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelLoadError, TextError
from .context import Positions, end_frame, frame_positions, text_positions


class PromptWriter:
    """Writes turns for one checkpoint. Thread-safe: the tokenizer is only read."""

    def __init__(self, processor: Any, codebooks: int, eos_code: int) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._audio_token: int = processor.audio_token_id
        self._audio_eos_token: int = processor.audio_eos_token_id
        self._codebooks, self._eos_code = codebooks, eos_code
        self._check_template()

    def turn(
        self, speaker: int, text: str, codes: npt.NDArray[np.int64] | None = None
    ) -> Positions:
        """A turn somebody spoke: its text, and its audio's codes [n, K] where there is any."""
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
        rendered = self._render([_message(speaker, text, audio=audio)])
        tokens: list[int] = self._tokenizer(rendered, add_special_tokens=False)["input_ids"]
        if sum(token == self._audio_token for token in tokens) != int(audio):
            raise TextError("The text holds the model's own audio marks; leave them out.")
        return tokens

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


def _message(speaker: int, text: str, *, audio: bool) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if audio:
        # The template only looks at the type; the sound itself is spliced in as codes.
        content.append({"type": "audio"})
    return {"role": str(speaker), "content": content}
