"""Which part of a reply may be spoken while it arrives, and after it was cut off."""

from __future__ import annotations

import random

import pytest

from csm_tts_plugin.text.clauses import SHORTEST_CHARS, clause_end, piece_end
from csm_tts_plugin.text.whole import WholeSentences

REPLY = "Well, I like long walks, and you? I like to read. They want to create a double"


def passed(reply: str, *, cut: bool, step: int = 1, slow: bool = False) -> list[str]:
    whole = WholeSentences()
    pieces = [reply[at : at + step] for at in range(0, len(reply), step)]
    found = [*(whole.push(piece, slow=slow) for piece in pieces), whole.end(cut=cut)]
    return [piece for piece in found if piece]


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_what_a_limit_cut_off_is_not_passed_on(step):
    assert "".join(passed(REPLY, cut=True, step=step)) == (
        "Well, I like long walks, and you? I like to read."
    )


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_reply_that_ended_by_itself_is_passed_on_whole(step):
    assert "".join(passed(REPLY, cut=False, step=step)) == REPLY


def test_a_sentence_that_ends_with_the_limit_is_whole():
    assert passed("I like to read. So do you.", cut=True, step=5)[-1].endswith("So do you.")


def test_sentences_come_whole():
    assert passed("I like long walks, and tea. I like books, and rain. And", cut=False) == [
        "I like long walks, and tea.",
        " I like books, and rain.",
        " And",
    ]


def test_of_a_first_sentence_without_an_end_nothing_is_passed_on():
    whole = WholeSentences()
    assert whole.push("They want to") == ""
    assert whole.end(cut=True) == ""
    assert not whole.passed


def test_a_slow_first_sentence_comes_as_it_arrives():
    assert passed("I like", cut=True, slow=True, step=2) == ["I ", "li", "ke"]


def test_however_it_is_cut_into_pieces_the_same_is_passed_on():
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(200):
        whole, rest, found = WholeSentences(), REPLY, ""
        while rest:
            size = rng.randint(1, 9)
            found += whole.push(rest[:size])
            rest = rest[size:]
        assert found + whole.end(cut=True) == "Well, I like long walks, and you? I like to read."


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("I wonder where he went, and who", "I wonder where he went,"),
        ("Yes, he was there", None),
        ("It is 1,000 metres to the next town", None),
        ("The people in that old house were kind because", None),
        ("The people of the house were kind because they", "The people of the house were kind"),
        ("Dear reader: listen to this", None),
        ("My dear old reader: listen", "My dear old reader:"),
    ],
)  # fmt: skip
def test_a_clause_is_a_second_of_speech_that_is_known_to_have_ended(text, clause):
    end = clause_end(text)
    assert (None if end is None else text[:end]) == clause
    assert end is None or end >= SHORTEST_CHARS


@pytest.mark.parametrize(
    ("seconds", "piece"),
    [(0.5, None), (4.0, "They want to go to the")],
    ids=["as fast as speech", "slower than speech"],
)
def test_words_without_a_clause_are_spoken_where_text_is_slower_than_speech(seconds, piece):
    text = "They want to go to the old"
    end = piece_end(text, seconds)
    assert (None if end is None else text[:end]) == piece


def test_a_few_slow_words_are_waited_for():
    assert piece_end("They want to ", 60.0) is None
