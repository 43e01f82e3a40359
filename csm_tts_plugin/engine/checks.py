"""Checks of settings and texts before the engine accepts them."""

from __future__ import annotations

import math

import numpy as np

from ..config import SAMPLE_RATE, WATERMARK_LEAD_S, WATERMARKS, EngineConfig, Limits
from ..errors import AudioError, ConfigError, RequestError, TextError, VoiceError
from .api import Samples, Sampling, Turn, VoicePrompt

_SEED_MAX = 2**63 - 1
_FULL_SCALE = 4.0


def check_config(config: EngineConfig) -> None:
    """Raises ConfigError for settings that no engine can work with."""
    wholes = (
        ("slots", config.slots, 1),
        ("queue", config.queue, 0),
        ("threads", config.threads, 1),
        ("max_context", config.max_context, 64),
    )
    for name, value, low in wholes:
        if value is not None and value < low:
            raise ConfigError(f"{name} must be at least {low}, got {value}.")
    if config.watermark not in WATERMARKS:
        raise ConfigError(f"watermark must be one of {', '.join(WATERMARKS)}.")
    if not config.max_lead_s >= 0:
        raise ConfigError(f"max_lead_s must be 0 or more seconds, got {config.max_lead_s}.")
    if config.watermark != "off" and config.max_lead_s < WATERMARK_LEAD_S:
        raise ConfigError(
            f"max_lead_s must be at least {WATERMARK_LEAD_S:g} s, which the watermark takes, got"
            f" {config.max_lead_s}; raise it, or set CSM_WATERMARK=off."
        )


def check_sampling(sampling: Sampling, limits: Limits) -> Sampling:
    temperature, top_k, seed = sampling.temperature, sampling.top_k, sampling.seed
    if temperature is not None and not 0 <= temperature <= limits.temperature_max:
        raise RequestError(
            f"temperature must be from 0 to {limits.temperature_max:g}, got {temperature}."
        )
    if top_k is not None and not 0 <= top_k <= limits.top_k_max:
        raise RequestError(f"top_k must be from 0 (all) to {limits.top_k_max}, got {top_k}.")
    if seed is not None and not 0 <= seed <= _SEED_MAX:
        raise RequestError(f"seed must be from 0 to {_SEED_MAX}, got {seed}.")
    return sampling


def check_seconds(seconds: float | None) -> None:
    if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
        raise RequestError(f"max_seconds must be a positive number, got {seconds}.")


def check_text(text: str, limits: Limits) -> str:
    """Returns `text` without the white space around it. Raises TextError."""
    text = text.strip()
    if not text:
        raise TextError("There is nothing to say: the text is empty.")
    if len(text) > limits.text_chars:
        raise TextError(
            f"The text has {len(text)} characters, {limits.text_chars} at most: split it."
        )
    return text


def check_turn(turn: Turn, limits: Limits) -> None:
    check_text(turn.text, limits)
    if turn.audio is not None:
        check_audio(turn.audio, limits)


def check_voice(voice: VoicePrompt | None, limits: Limits) -> None:
    for turn in voice.turns if voice else ():
        if not turn.text.strip():
            raise VoiceError(
                "The reference has no transcript: give the words that are spoken in it."
            )
        check_turn(turn, limits)


def check_audio(samples: Samples, limits: Limits) -> None:
    if samples.ndim != 1 or samples.dtype != np.float32:
        raise AudioError("Audio for the engine must be mono float32 samples at 24 kHz.")
    seconds = len(samples) / SAMPLE_RATE
    if not limits.reference_seconds_min <= seconds <= limits.reference_seconds_max:
        raise AudioError(
            f"The audio lasts {seconds:.1f} s; between {limits.reference_seconds_min:g} and "
            f"{limits.reference_seconds_max:g} s are needed."
        )
    if not np.isfinite(samples).all():
        raise AudioError("The audio holds NaN or Inf: record or decode it again.")
    if float(np.max(np.abs(samples), initial=0.0)) > _FULL_SCALE:
        raise AudioError("The audio is not scaled to [-1, 1]: divide it by its range.")
