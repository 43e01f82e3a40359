"""Checks and completes references and conversations in the form that the library's callers use.

[{"role": "0", "content": [{"type": "text", "text": "..."}, {"type": "audio", "audio": [...]}]}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..audio.arrays import samples_of
from ..audio.reference import load_reference
from ..config import Limits
from ..engine.api import Samples
from ..engine.checks import check_audio
from ..engine.prompt import control_marks
from ..errors import AudioError, CsmError, RequestError, TextError, VoiceError

_KEYS = ("path", "text", "speaker_id")

Message = dict[str, Any]


def load_reference_audio(reference_data: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Read reference audio.

    `reference_data`: dictionaries with `path` (WAV, FLAC, OGG, MP3, M4A, WebM), `text` (its
    transcript) and `speaker_id`. Returns them with `audio_array` added: mono float32 at 24 kHz.

    Raises RequestError for missing entries, AudioError with the file's name and the cause.
    """
    return [
        {**reference, "audio_array": load_reference(_path(reference["path"]))}
        for reference in _checked(reference_data, _KEYS)
    ]


def messages_of(
    conversation: str | Sequence[Mapping[str, Any]],
    reference_data: Sequence[Mapping[str, Any]] | None = None,
) -> list[Message]:
    """The references and the conversation as turns with their audio as samples; the last one is to
    be spoken. A plain text is spoken as the first reference's speaker, or as speaker 0.
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
    """The output of the checkpoint's processor for turns."""
    marks = control_marks(processor.tokenizer)
    texts = [part["text"] for turn in messages for part in _texts(turn)]
    if any(mark in text for text in texts for mark in marks):
        raise TextError("The text holds control tokens of the model; leave them out.")
    try:
        return processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    except CsmError:
        raise
    except Exception as error:
        # The template belongs to the checkpoint and may raise anything; the text is not repeated.
        raise RequestError(
            f"The processor cannot read the conversation ({type(error).__name__}): "
            "check its turns against the model's page."
        ) from None


def _read(reference_data: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """References with their audio, which is read from the files if it is not there yet."""
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
    """Mono at 24 kHz. Raises AudioError."""
    samples = samples_of(sound)
    check_audio(samples, Limits())
    return samples


def _message(role: str, content: list[dict[str, Any]]) -> Message:
    return {"role": role, "content": content}


def _texts(message: Message) -> list[dict[str, Any]]:
    return [part for part in message["content"] if part["type"] == "text"]


def _spoken(message: Message) -> Message:
    """Checks the turn to be spoken, which has text and no audio."""
    if len(_texts(message)) != len(message["content"]):
        raise RequestError("The last turn is the one to be spoken: it has text only, no audio.")
    if not any(part["text"].strip() for part in _texts(message)):
        raise TextError("There is nothing to say: the text is empty.")
    return message
