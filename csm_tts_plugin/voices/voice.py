"""A voice: reference audio, its transcript, and the consent of its speaker.

A `Voice` object has passed all checks: it is usable, and there is consent to use it.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..audio.reference import decode_reference, encode_wav, load_reference, to_reference
from ..audio.resample import from_pcm16, to_pcm16
from ..config import SAMPLE_RATE, Limits
from ..engine.api import Turn, VoicePrompt
from ..errors import ConsentError, TextError, VoiceError
from ..wire.protocol import VOICE_ID, InlineVoice
from .measure import measure

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

_FIELDS = ("speaker", "statement", "date")


@dataclass(frozen=True, slots=True)
class Consent:
    """Who agreed to what, and when. Raises ConsentError if a field is blank or invalid."""

    speaker: str
    """The person whose voice it is."""
    statement: str = field(repr=False)
    """What was agreed to, in words."""
    date: str
    """ISO 8601: 2025-01-31, with or without a time."""

    def __post_init__(self) -> None:
        limits = Limits()
        for name, most in zip(_FIELDS, (limits.name_chars, limits.text_chars, 64), strict=True):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip() or len(value) > most:
                raise ConsentError(
                    f"The consent's {name} must be a text of 1 to {most} characters."
                )
        if not self.speaker.isprintable():
            raise ConsentError("The consent's speaker must be one line of printable characters.")
        try:
            datetime.datetime.fromisoformat(self.date)
        except ValueError:
            raise ConsentError("The consent's date must look like 2025-01-31.") from None

    @classmethod
    def from_mapping(cls, record: Mapping[str, object]) -> Consent:
        """Reads a consent record; ignores its other fields. Raises ConsentError."""
        missing = [name for name in _FIELDS if not isinstance(record.get(name), str)]
        if missing:
            raise ConsentError(
                f"The consent lacks {', '.join(missing)}; it needs {', '.join(_FIELDS)}."
            )
        return cls(*(str(record[name]) for name in _FIELDS))

    def to_dict(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in _FIELDS}


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """Use `from_file`, `from_audio` or `from_inline`; compare voices by `key`."""

    audio: Samples = field(repr=False)
    """float32 mono [n] at 24 kHz, rounded to 16 bits as in a WAV file."""
    transcript: str = field(repr=False)
    consent: Consent
    speaker: str
    """The speaker's name in a conversation; turns with this name are by the same person."""
    id: str
    sha256: str
    """Hash of the WAV file that `wav` returns and a store keeps."""

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        transcript: str,
        consent: Consent,
        speaker: str | None = None,
        id: str | None = None,
    ) -> Voice:
        """Reads a local file: WAV, FLAC, OGG, MP3, M4A or WebM.

        Raises AudioError, TextError, ConsentError, VoiceError.
        """
        _check_words(transcript, consent)
        return cls._of(load_reference(path), transcript, consent, speaker, id)

    @classmethod
    def from_audio(
        cls,
        samples: Samples,
        rate: int,
        *,
        transcript: str,
        consent: Consent,
        speaker: str | None = None,
        id: str | None = None,
    ) -> Voice:
        """Takes samples in memory: float32, [n] or [n, channels]. Raises like `from_file`."""
        _check_words(transcript, consent)
        return cls._of(to_reference(samples, rate), transcript, consent, speaker, id)

    @classmethod
    def from_inline(cls, inline: InlineVoice, *, limits: Limits | None = None) -> Voice:
        """Takes a voice received from a client. Raises like `from_file`."""
        consent = Consent.from_mapping(inline.consent)
        _check_words(inline.transcript, consent)
        audio = decode_reference(inline.audio, limits=limits)
        return cls._of(audio, inline.transcript, consent, inline.speaker, None)

    @classmethod
    def _of(
        cls, audio: Samples, transcript: str, consent: Consent, speaker: str | None, id: str | None
    ) -> Voice:
        speaker = consent.speaker if speaker is None else speaker
        if not speaker.strip() or len(speaker) > Limits().name_chars or not speaker.isprintable():
            raise VoiceError(
                f"A speaker's name has 1 to {Limits().name_chars} printable characters."
            )
        audio = from_pcm16(to_pcm16(audio))
        audio.setflags(write=False)
        digest = hashlib.sha256(encode_wav(audio)).hexdigest()
        id = check_id(id) if id is not None else f"voice-{digest[:16]}"
        return cls(audio, transcript.strip(), consent, speaker, id, digest)

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE

    @property
    def band(self) -> str:
        """`narrow`: telephone bandwidth, measured in the audio at any sample rate; else `wide`."""
        figures, _ = measure(self.audio, SAMPLE_RATE)
        return "narrow" if figures.narrow else "wide"

    @property
    def key(self) -> str:
        """Hash of audio, transcript and speaker; voices with equal keys sound the same."""
        parts = (self.sha256, self.speaker, self.transcript)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def wav(self) -> bytes:
        return encode_wav(self.audio)

    def prompt(self) -> VoicePrompt:
        """The voice as the engine takes it."""
        turn = Turn(self.speaker, self.transcript, self.audio)
        return VoicePrompt(key=self.key, speaker=self.speaker, turns=(turn,))

    def inline(self) -> InlineVoice:
        """The voice as it is sent to an engine; `from_inline` of it has the same key."""
        return InlineVoice(self.wav(), self.transcript, self.consent.to_dict(), self.speaker)


def check_id(id: str) -> str:
    """Returns the id. Raises VoiceError for anything else, which could be a path."""
    if not isinstance(id, str) or not VOICE_ID.fullmatch(id):
        raise VoiceError("A voice's id has 1 to 64 characters out of a-z, 0-9, _ and -.")
    return id


def _check_words(transcript: object, consent: object) -> None:
    """Checks types too, because untyped callers may pass any object."""
    limits = Limits()
    if not isinstance(transcript, str) or not transcript.strip():
        raise TextError("A voice needs the transcript of its recording.")
    if len(transcript) > limits.text_chars:
        raise TextError(
            f"The transcript has more than {limits.text_chars} characters; shorten the recording."
        )
    if not isinstance(consent, Consent):
        raise ConsentError(
            "A voice needs the speaker's consent: "
            'Consent(speaker="...", statement="...", date="2025-01-31").'
        )
