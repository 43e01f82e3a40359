"""Sentences leave as soon as they are complete, the same ones for any pieces; markup stays."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_tts_plugin.text import MAX_SENTENCE_CHARS, SentenceSplitter, speakable


def split(text: str, **options) -> list[str]:
    splitter = SentenceSplitter(**options)
    return splitter.push(text) + splitter.flush()


def stripped(sentences: list[str]) -> list[str]:
    return [sentence.strip() for sentence in sentences]


@pytest.mark.parametrize(
    "sentences",
    [
        ["Sure.", "I can help."],
        ["Really?!", "Yes!", "No way."],
        ["Mr. Smith met Dr. Who, e.g. in St. Louis.", "Then he left."],
        ["It costs 3.5 dollars, or 1,000.25 yen.", "Fine."],
        ["The U.S. Army and J. R. R. Tolkien.", "Both."],
        ["At 5 p.m. we go.", "At 6 p.m.", "We come back."],
        ["Well... maybe.", "Or not...", "Who knows…", "Nobody."],
        ['"Really?" she asked.', 'He said "Go."', "Then he (finally!) left.", "(He did.)", "So."],
        ["**Bold.**", "Then `code.`", "Done."],
        ["No.", "I will not.", "See No. 5.", "It is on p. 3."],
        ["1. First this.", "2. Then that.", "It was 1984.", "It rained."],
        ["It is I.", "Visit example.com or a.b.c now!", "Ok."],
        ["sure.", "i can do that.", "ok?", "fine."],
        ["我很好。", "你呢？", "Hello!", "「はい。」", "そう。"],
        ["Apples, pears, etc. are fruit.", "Apples, pears, etc.", "They are fruit."],
    ],
)
def test_sentences_end_where_a_reader_ends_them(sentences):
    assert stripped(split(" ".join(sentences))) == sentences


def test_lines_end_sentences():
    assert split("Here:\n- one\n\n\nDone \n") == ["Here:", "\n- one", "\n\n\nDone"]


@pytest.mark.parametrize("text", ["Sure. ", "Really? ", "Go! ", "Sure.\n", 'So it is." I', "好。 "])
def test_a_sentence_leaves_before_the_next_has_a_word(text):
    assert SentenceSplitter().push(text) == [text.strip().removesuffix(" I")]


@pytest.mark.parametrize(
    "text", ["Sure.", "Why?", 'He said "go."', "Hm...", "And so on, etc.", "好。"]
)
def test_a_pause_after_a_full_stop_ends_the_sentence(text):
    splitter = SentenceSplitter()
    assert splitter.push(text) == []
    assert splitter.settle() == [text]
    assert not splitter.pending
    assert splitter.push(" Next. ") == [" Next."]


@pytest.mark.parametrize(
    "text", ["I am", "Hello Mr.", "It costs 3.", "1.", "one, two,", "e.g.", ""]
)
def test_a_pause_in_the_middle_of_a_sentence_does_not_end_it(text):
    splitter = SentenceSplitter()
    assert splitter.push(text) + splitter.settle() == []
    assert "".join(splitter.push(" 5 more.") + splitter.flush()) == text + " 5 more."


def test_long_sentences_are_cut_at_commas_else_between_words_else_anywhere():
    clauses = stripped(split("word, " * 100))
    words = stripped(split("word " * 100))
    letters = split("a" * 1_000)
    for pieces in (clauses, words, letters):
        assert max(map(len, pieces)) <= MAX_SENTENCE_CHARS
        assert min(map(len, pieces[:-1])) > MAX_SENTENCE_CHARS // 3
    assert all(piece.endswith(",") for piece in clauses)
    assert all(piece.endswith("word") for piece in words)


def test_numbers_are_not_cut_at_their_commas():
    text = "x" * 30 + " " + ", ".join(["1,000,000"] * 20)
    assert all(piece.split()[-1].strip(",") in text for piece in split(text, max_chars=60))
    assert "".join(split(text, max_chars=60)).count("1,000,000") == 20


PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["Sure.", " ", "  ", "\n", "Mr.", "No.", "etc.", "p.m.", "U.S.", "3", ".", "5", "...",
             "…", "!", "?", '"', ")", "”", "**", ",", "。", "I", "the", "Word", " and ", "e.g."]
        ),
        st.text(max_size=8),
    ),
    max_size=60,
)  # fmt: skip


@settings(deadline=None)
@given(pieces=PIECES, limit=st.sampled_from([7, 20, 60, MAX_SENTENCE_CHARS]))
def test_the_pieces_that_text_comes_in_change_nothing(pieces, limit):
    text = "".join(pieces)
    splitter = SentenceSplitter(limit)
    streamed = [sentence for piece in pieces for sentence in splitter.push(piece)]
    streamed += splitter.flush()
    assert streamed == split(text, max_chars=limit)
    letters = SentenceSplitter(limit)
    spelled = [sentence for char in text for sentence in letters.push(char)] + letters.flush()
    assert spelled == streamed
    assert "".join(streamed) == text.rstrip()
    assert all(0 < len(sentence.strip()) <= limit for sentence in streamed)


@settings(deadline=None)
@given(pieces=PIECES)
def test_pauses_lose_nothing(pieces):
    splitter = SentenceSplitter()
    out = [s for piece in pieces for s in splitter.push(piece) + splitter.settle()]
    assert "".join(out + splitter.flush()) == "".join(pieces).rstrip()


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("**Bold**, *slanted*, _under_, `code`, ~~gone~~.", "Bold, slanted, under, code, gone."),
        ("See [the page](https://example.com/a?b=c) now.", "See the page now."),
        ("![a cat](cat.png)", "a cat"),
        ("## Heading", "Heading"),
        ("- one\n* two\n> three", "one two three"),
        ("```python\nprint\n```", "print"),
        ("A<br>B <b>c</b> 3 < 4 and 5 > 4", "A B c 3 < 4 and 5 > 4"),
        ("Great! 👍🏽 1️⃣ go 👨‍👩‍👧 🇩🇪", "Great! 1 go"),
        ("21°C, 50 %, €5, 2 * 3, snake_case", "21°C, 50 %, €5, 2 * 3, snake_case"),
        ("a\x00b\u200bc\ufeff\u202ed\te\r\nf", "abcd e f"),
        ("cafe\u0301 “quoted” — naïve", "café “quoted” — naïve"),
        ("| a | b |", "a b"),
    ],
)  # fmt: skip
def test_what_is_not_speech_is_left_out(text, spoken):
    assert speakable(text) == spoken


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "...",
        "?!",
        "👍",
        "👨‍👩‍👧",
        "---",
        "***",
        "|---|",
        "```",
        "\x00\u200b",
        "“”",
        "$ %",
    ],
)
def test_nothing_to_speak_is_nothing(text):
    assert speakable(text) == ""


@settings(deadline=None)
@given(st.text())
def test_spoken_text_is_one_clean_line(text):
    spoken = speakable(text)
    assert spoken == " ".join(spoken.split())
    assert not any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co"} for char in spoken)
    assert spoken == "" or any(char.isalnum() for char in spoken)


@settings(deadline=None)
@given(st.lists(st.text(alphabet="abcXYZ0189,.'!? éß我", min_size=1), min_size=1))
def test_plain_words_pass_unchanged(words):
    text = unicodedata.normalize("NFC", " ".join(" ".join(words).split()))
    assert speakable(text) in (text, "")
