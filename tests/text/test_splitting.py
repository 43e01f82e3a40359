"""Sentences are emitted when they are complete, the same for any split of the input."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_tts_plugin.text.splitting import MAX_SENTENCE_CHARS, SentenceSplitter
from csm_tts_plugin.text.weight import weight


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
        ["At 5 p. m. we go.", "At 6 p. m.", "We come back."],
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


def test_a_line_break_is_a_space_and_a_blank_line_ends_a_sentence():
    assert split("Wrapped\nhere and\r\nthere\n \n\nDone \n") == [
        "Wrapped\nhere and\r\nthere",
        "\n \n\nDone",
    ]
    assert split("Mr.\nSmith. He\nleft.") == ["Mr.\nSmith.", " He\nleft."]


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
    "text",
    [
        "I am",
        "Hello Mr.",
        "It costs 3.",
        "1.",
        "one, two,",
        "e.g.",
        "",
        "See No.",
        "at 5 p.",
        "at 5 p. m.",
        "at 5 p.m.",
        "on www.",
        "Ask bob@example.",
        "Open C:\\notes.",
        "in v1.2.",
        "Use a_b.",
        "the U.S.",
        "Acme Inc.",
        "call ext.",
        "e. g.",
    ],
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


@pytest.mark.parametrize(
    "text",
    [
        "The total is $1,234,567,890.12, or €987,654,321.00 in the other currency, please.",
        "Your IBAN is DE89 3704 0044 0532 0130 00, and mine is GB29 NWBK 6016 1331 9268 19, right?",
        "The hosts are 192.168.100.101, 192.168.100.102, 192.168.100.103 and 192.168.100.104.",
        "From 2026-11-25 14:35:20 to 2026-12-31 23:59:59, and again from 2027-01-01 00:00:00.",
    ],
)  # fmt: skip
def test_digits_and_symbols_weigh_what_they_take_to_say(text):
    assert len(text) <= MAX_SENTENCE_CHARS < weight(text)
    sentences = split(text)
    assert len(sentences) > 1
    assert all(weight(one.strip()) <= MAX_SENTENCE_CHARS for one in sentences)
    assert [word for one in sentences for word in one.split()] == text.split()


def test_plain_words_weigh_their_letters():
    text = "I can help you with that, of course."
    assert weight(text) == len(text)


def test_an_address_is_one_word_however_long_it_is():
    address = "https://example.com/" + "a/b.c?d=e&" * 30
    sentences = split(f"The page that you were looking for so long is at {address} since Monday.")
    assert sum(address in one for one in sentences) == 1


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
