"""SmolLM2 as a LiveKit LLM: OpenAI's protocol to the worker's child process."""

from __future__ import annotations

from typing import Any

from livekit.agents import llm

from . import prompt
from .endings import watch

MODEL = "smollm2"


def offline_llm(url: str) -> llm.LLM[Any]:
    """`url`: the `llm_url` of an `OfflineProcess`."""
    from livekit.plugins import openai

    class OfflineLLM(openai.LLM):
        def chat(  # type: ignore[override]
            self, *args: Any, **options: Any
        ) -> llm.LLMStream:
            options["chat_ctx"] = with_examples(options["chat_ctx"])
            return watch(super().chat(*args, **options), prompt.unwanted)

    return OfflineLLM(
        model=MODEL,
        base_url=url,
        api_key="none",
        max_completion_tokens=prompt.MAX_TOKENS,
        temperature=prompt.TEMPERATURE,
        extra_body=prompt.SAMPLING,
    )


def with_examples(chat_ctx: llm.ChatContext) -> llm.ChatContext:
    """Moves the examples in the instructions into turns before those of the conversation."""
    items: list[llm.ChatItem] = []
    for item in chat_ctx.items:
        if isinstance(item, llm.ChatMessage) and item.role == "system":
            opening = prompt.opening(item.text_content or "")
            items += [llm.ChatMessage(role=role, content=[text]) for role, text in opening]
        else:
            items.append(item)
    return llm.ChatContext(items)
