"""The meaning of a caller's words for consent; an unclear answer is never a yes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csm_tts_plugin.caller.phrases import FOLDER, Answer, load_phrases
from csm_tts_plugin.errors import ConfigError

ENGLISH = load_phrases()

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
    ENGLISH.question,
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
    assert ENGLISH.answer_of(text) is Answer.YES


@pytest.mark.parametrize("text", NO)
def test_a_no_is_one(text):
    assert ENGLISH.answer_of(text) is Answer.NO


@pytest.mark.parametrize("text", UNCLEAR)
def test_anything_else_is_neither(text):
    assert ENGLISH.answer_of(text) is Answer.UNCLEAR


@pytest.mark.parametrize("text", STOP)
def test_a_stop_is_heard_and_is_never_a_yes(text):
    assert ENGLISH.wants_stop(text)
    assert not ENGLISH.wishes_voice(text)
    assert ENGLISH.answer_of(text) is not Answer.YES


@pytest.mark.parametrize("text", WISH)
def test_a_wish_is_heard(text):
    assert ENGLISH.wishes_voice(text)
    assert not ENGLISH.wants_stop(text)


@pytest.mark.parametrize("text", [*NEITHER, *YES[:9], *NO[:8], *UNCLEAR])
def test_other_talk_is_neither_a_stop_nor_a_wish(text):
    assert not ENGLISH.wants_stop(text)
    assert not ENGLISH.wishes_voice(text)


@given(st.lists(st.sampled_from(["yes", "no", "not", "my voice", "use", "stop", "please", "?"])))
def test_a_text_with_a_no_in_it_is_never_a_yes(words):
    text = " ".join(words)
    if "no" in words or "not" in words or "stop" in words or "?" in words:
        assert ENGLISH.answer_of(text) is not Answer.YES


@given(st.text(max_size=400))
def test_any_text_has_one_meaning(text):
    assert not (
        ENGLISH.wants_stop(text)
        and (ENGLISH.wishes_voice(text) or ENGLISH.answer_of(text) is Answer.YES)
    )


GERMAN = load_phrases(("de",))
BOTH = load_phrases(("de", "en"))


GERMAN_ANSWERS = {
    Answer.YES: [
        "Ja.",
        "Ja, gerne!",
        "Na klar.",
        "Äh, ja, natürlich.",
        "Von mir aus.",
        "Das ist mir recht.",
        "Ich habe nichts dagegen.",
        "Kein Problem.",
        "Warum nicht.",
        "Das stört mich nicht.",
        "Ich bin einverstanden.",
        "Sie dürfen das gerne.",
    ],
    Answer.NO: [
        "Nein.",
        "Nein, danke.",
        "Lieber nicht.",
        "Auf keinen Fall.",
        "Das möchte ich nicht.",
    ],
    Answer.UNCLEAR: [
        "Ja, aber was bedeutet das?",
        "Vielleicht.",
        "Wie bitte?",
        "Ja, wenn es nichts kostet.",
        "Hm.",
    ],
}


@pytest.mark.parametrize(
    ("text", "answer"),
    [(text, answer) for answer, texts in GERMAN_ANSWERS.items() for text in texts],
)
def test_german_callers_can_agree_refuse_or_leave_it_open(text, answer):
    assert GERMAN.answer_of(text) is answer
    assert BOTH.answer_of(text) is answer
    assert ENGLISH.answer_of(text) is not Answer.YES


@pytest.mark.parametrize(
    "text",
    [
        "Benutzen Sie meine Stimme nicht mehr.",
        "Hören Sie auf, mit meiner Stimme zu sprechen.",
        "Bitte lösch meine Stimme!",
        "Ich will nicht, dass du meine Stimme benutzt.",
        "Meine Stimme sollst du wieder vergessen.",
        "Du sollst mich nicht nachahmen.",
        "Sprich wieder mit deiner eigenen Stimme.",
    ],
)
def test_german_callers_can_stop_it(text):
    for phrases in (GERMAN, BOTH):
        assert phrases.wants_stop(text)
        assert not phrases.wishes_voice(text)
        assert phrases.answer_of(text) is not Answer.YES


@pytest.mark.parametrize(
    "text",
    [
        "Bitte benutzen Sie meine Stimme.",
        "Du kannst meine Stimme benutzen.",
        "Okay. Sprich bitte mit meiner Stimme weiter.",
        "Ja, nimm ruhig meine eigene Stimme.",
    ],
)
def test_german_callers_can_wish_it(text):
    for phrases in (GERMAN, BOTH):
        assert phrases.wishes_voice(text)
        assert not phrases.wants_stop(text)


@pytest.mark.parametrize(
    "text",
    [
        GERMAN.question,
        "Meine Stimme ist heute etwas heiser.",
        "Benutzen Sie meine Stimme?",
        "Was wäre, wenn Sie meine Stimme benutzen?",
    ],
)
def test_other_german_talk_is_neither_a_stop_nor_a_wish(text):
    assert not GERMAN.wants_stop(text)
    assert not GERMAN.wishes_voice(text)


@given(st.text(max_size=400))
def test_any_text_has_one_meaning_in_two_languages_too(text):
    assert not (
        BOTH.wants_stop(text) and (BOTH.wishes_voice(text) or BOTH.answer_of(text) is Answer.YES)
    )


def test_an_operator_adds_a_language_by_a_file(tmp_path):
    text = (FOLDER / "en.toml").read_text().replace('"yes", "yeah"', '"aye", "yes"')
    (tmp_path / "scots.toml").write_text(text)
    scots = load_phrases((str(tmp_path / "scots.toml"),))
    assert scots.answer_of("Aye, sure.") is Answer.YES
    assert ENGLISH.answer_of("Aye, sure.") is not Answer.YES


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("stop = [", "halt = ["), "stop must be a list of phrases"),
        (('question = "', 'query = "'), "question must be a text"),
        (("<voice>", "<vox>"), r"stop uses <vox>, which \[words\] lacks"),
        (('"um+"', '"(um"'), r"filler has the phrase '\(um'"),
        (('"um+"', "3"), "filler must hold texts only"),
        (("question =", "question"), "cannot be read as TOML"),
        (('voice = "', "voice = ["), "cannot be read as TOML"),
        (('"do not" = "don\'t"', '"do not" = 3'), r"\[same\] must hold texts"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_what_is_wrong(tmp_path, change, complaint):
    text = (FOLDER / "en.toml").read_text()
    assert change[0] in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(*change))
    with pytest.raises(ConfigError, match=complaint) as raised:
        load_phrases((str(file),))
    assert str(file) in str(raised.value)


def test_a_language_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(ConfigError, match="'fr'; take one of de, en, or"):
        load_phrases(("fr",))
    with pytest.raises(ConfigError, match="at least one language"):
        load_phrases(())
