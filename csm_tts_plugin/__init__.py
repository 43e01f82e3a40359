"""CSM-1B as a streaming, cloning text-to-speech for LiveKit Agents.

Names are imported when first used: importing the package imports neither torch nor livekit.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .generator import (
        Generator,
        generate_streaming_audio,
        load_csm_1b,
        load_reference_audio,
    )
    from .tts import TTS
    from .voices.voice import Consent, Voice

_HOME = {
    "TTS": ".tts",
    "Voice": ".voices.voice",
    "Consent": ".voices.voice",
    "Generator": ".generator",
    "generate_streaming_audio": ".generator",
    "load_csm_1b": ".generator",
    "load_reference_audio": ".generator",
}

__all__ = [
    "TTS",
    "Consent",
    "Generator",
    "Voice",
    "__version__",
    "generate_streaming_audio",
    "load_csm_1b",
    "load_reference_audio",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
