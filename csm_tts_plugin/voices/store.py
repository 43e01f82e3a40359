"""Voices in a folder: `<id>.wav`, and `<id>.json` with consent, transcript and SHA-256.

Only a recording with a consent record for exactly this audio is loaded. Files are readable only by
their owner, because a voice is personal data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..audio.files import write_whole
from ..audio.reference import decode_reference
from ..config import Limits
from ..errors import ConsentError, CsmError, VoiceError
from .voice import Consent, Voice, check_id

_RECORD_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class StoredVoice:
    """A voice as listed; `problem`: why it cannot be loaded, or None."""

    id: str
    speaker: str = ""
    date: str = ""
    seconds: float = 0.0
    band: str = ""
    """`narrow`: telephone audio; empty: stored before this field existed."""
    problem: str | None = None


class VoiceStore:
    """All methods block on the disk: in an event loop, call them from a thread."""

    def __init__(self, folder: str | Path, *, limits: Limits | None = None) -> None:
        self.folder = Path(folder)
        self.limits = limits or Limits()

    def add(self, voice: Voice, *, id: str | None = None, replace: bool = False) -> str:
        """Stores a voice and returns its id. Raises VoiceError: the id is taken, the disk fails."""
        id = check_id(voice.id if id is None else id)
        audio, record = self._paths(id)
        if not replace and (audio.exists() or record.exists()):
            raise VoiceError(
                f"There is a voice {id} already; remove it first or choose another id."
            )
        entry = voice.consent.to_dict() | {
            "name": voice.speaker,
            "transcript": voice.transcript,
            "sha256": voice.sha256,
            "band": voice.band,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Between the two writes the hash differs, so an incomplete voice cannot be loaded.
            write_whole(audio, voice.wav(), private=True)
            text = json.dumps(entry, ensure_ascii=False, indent=2)
            write_whole(record, text + "\n", private=True)
        except OSError as error:
            raise VoiceError(
                f"The voice {id} cannot be stored ({error.strerror}); check the voices folder."
            ) from None
        return id

    def load(self, id: str) -> Voice:
        """Loads a voice.

        Raises VoiceError (no such voice, changed audio), ConsentError, AudioError, TextError.
        """
        audio_path, record_path = self._paths(check_id(id))
        if not audio_path.is_file():
            raise VoiceError(f"There is no voice {id}; list the stored voices, or add it.")
        record = self._record(id, record_path)
        consent = Consent.from_mapping(record)
        data = _bounded(audio_path, self.limits.reference_bytes)
        if hashlib.sha256(data).hexdigest() != record.get("sha256"):
            raise VoiceError(
                f"The audio of voice {id} is not the one consented to: its SHA-256 differs from "
                "the record's; restore the file or add the voice again."
            )
        voice = Voice.from_audio(
            decode_reference(data, limits=self.limits),
            24_000,
            transcript=record.get("transcript", ""),
            consent=consent,
            speaker=record.get("name"),
            id=id,
        )
        return voice

    def has(self, id: str) -> bool:
        """Whether this id has files, complete or not. Raises VoiceError for an invalid id."""
        return any(path.exists() for path in self._paths(check_id(id)))

    def list(self) -> list[StoredVoice]:
        """All voices in the folder by id, also those that cannot be loaded."""
        ids = {path.stem for path in self._files() if path.suffix in (".wav", ".json")}
        return [self._entry(id) for id in sorted(ids)]

    def remove(self, id: str) -> None:
        """Deletes audio and record. Raises VoiceError if there is neither."""
        found = False
        try:
            for path in self._paths(check_id(id)):
                if path.exists():
                    path.unlink()
                    found = True
        except OSError as error:
            raise VoiceError(f"The voice {id} cannot be deleted ({error.strerror}).") from None
        if not found:
            raise VoiceError(f"There is no voice {id}; list the stored voices.")

    def _paths(self, id: str) -> tuple[Path, Path]:
        return self.folder / f"{id}.wav", self.folder / f"{id}.json"

    def _files(self) -> Iterable[Path]:
        return self.folder.iterdir() if self.folder.is_dir() else ()

    def _entry(self, id: str) -> StoredVoice:
        try:
            voice = self.load(id)
        except CsmError as error:
            return StoredVoice(id, problem=error.message)
        consent, band = voice.consent, self._record(id, self._paths(id)[1]).get("band", "")
        return StoredVoice(id, consent.speaker, consent.date, voice.seconds, str(band))

    def _record(self, id: str, path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise ConsentError(f"The voice {id} has no consent record {id}.json; add it again.")
        try:
            record = json.loads(_bounded(path, _RECORD_BYTES))
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise ConsentError(f"The consent record {id}.json is not JSON; add the voice again.")
        return record


def _bounded(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise VoiceError(f"{path.name} cannot be read ({error.strerror}).") from None
    if len(data) > most:
        raise VoiceError(f"{path.name} has more than {most} bytes.")
    return data
