"""The offline LLM's prompt, and replies that follow it, with the real model in its process."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest
from livekit.agents import llm

from csm_tts_plugin.offline import prompt
from csm_tts_plugin.offline.llm import offline_llm, with_examples
from csm_tts_plugin.offline.process import OfflineProcess
from scripts.call import INSTRUCTIONS
from scripts.pins import SPEECH


@pytest.fixture(scope="module")
def served():
    process = OfflineProcess(stt=False, llm=True)
    process.start()
    yield process.llm_url
    process.stop()


def ask(url: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(
        f"{url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def test_examples_in_the_instructions_become_turns():
    chat = llm.ChatContext.empty()
    chat.add_message(role="system", content="Be brief.\n\nCaller: Hello.\nYou: Hi!\n")
    chat.add_message(role="user", content="How are you?")
    items = [(item.role, item.text_content) for item in with_examples(chat).items]
    assert items == [
        ("system", "Be brief."),
        ("user", "Hello."),
        ("assistant", "Hi!"),
        ("user", "How are you?"),
    ]


def test_instructions_without_examples_stay_as_they_are():
    assert prompt.opening("Answer the caller: be kind.") == [
        ("system", "Answer the caller: be kind.")
    ]


def test_each_unwanted_word_is_one_token_so_that_it_can_be_left_out(served):
    for word in prompt.UNWANTED:
        tokens = ask(served.removesuffix("/v1"), "tokenize", {"content": f" {word}"})["tokens"]
        assert len(tokens) == 1, word
        assert prompt.unwanted(f"He said {word}.")


def test_a_reply_is_known_to_be_unwanted_by_whole_words_only():
    assert prompt.unwanted("What a Bastard, he said")
    for text in ("Sussex grapes, a stable method and jewels.", "A meth", "He has a gun"):
        assert not prompt.unwanted(text)  # the next letters may make it another word


async def test_each_line_of_the_novel_gets_one_whole_sentence(served):
    model = offline_llm(served)
    for recording in SPEECH:
        chat = llm.ChatContext.empty()
        chat.add_message(role="system", content=INSTRUCTIONS)
        chat.add_message(role="user", content=recording.words.capitalize() + ".")
        reply = ""
        async with model.chat(chat_ctx=chat) as stream:
            async for chunk in stream:
                reply += (chunk.delta and chunk.delta.content) or ""
        print(recording.words, "->", reply)
        assert re.fullmatch(r"[A-Z][A-Za-z ,'.-]{16,}[.!?]", reply.strip())
        assert not prompt.unwanted(reply)
    await model.aclose()
