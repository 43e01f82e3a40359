"""What a caller's words mean for their voice; in doubt never a yes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csm_tts_plugin.consent import QUESTION
from csm_tts_plugin.phrases import Answer, answer_of, wants_stop, wishes_voice

YES = [
    "Yes.",
    "Yes, please.",
    "yeah sure",
    "Um, okay.",
    "Oh, of course!",
    "Well, why not.",
    "No problem.",
    "I don't mind at all.",
    "That's fine.",
    "It is all right.",
    "Sure, go ahead.",
    "You can use my voice.",
    "Yes, that would be lovely.",
    "I'd love that.",
]
NO = [
    "No.",
    "No, thank you.",
    "Nope",
    "I would rather not.",
    "Please don't.",
    "Please do not do that.",
    "Not really.",
    "I do mind, actually.",
    "Don't use my voice.",
    "Not now, maybe later.",
    "I do not know.",
    "I don\u2019t want that.",
]
UNCLEAR = [
    "",
    "...",
    "What?",
    "Yes?",
    "Okay, but what do you do with it?",
    "Yes and no.",
    "Ja, gerne.",
    "Oui, bien s\u00fbr.",
    "\u306f\u3044",
    "You may ask me something else.",
    "Thank you.",
    "He might even have been made amiable himself.",
    "Yes I was going to ask you about the weather in the mountains tomorrow morning",
    QUESTION,
]
STOP = [
    "Stop using my voice.",
    "Please stop using my own voice!",
    "Could you stop speaking in my voice?",
    "Don't use my voice any more.",
    "Do not speak with my voice.",
    "I no longer want you to use my voice.",
    "Delete my voice.",
    "Stop imitating me.",
    "Stop talking like me.",
    "Please start using my voice.",
    "Use your own voice again.",
    "Go back to your normal voice, please.",
]
WISH = [
    "Use my voice.",
    "You can use my voice again.",
    "Please speak in my own voice.",
    "Okay, go ahead and use my voice now.",
    "I have changed my mind. You may answer me in my voice.",
]
NEITHER = [
    "Why do you use my voice?",
    "Would you use my voice?",
    "My voice is tired.",
    "They use my voice in the choir every day.",
    "I stopped the car.",
    "If you use my voice, I will hang up.",
    "Had he married a more amiable woman, he might have been made still more respectable.",
]


@pytest.mark.parametrize("text", YES)
def test_a_plain_yes_is_one(text):
    assert answer_of(text) is Answer.YES


@pytest.mark.parametrize("text", NO)
def test_a_no_is_one(text):
    assert answer_of(text) is Answer.NO


@pytest.mark.parametrize("text", UNCLEAR)
def test_anything_else_is_neither(text):
    assert answer_of(text) is Answer.UNCLEAR


@pytest.mark.parametrize("text", STOP)
def test_a_stop_is_heard_and_is_never_a_yes(text):
    assert wants_stop(text)
    assert not wishes_voice(text)
    assert answer_of(text) is not Answer.YES


@pytest.mark.parametrize("text", WISH)
def test_a_wish_is_heard(text):
    assert wishes_voice(text)
    assert not wants_stop(text)


@pytest.mark.parametrize("text", [*NEITHER, *YES[:9], *NO[:8], *UNCLEAR])
def test_other_talk_is_neither_a_stop_nor_a_wish(text):
    assert not wants_stop(text)
    assert not wishes_voice(text)


@given(st.lists(st.sampled_from(["yes", "no", "not", "my voice", "use", "stop", "please", "?"])))
def test_a_text_with_a_no_in_it_is_never_a_yes(words):
    text = " ".join(words)
    if "no" in words or "not" in words or "stop" in words or "?" in words:
        assert answer_of(text) is not Answer.YES


@given(st.text(max_size=400))
def test_any_text_has_one_meaning(text):
    assert not (wants_stop(text) and (wishes_voice(text) or answer_of(text) is Answer.YES))
