"""Speech-to-text and the LLM of a call, by their names: the offline models, or a service."""

from __future__ import annotations

import os
from typing import Any

from livekit.agents import inference, llm, stt, vad
from livekit.agents.types import NOT_GIVEN, NotGiven

from livekit.plugins import openai

from .llm import offline_llm
from .process import OFFLINE_LLM_URL, OFFLINE_STT_URL
from .stt import OfflineSTT


def _key() -> str | NotGiven:
    """An endpoint of one's own mostly asks for no key, but the client insists on one."""
    own = "OPENAI_BASE_URL" in os.environ and "OPENAI_API_KEY" not in os.environ
    return "none" if own else NOT_GIVEN


def make_stt(name: str, ear: vad.VAD) -> stt.STT[Any]:
    if name == "offline":
        return stt.StreamAdapter(stt=OfflineSTT(os.environ[OFFLINE_STT_URL]), vad=ear)
    if name.startswith("openai:"):
        model = openai.STT(model=name.removeprefix("openai:"), use_realtime=False, api_key=_key())
        return stt.StreamAdapter(stt=model, vad=ear)
    return inference.STT(model=name)


def make_llm(name: str) -> llm.LLM[Any]:
    if name == "offline":
        return offline_llm(os.environ[OFFLINE_LLM_URL])
    if name.startswith("openai:"):
        return openai.LLM(model=name.removeprefix("openai:"), api_key=_key())
    return inference.LLM(model=name)
