"""SmolLM2 as LiveKit's LLM: OpenAI's protocol to the worker's own server."""

from __future__ import annotations

from livekit.plugins import openai

MODEL = "smollm2"
MAX_TOKENS = 40
"""A sentence or two: a small model does not get better by going on."""


def offline_llm(url: str) -> openai.LLM:
    """`url`: the `llm_url` of an `OfflineProcess`."""
    return openai.LLM(
        model=MODEL,
        base_url=url,
        api_key="none",
        max_completion_tokens=MAX_TOKENS,
        temperature=0.6,
        extra_body={"stop": ["\n"], "repeat_penalty": 1.1},
    )
