"""CSM-1B as a streaming, cloning text-to-speech for LiveKit Agents.

Names are imported when first used: importing the package imports neither torch nor livekit.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .agent import CallerVoiceAgent
    from .caller.policy import ConsentPolicy
    from .library.generator import (
        Generator,
        generate_streaming_audio,
        load_csm_1b,
        load_reference_audio,
    )
    from .tts import TTS
    from .voices.voice import Consent, Voice

_HOME = {
    "TTS": ".tts",
    "CallerVoiceAgent": ".agent",
    "ConsentPolicy": ".caller.policy",
    "Voice": ".voices.voice",
    "Consent": ".voices.voice",
    "Generator": ".library.generator",
    "generate_streaming_audio": ".library.generator",
    "load_csm_1b": ".library.generator",
    "load_reference_audio": ".library.generator",
}

_ENGINE_PACKAGES = ("torch", "torchaudio", "transformers", "safetensors")

__all__ = [
    "TTS",
    "CallerVoiceAgent",
    "Consent",
    "ConsentPolicy",
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
    try:
        return getattr(import_module(_HOME[name], __name__), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _ENGINE_PACKAGES:
            raise
        from .errors import install

        raise ImportError(
            f"{name} needs {error.name}; {install('engine')}.", name=error.name
        ) from None


def __dir__() -> list[str]:
    return sorted(__all__)
