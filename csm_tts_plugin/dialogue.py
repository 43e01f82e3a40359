"""References and conversations as callers of the library write them, checked and made whole.

[{"role": "0", "content": [{"type": "text", "text": "..."}, {"type": "audio", "audio": [...]}]}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .audio.reference import load_reference
from .config import Limits
from .engine.api import Samples
from .engine.checks import check_audio
from .errors import AudioError, CsmError, RequestError, TextError, VoiceError

_KEYS = ("path", "text", "speaker_id")

Message = dict[str, Any]


def load_reference_audio(reference_data: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Read recordings that show the model a voice.

    `reference_data`: dictionaries with `path` (WAV, FLAC or OGG, at any rate), `text` (what is said
    in it) and `speaker_id`. Returns them with `audio_array` added: float32 mono at 24 kHz.

    Raises RequestError for what is missing, AudioError with the file's name and the cause.
    """
    return [
        {**reference, "audio_array": load_reference(_path(reference["path"]))}
        for reference in _checked(reference_data, _KEYS)
    ]


def messages_of(
    conversation: str | Sequence[Mapping[str, Any]],
    reference_data: Sequence[Mapping[str, Any]] | None = None,
) -> list[Message]:
    """References, then the conversation, as turns whose audio is samples; the last is to be spoken.

    A plain text is spoken as the first reference's speaker, or as speaker 0.
    """
    references = _read(reference_data)
    turns = [
        _message(
            str(one["speaker_id"]),
            [
                {"type": "text", "text": one["text"]},
                {"type": "audio", "audio": one["audio_array"]},
            ],
        )
        for one in references
    ]
    if isinstance(conversation, str):
        role = turns[0]["role"] if turns else "0"
        return [*turns, _spoken(_message(role, [{"type": "text", "text": conversation}]))]
    if not isinstance(conversation, Sequence) or not conversation:
        raise RequestError("conversation must be a text or a list of turns, and not empty.")
    given = [_turn(number, turn) for number, turn in enumerate(conversation, start=1)]
    return [*turns, *given[:-1], _spoken(given[-1])]


def processed(processor: Any, messages: list[Message]) -> Any:
    """What the checkpoint's processor makes of turns."""
    mark = getattr(processor, "audio_token", "<|AUDIO|>")
    if any(mark in part["text"] for turn in messages for part in _texts(turn)):
        raise TextError("The text holds the model's own audio marks; leave them out.")
    try:
        return processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    except CsmError:
        raise
    except Exception as error:
        # Templates are the checkpoint's, and each fails in its own way; none may quote the text.
        raise RequestError(
            f"The processor cannot read the conversation ({type(error).__name__}): "
            "check its turns against the model's page."
        ) from None


def _read(reference_data: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """References with their audio, read from their files where that was not done yet."""
    if reference_data is None:
        return []
    loaded = []
    for one in _checked(reference_data, ("text", "speaker_id")):
        if one.get("audio_array") is None:
            loaded += load_reference_audio([one])
        else:
            loaded.append({**one, "audio_array": _samples(one["audio_array"])})
    return loaded


def _checked(reference_data: Any, keys: tuple[str, ...]) -> list[Mapping[str, Any]]:
    if not isinstance(reference_data, Sequence) or isinstance(reference_data, (str, bytes)):
        raise RequestError(
            "reference_data must be a list of dictionaries with path, text and speaker_id."
        )
    for number, reference in enumerate(reference_data, start=1):
        if not isinstance(reference, Mapping):
            raise RequestError(f"Reference {number} must be a dictionary with {', '.join(keys)}.")
        missing = [key for key in keys if reference.get(key) is None]
        if missing:
            raise RequestError(f"Reference {number} lacks {', '.join(missing)}.")
        if not isinstance(reference["text"], str) or not reference["text"].strip():
            raise VoiceError(
                f"Reference {number} has no transcript: give the words that are spoken in it."
            )
    return list(reference_data)


def _path(path: Any) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise AudioError("A reference's path must be a text or a Path.") from None


def _turn(number: int, turn: Any) -> Message:
    if not isinstance(turn, Mapping) or turn.get("role") is None or turn.get("content") is None:
        raise RequestError(f"Turn {number} must be a dictionary with role and content.")
    content = turn["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise RequestError(f"The content of turn {number} must be a text or a list of parts.")
    return _message(str(turn["role"]), [_part(number, part) for part in content])


def _part(number: int, part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "audio":
        sound = part.get("audio", part.get("path"))
        if isinstance(sound, (str, Path)):
            return {"type": "audio", "audio": load_reference(sound)}
        if sound is not None:
            return {"type": "audio", "audio": _samples(sound)}
    raise RequestError(
        f"Turn {number} has a part that is neither a text nor audio with samples or a path."
    )


def _samples(sound: Any) -> Samples:
    try:
        samples = np.ascontiguousarray(sound, dtype=np.float32)
    except (TypeError, ValueError):
        raise AudioError("Audio in a conversation must be samples: an array at 24 kHz.") from None
    check_audio(samples, Limits())
    return samples


def _message(role: str, content: list[dict[str, Any]]) -> Message:
    return {"role": role, "content": content}


def _texts(message: Message) -> list[dict[str, Any]]:
    return [part for part in message["content"] if part["type"] == "text"]


def _spoken(message: Message) -> Message:
    """The turn to be spoken: words, and no audio yet."""
    if len(_texts(message)) != len(message["content"]):
        raise RequestError("The last turn is the one to be spoken: it has text only, no audio.")
    if not any(part["text"].strip() for part in _texts(message)):
        raise TextError("There is nothing to say: the text is empty.")
    return message
