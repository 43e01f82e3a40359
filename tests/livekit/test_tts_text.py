"""Text of LLMs on its way through the plugin to the engine."""

from __future__ import annotations

import asyncio
import re

import pytest
from livekit.agents import tokenize

from csm_tts_plugin.errors import ConfigError
from csm_tts_plugin.text.splitting import MAX_SENTENCE_CHARS
from csm_tts_plugin.tts import TTS
from tests.livekit.speech import PATIENT, Speech, speak
from tests.support.waiting import until

TOKENS_A_SECOND = 12


async def paced(speaker, text, per_second=TOKENS_A_SECOND):
    """Streams `text` as an LLM does at this rate."""
    speech = Speech()
    async with speaker.stream(conn_options=PATIENT) as stream:

        async def push():
            for token in re.findall(r"\s*[^\W\d]+|\s*\d{1,3}|\s*[^\w\s]|\s+", text):
                stream.push_text(token)
                await asyncio.sleep(1 / per_second)
            stream.end_input()

        pushing = asyncio.create_task(push())
        async for event in stream:
            speech.add(event)
        await pushing
    return speech


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Go to example.com now. Bye.", ["Go to example dot com now.", "Bye."]),
        ("Open report.pdf please. Done.", ["Open report dot pdf please.", "Done."]),
        ("We close at 5 p. m. today. Bye.", ["We close at 5 p. m. today.", "Bye."]),
        ("We open at 9 a.m. on Monday. Bye.", ["We open at 9 a.m. on Monday.", "Bye."]),
        ("See No. 12 there. Bye.", ["See No. 12 there.", "Bye."]),
        ("Ask Dr. Smith or Mrs. Jones. Bye.", ["Ask Dr. Smith or Mrs. Jones.", "Bye."]),
        ("It costs 3.75 or so. Bye.", ["It costs 3.75 or so.", "Bye."]),
        ("Mail bob@a.example.org. Bye.", ["Mail bob at a dot example dot org.", "Bye."]),
    ],
)  # fmt: skip
async def test_a_slow_language_model_is_not_cut_inside_a_name(server, speaker, text, said):
    await paced(speaker, text)
    assert [one for _, one in server.engine.said] == said


async def test_a_sentence_goes_out_while_a_fast_model_pauses(server, speaker):
    async with speaker.stream(conn_options=PATIENT) as stream:
        for token in ("One", " moment", " please", "."):
            stream.push_text(token)
            await asyncio.sleep(0.01)
        await until(lambda: server.engine.said)
        assert server.engine.said[0][1] == "One moment please."


@pytest.mark.parametrize("how", ["stream", "synthesize"])
async def test_markup_that_spans_sentences_is_never_spoken(server, speaker, how):
    text = (
        "See [the page. It is long](https://example.com/a.b?c=d. "
        'html) or <say-as interpret-as="a. b">this</say-as>. **Really. Yes.** Press *67.<|im_end|>'
    ).replace(" \n", "")
    text = text.replace("d. html", "d.html")
    speech = await speak(speaker, *re.findall(r".{1,3}", text), how=how) if how == "stream" else (
        await speak(speaker, text, how=how)
    )  # fmt: skip
    assert [one for _, one in server.engine.said] == [
        "See the page.",
        "It is long or this.",
        "Really.",
        "Yes.",
        "Press star 67.",
    ]
    assert "".join(speech.transcripts) == (
        "See the page. It is long or this. Really. Yes. Press *67."
    )


@pytest.mark.parametrize(
    "tokenizer",
    [tokenize.basic.SentenceTokenizer, tokenize.blingfire.SentenceTokenizer],
    ids=["basic", "blingfire"],
)
@pytest.mark.parametrize("how", ["stream", "synthesize"])
async def test_a_tokenizer_of_the_users_is_bounded_and_keeps_its_spaces(server, tokenizer, how):
    long = " ".join(["and so on"] * 228)
    async with TTS(engine_url=server.url, tokenizer=tokenizer()) as speaker:
        speech = await speak(speaker, long, how=how)
        assert "".join(speech.transcripts).split() == long.split()
        assert max(len(one) for _, one in server.engine.said) <= MAX_SENTENCE_CHARS
        text = "Good **morning.** How are you on this very fine day? I hope that all is well."
        speech = await speak(speaker, text, how=how)
        assert "".join(speech.transcripts) == text.replace("**", "")


async def test_hard_wrapped_lines_are_one_sentence(server, speaker):
    await speak(speaker, "This is one sentence\nthat was wrapped\nby hand. This is two.")
    assert len(server.engine.said) == 2


async def test_a_reply_may_begin_with_the_first_clause_of_a_sentence_that_is_slow_to_arrive(server):
    text = "I really do wonder, where did he go and who will miss him? I do, and so do you."
    async with TTS(engine_url=server.url, first_piece_s=0.0) as speaker:
        await paced(speaker, text, per_second=50)
    assert [one for _, one in server.engine.said] == [
        "I really do wonder,",
        "where did he go and who will miss him?",
        "I do, and so do you.",
    ]


async def test_a_whole_sentence_that_is_there_in_time_is_not_cut(server):
    async with TTS(engine_url=server.url, first_piece_s=60.0) as speaker:
        await paced(speaker, "I wonder where he went, and who will miss him.", per_second=200)
    assert [one for _, one in server.engine.said] == [
        "I wonder where he went, and who will miss him."
    ]


@pytest.mark.parametrize("seconds", [-0.1, float("nan"), 61.0])
def test_a_first_piece_that_cannot_be_waited_for_is_refused(seconds):
    with pytest.raises(ConfigError, match="first_piece_s"):
        TTS(engine_url="http://127.0.0.1:9", first_piece_s=seconds)
