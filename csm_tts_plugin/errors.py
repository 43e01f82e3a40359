"""Every error this project raises on purpose, as one tree.

    CsmError
    ├── ConfigError            the settings cannot work          config
    ├── ModelLoadError         the weights cannot be loaded      model
    ├── RequestError           an invalid request                bad_request
    │   ├── TextError          text that cannot be spoken        bad_text
    │   ├── AudioError         audio that cannot be read         bad_audio
    │   ├── VoiceError         no such voice                     bad_voice
    │   └── ConsentError       a voice without valid consent     no_consent
    ├── AuthError              a missing or wrong key            unauthorized
    │   └── ForbiddenError     a web page without permission     forbidden
    ├── BusyError              slots and queue are full          busy          retry
    ├── UnavailableError       no engine answers                 unavailable   retry
    ├── EngineTimeoutError     an engine answers too late        timeout       retry
    └── EngineError            the engine failed                 engine        retry
        └── NumericError       NaN or Inf in the logits          numeric

`code` is the name in messages, `retryable` says whether the same request may succeed later.
Messages name cause and remedy in one sentence and never contain a caller's text, audio or key.
"""

from __future__ import annotations

from typing import ClassVar


class CsmError(Exception):
    """Base class; `str(error)` is one line for people."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class ConfigError(CsmError):
    code = "config"


class ModelLoadError(CsmError):
    code = "model"


class RequestError(CsmError):
    code = "bad_request"


class TextError(RequestError):
    code = "bad_text"


class AudioError(RequestError):
    code = "bad_audio"


class VoiceError(RequestError):
    code = "bad_voice"


class ConsentError(RequestError):
    code = "no_consent"


class AuthError(CsmError):
    code = "unauthorized"


class ForbiddenError(AuthError):
    code = "forbidden"


class BusyError(CsmError):
    code = "busy"
    retryable = True


class UnavailableError(CsmError):
    code = "unavailable"
    retryable = True


class EngineTimeoutError(CsmError):
    code = "timeout"
    retryable = True


class EngineError(CsmError):
    code = "engine"
    retryable = True


class NumericError(EngineError):
    code = "numeric"
    retryable = False


def _tree(cls: type[CsmError]) -> list[type[CsmError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _tree(child))]


_BY_CODE = {cls.code: cls for cls in _tree(CsmError)}

CODES = tuple(_BY_CODE)
"""All codes."""


def from_code(code: str, message: str, *, retry_after: float | None = None) -> CsmError:
    """The exception for an error reported by a peer; `CsmError` for an unknown code."""
    return _BY_CODE.get(code, CsmError)(message, retry_after=retry_after)


def install(extra: str = "") -> str:
    """How to install this package with `extra`, as part of a message; it is in no package index."""
    what = f'".[{extra}]"' if extra else "."
    return f"`pip install {what}` in the checkout of csm-tts-plugin"
