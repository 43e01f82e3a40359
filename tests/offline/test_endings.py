"""LLMs that stop in the middle of a sentence, through LiveKit's OpenAI plugin."""

from __future__ import annotations

from typing import Any

import pytest
from livekit.agents import llm

from csm_tts_plugin.offline.endings import tells_cuts, watch, whole_sentences
from livekit.plugins import openai
from tests.support.endpoint import completion, endpoint

INSTEAD = "Sorry, I lost my thread."


def words(text: str) -> list[dict[str, Any]]:
    return [{"content": f"{word} "} for word in text.split()]


async def replies(text: str, reason: str, *, unwanted: str | None = None) -> tuple[str, dict]:
    figures: dict[str, float] = {}
    with endpoint(lambda _: completion(words(text), reason)) as url:
        model = openai.LLM(model="script", base_url=url, api_key="none")
        tells_cuts(model)
        tells_cuts(model)
        stream = model.chat(chat_ctx=llm.ChatContext.empty())
        if unwanted is not None:
            watch(stream, lambda reply: unwanted in reply)

        async def chunks():
            async with stream:
                async for chunk in stream:
                    yield chunk

        said = ""
        async for chunk in whole_sentences(chunks(), INSTEAD, figures):
            said += chunk if isinstance(chunk, str) else (chunk.delta and chunk.delta.content) or ""
        await model.aclose()
    return said.strip(), figures


async def test_the_rest_that_length_cut_off_is_not_said():
    said, figures = await replies("I like books. They want to create a double", "length")
    assert said == "I like books."
    assert figures["llm_node_ttft"] > 0


async def test_a_reply_that_stops_by_itself_is_said_whole_without_a_full_stop_too():
    said, _ = await replies("I like books. Call five five five", "stop")
    assert said == "I like books. Call five five five"


async def test_a_reply_that_never_came_to_the_end_of_a_sentence_is_made_up_for():
    said, _ = await replies("They want to create a", "length")
    assert said == INSTEAD


async def test_a_reply_is_stopped_at_what_nobody_wants_to_hear():
    said, _ = await replies("I like books. He had a gun in his", "stop", unwanted="gun")
    assert said == "I like books."
    said, _ = await replies("He had a gun in his hand.", "stop", unwanted="gun")
    assert said == INSTEAD


async def test_tool_calls_pass_as_they_are():
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "x", "arguments": "{}"}}
    with endpoint(lambda _: completion([{"tool_calls": [call]}], "tool_calls")) as url:
        model = openai.LLM(model="script", base_url=url, api_key="none")
        tells_cuts(model)

        async def chunks():
            async with model.chat(chat_ctx=llm.ChatContext.empty()) as stream:
                async for chunk in stream:
                    yield chunk

        seen = [chunk async for chunk in whole_sentences(chunks(), INSTEAD, {})]
        await model.aclose()
    names = [call.name for chunk in seen if chunk.delta for call in chunk.delta.tool_calls]
    assert names == ["x"]


@pytest.mark.parametrize("other", [None, object()])
def test_what_is_no_llm_of_that_protocol_is_left_alone(other):
    tells_cuts(other)
