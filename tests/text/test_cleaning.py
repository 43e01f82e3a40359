"""Markup is removed before a text is split into sentences; meaningful signs stay."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from csm_tts_plugin.text.cleaning import Cleaner, clean
from csm_tts_plugin.text.stream import TextStream


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("**Bold**, *slanted*, _under_, `code`, ~~gone~~.", "Bold, slanted, under, code, gone."),
        ("***Both*** and **_nested_** and __strong__", "Both and nested and strong"),
        ('"*Yes,*" she said (*loudly*).', '"Yes," she said (loudly).'),
        ("**Note. Two sentences.** Next.", "Note. Two sentences. Next."),
        ("日本**語**です", "日本語です"),
        ("The answer is **42**.", "The answer is 42."),
        ("Press *1 for sales, *2 for help.", "Press *1 for sales, *2 for help."),
        ("Dial *67* now, or **21*5551234#.", "Dial *67* now, or **21*5551234#."),
        ("Dial *BAL or *MIN now.", "Dial *BAL or *MIN now."),
        ("2*3 and 2 * 3 and 2**8 and a*b*c", "2*3 and 2 * 3 and 2**8 and a*b*c"),
        ("x^2, the ` key, snake_case", "x^2, the ` key, snake_case"),
        ("`a*b` and `<br>` and ``x`y``", "a*b and <br> and x`y"),
        (r"\*not slanted\*, \[1\] and \<b\>", "*not slanted*, [1] and <b>"),
        ("a < b, c > d, x<y and y>z, 1 << 3", "a < b, c > d, x<y and y>z, 1 << 3"),
        ("Hello <your name> there", "Hello <your name> there"),
        ("Press <Enter> and <Esc>.", "Press Enter and Esc."),
    ],
)  # fmt: skip
def test_delimiters_go_in_pairs_at_word_boundaries(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("See [the page. Really](https://example.com/a?b=c(d)) now.", "See the page. Really now."),
        ("![a cat. It sits](cat.png) So.", "a cat. It sits So."),
        ("[![badge. x](a.svg)](https://b.c/d) Done.", "badge. x Done."),
        ("[two words][ref] and [sic](see below) stay", "two words and [sic](see below) stay"),
        ('[a](<b c> "title. x") b', "a b"),
        ("<https://a.example/x.y> or <bob@a.example>", "https://a.example/x.y or bob@a.example"),
        ("<mailto:a@b.example>, <tel:+15550100>", "a@b.example, +15550100"),
        ('<break time="1.5s"/>Hi <prosody rate="0.9.">there</prosody>.', " Hi there."),
        ("A<br>B <b>c</b><BR/>d", "A B c d"),
        ('<img alt="a > b. c" src="x.y">Text', " Text"),
        ("Seen.<!-- not. this > that --> Shown.", "Seen. Shown."),
        ("<think>First. Then.</think>\nSo.", "\nSo."),
        ("Use the <think> tag.", "Use the   tag."),
        ("<laugh>Ha [laughs] so", " Ha   so"),
        ("Tom &amp; Jerry&#39;s &lt;b&gt; 5 &euro; &#x41;", "Tom & Jerry's <b> 5 € A"),
        ("R&D, AT&T; a & b &amp;quot;c&amp;quot;", 'R&D, AT&T; a & b "c"'),
        ("It is so.[1] And so [2, 3].[^4] Yes【4:0†source】.", "It is so. And so. Yes."),
        ("[0]Hello [1]there", "Hello there"),
        ("Press [1] or [2].", "Press 1 or 2."),
        ("Press [Enter] or arr[x]", "Press [Enter] or arr[x]"),
        ("Fine.<|im_end|>\n<|im_start|>assistant\nMore.<|eot_id|>", "Fine.\n\nMore."),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nHi.</s>", "\n\nHi."),
        ("[INST] Hi [/INST] <<SYS>>x<</SYS>>", "  Hi   x"),
        ("<start_of_turn>model\nyes<end_of_turn>", "\nyes "),
        ("<｜end▁of▁sentence｜>Hi<|endoftext", "Hi"),
        ("a\x00b\u200bc\ufeff\u202ed<\u200b|im_end|>", "abcd"),
    ],
)  # fmt: skip
def test_links_tags_entities_citations_and_leftovers(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("It is so [1].", "It is so."),
        ("It is so [1]", "It is so"),
        ("So [1] [2], and [3] more\u00a0[4][5]!", "So, and more!"),
        ("So 【4:0†source】.", "So."),
        ("(see [7]) as shown.[3] Yes[4][5]. Both [12, 13].", "(see) as shown. Yes. Both."),
        ("**So** [1]. And [^2]: no", "So. And: no"),
        ("It is so. [1] Next.", "It is so.  Next."),
        ("the word [1]there", "the word there"),
        ("Choose [x] or [this] .", "Choose [x] or [this] ."),
        ("So![1] Really?![2]", "So! Really?!"),
        ("Of the number of people[1] some", "Of the number of people some"),
    ],
)  # fmt: skip
def test_a_citation_goes_with_the_blank_before_it(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "array[1] is the second",
        "Array[1] is the second",
        "Add list[2] to list[3].",
        "x[0] and x[1, 2]",
        "rows[0][1]",
        "m[i][1]",
        "args[2], sys.argv[1]",
        "my_list[3] or myList[4]",
        "call foo()[1]",
        "words[1] = 4",
        "words[1] += 4",
        "the second element, words[1]",
    ],
)
def test_an_index_of_code_stays(text):
    assert clean(text) == text
    assert clean("`array[1]` is it") == "array[1] is it"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a word[1] next", "a word next"),
        ("a list[2] of", "a list of"),
        ("the shopping list[2].", "the shopping list."),
        ("iPhone[1], macOS[2], YouTube[3]", "iPhone, macOS, YouTube"),
        ("vitamin C[1] in 1999[2] (CO2)[3]", "vitamin C in 1999 (CO2)"),
        ("author(s)[1] and _word_[2]", "author(s) and word"),
        ("Elements differ.[1] Data[2] too", "Elements differ. Data too"),
        ("[0]Hello", "Hello"),
    ],
)
def test_a_number_behind_a_word_of_prose_is_a_citation(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Wrapped\nlines of\none sentence.", ["Wrapped\nlines of\none sentence."]),
        ("## Title\nText.", ["Title", "Text."]),
        ("Buy:\n- milk\n* bread\n+ [ ] eggs", ["Buy:", "milk", "bread", "eggs"]),
        ("1. one\n2. two\n3) three", ["1. one", "2. two", "3) three"]),
        ("It was in\n1999. Then it ended.", ["It was in\n1999.", "Then it ended."]),
        ("> quoted\n> lines\n\nAfter.", ["quoted\nlines", "After."]),
        ("Above\n\n---\n\nbelow\n***\nend", ["Above", "below", "end"]),
        ("| a | b |\n|---|:-:|\n| c | d |\nend", ["a   b", "c   d", "end"]),
        ("```python\nx = a*b\n```\nDone.", ["x = a*b", "Done."]),
        ("So.[^1]\n\n[^1]: The note.\n[2]: https://a.example/b.c", ["So.", "The note."]),
        ("-5 degrees\n#1 choice\n> 5 apples\n*67", ["-5 degrees\n#1 choice\n> 5 apples\n*67"]),
    ],
)  # fmt: skip
def test_lines_are_what_their_marks_say(text, sentences):
    stream = TextStream()
    assert [" ".join(s.strip(" \n").split(" ")) for s in stream.push(text) + stream.flush()] == [
        " ".join(one.split(" ")) for one in sentences
    ]


@pytest.mark.parametrize(
    "text",
    ["Sure. ", "It is 5 > 4. ", "AT&T rose. ", "**Sure.** ", "[Sure](a.b). "],
)  # fmt: skip
def test_nothing_is_held_back_once_it_can_be_told(text):
    stream = TextStream()
    assert len(stream.push(text)) == 1


@pytest.mark.parametrize("opening", ["[", "![", "<a ", "*", "`", "<!", "[a](", "&am", "<|im"])
def test_what_is_never_closed_is_held_a_bounded_way(opening):
    cleaner = Cleaner()
    given = cleaner.push(opening + "word, " * 600)
    assert len(given) > 1_000
    assert "word" in given


def test_a_pause_ends_a_sentence_that_began_with_a_delimiter():
    stream = TextStream()
    assert stream.push("*Sure.") == []
    assert stream.settle() == ["Sure."]
    assert stream.push(" More.* ") == [" More."]


PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["Sure.", " ", "  ", "\n", "\n\n", "\r\n", "\r", "Mr.", "No.", "3", ".", "...", "!",
             "?", '"', "(", ")", "*", "**", "_", "__", "~~", "~", "`", "```", "[", "]", "](", "![",
             "<",
             "</", ">", "<b>", '<a href="x. y">', "<br/>", "<!--", "-->", "<|im_end|>", "<|", "|>",
             "<|im_start|>assistant\n", "&amp;", "&", "lt;", ";", "[1]", " [1]", "x[0]",
             "list", "=", "【4:0†source】", "http://",
             "www.", "example", ".com", "a@b.c", "- ", "1. ", "2. ", "# ", "#", "|", "---", "===",
             "***", "\\", "word", " and ", "I", "x", "*67", "67", "press ", "<think>", "</think>",
             "[x] ", "[^1]: ", "[1]: http://x.y z", "=", "<https://a.b/c>", "日本", "。",
             "<y and z>", "[INST]", "(see x)", "(u)", "user", "> ", "~~~"]
        ),
        st.text(max_size=6),
    ),
    max_size=50,
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(pieces=PIECES, cut=st.integers(1, 9))
def test_the_pieces_that_text_comes_in_change_nothing(pieces, cut):
    text = "".join(pieces)
    whole = clean(text)
    for parts in (pieces, text, [text[at : at + cut] for at in range(0, len(text), cut)]):
        cleaner = Cleaner()
        assert "".join([*map(cleaner.push, parts), cleaner.flush()]) == whole
        stream = TextStream()
        sentences = [one for part in parts for one in stream.push(part)] + stream.flush()
        assert "".join(sentences) == whole.rstrip()


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["C", "S", "Z"]), max_size=80))
def test_words_numbers_and_stops_are_never_lost(text):
    """Except markup: brackets, delimiters, and a mark at the beginning of a line."""
    kept = [char for char in text if char.isalpha()]
    cleaned = clean("a " + text.translate(str.maketrans("", "", "[]【】*_`|&\\")))
    assert [char for char in cleaned if char.isalpha()][1:] == kept


@settings(deadline=None)
@given(pieces=PIECES)
@example(pieces=["```", "word"])
@example(pieces=["```\n", "word", "\n```word"])
def test_pauses_lose_no_word(pieces):
    stream, text = TextStream(), "".join(pieces)
    out = [one for piece in pieces for one in stream.push(piece) + stream.settle()]
    joined = "".join(out + stream.flush())
    assert joined.count("word") <= text.count("word")
    hides = any(mark in text for mark in ("<", "[", "(", "&"))
    # The words after a fence name the language of its code and are not spoken.
    fenced = "```" in text or "~~~" in text
    assert hides or joined.count("word") == (clean(text) if fenced else text).count("word")
