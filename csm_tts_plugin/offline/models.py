"""Finds the offline models where `make setup` stores them."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError

_PLACES = (Path(__file__).resolve().parents[2], Path.cwd())
"""The checkout, or the folder in which the worker was started."""


def whisper_folder() -> Path:
    """Folder of a CTranslate2 Whisper model. Raises ConfigError."""
    return _find("models/whisper-base", "model.bin").parent


def smollm2_file() -> Path:
    """A GGUF file. Raises ConfigError."""
    return _find("models/smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def _find(folder: str, name: str) -> Path:
    for place in _PLACES:
        path = place / ".tools" / folder / name
        if path.is_file():
            return path
    raise ConfigError(
        f"The offline model {Path(folder).name} is not set up; run `make setup`, or name others in"
        " AGENT_STT and AGENT_LLM."
    )
