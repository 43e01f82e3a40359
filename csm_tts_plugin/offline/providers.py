"""Makes speech-to-text and the LLM of a call from their names: the offline models, or a service.

livekit-plugins-openai is imported only if a name needs it, because the base install lacks it.
"""

from __future__ import annotations

import os
from typing import Any

from livekit.agents import inference, llm, stt, vad
from livekit.agents.types import NOT_GIVEN, NotGiven

from .llm import offline_llm
from .process import OFFLINE_LLM_URL, OFFLINE_STT_URL
from .stt import OfflineSTT


def _key() -> str | NotGiven:
    """Most local endpoints need no key, but the client requires one."""
    own = "OPENAI_BASE_URL" in os.environ and "OPENAI_API_KEY" not in os.environ
    return "none" if own else NOT_GIVEN


def make_stt(name: str, detector: vad.VAD) -> stt.STT[Any]:
    if name == "offline":
        return OfflineSTT(os.environ[OFFLINE_STT_URL], vad=detector)
    if name.startswith("openai:"):
        from livekit.plugins import openai

        model = openai.STT(model=name.removeprefix("openai:"), use_realtime=False, api_key=_key())
        return stt.StreamAdapter(stt=model, vad=detector)
    return inference.STT(model=name)


def make_llm(name: str) -> llm.LLM[Any]:
    if name == "offline":
        return offline_llm(os.environ[OFFLINE_LLM_URL])
    if name.startswith("openai:"):
        from livekit.plugins import openai

        return openai.LLM(model=name.removeprefix("openai:"), api_key=_key())
    return inference.LLM(model=name)
