"""The engine's input for a sentence: one clean line, with signs written as words."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_tts_plugin.text.spoken import spoken
from csm_tts_plugin.text.stream import sentences_of, speakable


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("**Bold**, *slanted*, _under_, `code`, ~~gone~~.", "Bold, slanted, under, code, gone."),
        ("See [the page](https://example.com/a?b=c) now.", "See the page now."),
        ("![a cat](cat.png)", "a cat"),
        ("## Heading", "Heading"),
        ("- one\n* two\n> three", "one two three"),
        ("```python\nprint\n```", "print"),
        ("A<br>B <b>c</b>", "A B c"),
        ("Great! 👍🏽 1️⃣ go 👨‍👩‍👧 🇩🇪", "Great! 1 go"),
        ("21°C, 50 %, €5, 3.5, 1,000, snake_case", "21°C, 50 %, €5, 3.5, 1,000, snake_case"),
        ("a\x00b\u200bc\ufeff\u202ed\te\r\nf", "abcd e f"),
        ("cafe\u0301 “quoted” — naïve", "café “quoted” — naïve"),
        ("| a | b |", "a b"),
    ],
)  # fmt: skip
def test_what_is_not_speech_is_left_out(text, said):
    assert speakable(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Press *1 or *67.", "Press star 1 or star 67."),
        ("Dial *100# or **21*555#", "Dial star 100 pound or star star 21 star 555 pound"),
        ("Press * or # now.", "Press star or pound now."),
        ("Then press the # key.", "Then press the pound key."),
        ("Call #1 is C#", "Call number 1 is C sharp"),
        ("A 5* hotel", "A 5 star hotel"),
        ("2*3 = 6", "2 times 3 equals 6"),
        ("2 * 3, 4 × 5", "2 times 3, 4 times 5"),
        ("width * height", "width times height"),
        ("2**8 and x^2", "2 to the power of 8 and x squared"),
        ("10^-3", "10 to the power of minus 3"),
        ("5 m²", "5 m squared"),
        ("price* applies", "price applies"),
        ("if a < b and c > 3", "if a is less than b and c is greater than 3"),
        ("x<y, 5>4", "x is less than y, 5 is greater than 4"),
        ("<10, > $5", "less than 10, more than $5"),
        ("a <= b >= c != d", "a is at most b is at least c is not equal to d"),
        ("Settings > Privacy", "Settings, Privacy"),
        ("2 + 2, +1 555, C++, 50+", "2 plus 2, plus 1 555, C plus plus, 50 plus"),
        ("It is -5, or −6.", "It is minus 5, or minus 6."),
        ("~5 minutes, 6 ÷ 2", "about 5 minutes, 6 divided by 2"),
        ("A -> B", "A to B"),
        ("bob_s@example.com", "bob underscore s at example dot com"),
        ("https://www.example.com/help?q=1#x.", "www dot example dot com slash help."),
        ("example.co.uk/a, report.pdf", "example dot co dot uk slash a, report dot pdf"),
        ("192.168.0.1", "192 dot 168 dot 0 dot 1"),
        ("the ` key", "the backtick key"),
        ("hi {{name}} [sic]", "hi name sic"),
        ("array[1], m[0][12], x[-1]", "array 1, m 0 12, x minus 1"),
        ("It is so (), or (, ).", "It is so, or."),
    ],
)  # fmt: skip
def test_signs_are_said_by_their_names(text, said):
    assert spoken(text) == said


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
        "* * *",
        "<b></b>",
        "[1]",
        "<|im_end|>",
        "<!-- x -->",
        "&nbsp;",
    ],
)
def test_nothing_to_speak_is_nothing(text):
    assert speakable(text) == ""
    assert sentences_of(text) == []


@settings(deadline=None)
@given(st.text())
def test_spoken_text_is_one_clean_line(text):
    said = speakable(text)
    assert said == " ".join(said.split())
    assert not any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co"} for char in said)
    assert not set(said) & set("<>[]{}|*#=\\")
    assert said == "" or any(char.isalnum() for char in said)


@settings(deadline=None)
@given(st.lists(st.text(alphabet="abcXYZ0189,.'!? éß我", min_size=1), min_size=1))
def test_plain_words_pass_unchanged(words):
    text = unicodedata.normalize("NFC", " ".join(" ".join(words).split()))
    assert speakable(text) in (text, "")
