"""How long the text stream waits in a pause, and how it uses a user's tokenizer."""

from __future__ import annotations

import itertools

import pytest
from livekit.agents import tokenize

from csm_tts_plugin.text.splitting import MAX_SENTENCE_CHARS
from csm_tts_plugin.text.stream import Pace, Tokens


@pytest.mark.parametrize(
    ("per_second", "least", "most"), [(12, 0.2, 0.4), (5, 0.5, 1.0), (200, 0.05, 0.05)]
)
def test_patience_follows_the_pace_of_the_stream(per_second, least, most):
    pace = Pace()
    for at in range(20):
        pace.arrived(at / per_second)
    assert least <= pace.patience <= most


def test_before_the_pace_is_known_a_slow_one_is_expected():
    pace = Pace()
    assert pace.patience > 2 / 12
    pace.arrived(0.0)
    assert pace.patience > 2 / 12
    pace.arrived(0.2)
    assert pace.patience > 0.4


def test_what_was_not_waited_for_says_nothing_of_the_pace():
    pace = Pace()
    for at in range(10):
        pace.arrived(at / 100)
    pace.interrupted()
    pace.arrived(50.0)
    pace.arrived(50.01)
    assert pace.patience == 0.05


@pytest.mark.parametrize(
    "tokenizer",
    [tokenize.basic.SentenceTokenizer(), tokenize.blingfire.SentenceTokenizer()],
    ids=["basic", "blingfire"],
)
@pytest.mark.parametrize(
    "text",
    [
        "Good morning. How are you today, my friend?\n\nI am very well indeed. And so on.",
        "word, and more of it " * 100,
        "  Leading. Then one more sentence that is long enough to stand alone.  Two blanks.",
    ],
)
def test_tokens_get_their_white_space_back_and_are_bounded(tokenizer, text):
    tokens = Tokens()
    tokens.feed(text)
    sentences = [one for token in tokenizer.tokenize(text) for one in tokens.sentences(token)]
    assert "".join(sentences).split() == text.split()
    assert all(len(one.strip()) <= MAX_SENTENCE_CHARS for one in sentences)
    assert all(one[0].isspace() for one in sentences[1:])


def test_a_tokenizer_that_changes_the_words_still_parts_them():
    tokens = Tokens()
    tokens.feed("One two. Three four.")
    given = itertools.chain(tokens.sentences("ONE TWO."), tokens.sentences("THREE FOUR."))
    assert "".join(given) == "ONE TWO. THREE FOUR."
