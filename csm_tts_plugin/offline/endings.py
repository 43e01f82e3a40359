"""Makes replies end with a whole sentence, with any LLM and however its reply stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from livekit.agents import llm

from ..text.whole import WholeSentences

CUT = "csm_cut"
"""Key in a delta's `extra`: the reply was cut off, by a limit or by `stops`."""
_SLOW_S = 0.15
"""A first sentence that takes longer to arrive is passed on before its end."""


def tells_cuts(model: object) -> None:
    """Makes an LLM with OpenAI's protocol report that it reached its limit, also LiveKit Inference.

    LiveKit does not pass on `finish_reason`. Other LLMs stay unchanged. May be called repeatedly.
    """
    if not isinstance(model, llm.LLM) or getattr(model, "_csm_tells_cuts", False):
        return
    chat = model.chat

    def watched(*args: Any, **options: Any) -> llm.LLMStream:
        return watch(chat(*args, **options))

    model.chat = watched  # type: ignore[method-assign]
    model._csm_tells_cuts = True  # type: ignore[attr-defined]


def watch(stream: llm.LLMStream, stops: Callable[[str], bool] | None = None) -> llm.LLMStream:
    """Marks the chunk of `stream` at which its reply is cut off: by a limit, or because `stops`
    returns True for the text so far.
    """
    parse, reply = getattr(stream, "_parse_choice", None), ""

    def told(id: str, choice: Any, *rest: Any) -> llm.ChatChunk | None:
        nonlocal reply
        chunk: llm.ChatChunk | None = parse(id, choice, *rest) if parse else None
        reply += (chunk and chunk.delta and chunk.delta.content) or ""
        stopped = stops is not None and stops(reply)
        return _cut(id, chunk) if stopped or choice.finish_reason == "length" else chunk

    if parse is not None:
        stream._parse_choice = told  # type: ignore[attr-defined]
    return stream


def _cut(id: str, chunk: llm.ChatChunk | None) -> llm.ChatChunk:
    delta = (chunk and chunk.delta) or llm.ChoiceDelta(role="assistant")
    delta.extra = {**(delta.extra or {}), CUT: True}
    return llm.ChatChunk(id=id, delta=delta)


async def whole_sentences(
    chunks: AsyncGenerator[Any, None], instead: str, figures: dict[str, float]
) -> AsyncIterator[Any]:
    """Passes on an LLM's reply without an unfinished last sentence, if the reply was cut off.

    If nothing is left, yields `instead`. Chunks without text pass unchanged. `figures` gets
    `llm_node_ttft`, the seconds to the first token, because text is held back here for a moment.
    """
    reply, began, was_cut = WholeSentences(), 0.0, False
    now = asyncio.get_running_loop().time
    asked = now()
    async with aclosing(chunks) as source:
        async for chunk in source:
            delta = chunk.delta if isinstance(chunk, llm.ChatChunk) else None
            text = chunk if isinstance(chunk, str) else (delta and delta.content) or ""
            was_cut = bool(delta and delta.extra and delta.extra.pop(CUT, False))
            if not text:
                yield chunk
            elif not began:
                began = now()
                figures["llm_node_ttft"] = began - asked
            if text and (passed := reply.push(text, slow=now() - began > _SLOW_S)):
                yield _with_text(chunk, passed)
            if was_cut:
                break
    if rest := reply.end(cut=was_cut):
        yield rest
    if was_cut and not reply.passed:
        yield instead


def _with_text(chunk: Any, text: str) -> Any:
    if isinstance(chunk, str):
        return text
    chunk.delta.content = text
    return chunk
