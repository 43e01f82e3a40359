"""Consent: asked once, given only by the caller, withdrawn at any time."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_tts_plugin.caller.consent import Path, State, VoiceConsent
from csm_tts_plugin.caller.policy import ConsentPolicy
from csm_tts_plugin.errors import ConfigError

QUESTION = ConsentPolicy().question_for(telephone=False)
PHONE_QUESTION = ConsentPolicy().question_for(telephone=True)
REPLY = f"That is a nice story. {QUESTION}"


def asked() -> VoiceConsent:
    consent = VoiceConsent(clock=lambda: "2026-01-01T00:00:00+00:00")
    consent.saying(REPLY)
    consent.said(REPLY)
    assert consent.state is State.ASKED
    return consent


def granted() -> VoiceConsent:
    consent = asked()
    consent.heard("Yes, please.")
    assert consent.granted
    return consent


def test_the_question_counts_once_it_has_been_heard():
    consent = VoiceConsent()
    assert consent.wants_asking
    consent.saying("That is a nice")
    assert consent.wants_asking
    consent.saying(REPLY)
    assert not consent.wants_asking
    consent.said("That is a nice")  # interrupted before the question
    assert consent.wants_asking
    consent.saying(REPLY)
    consent.said(REPLY[: REPLY.index(", made from")])
    assert consent.state is State.ASKED


@pytest.mark.parametrize("text", ["No, it was raining.", "It was raining.", "Yes, all day."])
def test_what_was_said_before_the_question_answers_nothing_however_late_its_words_come(text):
    consent = VoiceConsent(now=lambda: 100.0)
    consent.saying(REPLY)
    consent.said(REPLY)
    consent.heard(text, ended=99.0)
    consent.said("Sorry, I did not hear that.")
    assert consent.state is State.ASKED
    assert not consent.understood()
    consent.heard("Yes, please.", ended=101.0)
    assert consent.granted


@pytest.mark.parametrize(
    ("answer", "path"),
    [
        (lambda consent: consent.heard("Yes, please."), Path.SPOKEN),
        (lambda consent: consent.key("1"), Path.KEY),
        (lambda consent: consent.attribute("granted"), Path.ATTRIBUTE),
        (lambda consent: consent.heard("Please use my voice."), Path.WISH),
        (lambda consent: (consent.heard("If it makes you happy."), consent.understood()), "under"),
    ],
)
def test_every_path_grants_and_is_on_record(answer, path):
    consent = asked()
    answer(consent)
    assert consent.granted
    assert consent.grant.date == "2026-01-01T00:00:00+00:00"
    path = Path.UNDERSTOOD if path == "under" else path
    assert consent.grant.path is path
    assert (QUESTION in consent.grant.statement) is (path not in (Path.ATTRIBUTE, Path.WISH))


def test_statements_differ_by_path_and_are_short_enough_for_a_record():
    statements = {path.statement(PHONE_QUESTION) for path in Path}
    assert len(statements) == len(Path)
    assert all(0 < len(statement) < 500 for statement in statements)


def test_a_telephone_is_told_of_the_key_and_the_record_has_its_question():
    consent = VoiceConsent(telephone=True)
    consent.saying(REPLY)
    assert consent.wants_asking
    consent.saying(f"Fine. {PHONE_QUESTION}")
    consent.said(f"Fine. {PHONE_QUESTION}")
    consent.key("1")
    assert PHONE_QUESTION in consent.grant.statement


@pytest.mark.parametrize(
    "answer",
    [
        lambda consent: consent.heard("No, thank you."),
        lambda consent: consent.key("2"),
        lambda consent: consent.key("#"),
        lambda consent: consent.attribute("refused"),
        lambda consent: consent.stop(),
        lambda consent: (consent.heard("What a day."), consent.said("Indeed.")),
    ],
)
def test_a_no_or_no_answer_is_final_and_nobody_asks_again(answer):
    consent = asked()
    answer(consent)
    assert consent.state is State.REFUSED
    consent.saying(REPLY)
    consent.said(REPLY)
    consent.heard("Yes.")
    consent.key("1")
    consent.understood()
    assert consent.state is State.REFUSED


def test_the_reply_that_follows_the_question_s_turn_ends_the_wait_and_no_other_does():
    consent = asked()
    consent.said("Sorry, I did not hear that.")  # nothing was heard from the caller
    consent.heard("")
    consent.said("Hello?")
    assert consent.state is State.ASKED
    consent.heard("Hm.")
    consent.heard("Yes.")  # the same turn goes on
    assert consent.granted


@pytest.mark.parametrize(
    "stop",
    [
        lambda consent: consent.heard("Stop using my voice."),
        lambda consent: consent.key("0"),
        lambda consent: consent.attribute("refused"),
        lambda consent: consent.stop(),
    ],
)
def test_consent_is_taken_back_by_every_path(stop):
    consent = granted()
    stop(consent)
    assert consent.state is State.WITHDRAWN
    assert consent.grant is None
    assert not consent.wants_asking


@pytest.mark.parametrize(
    ("apart_s", "first", "then", "ends"),
    [
        (2.0, "Please stop using", "my voice.", True),
        (20.0, "Please stop using", "my voice.", False),
        (2.0, "It did not stop.", "Use my voice.", False),
    ],
)
def test_a_stop_may_come_in_two_pieces_and_a_wish_after_a_no_is_none(apart_s, first, then, ends):
    consent = granted()
    consent.heard(first, 100.0)
    consent.heard(then, 100.0 + apart_s)
    assert consent.granted is not ends


def test_after_a_withdrawal_only_the_caller_s_own_wish_grants_again():
    consent = granted()
    consent.heard("Stop using my voice.")
    for _ in range(2):
        consent.heard("Yes, yes.")
        consent.key("1")
        assert not consent.understood()
        consent.said("All right.")
    assert consent.state is State.WITHDRAWN
    consent.heard("You can use my voice again.")
    assert consent.granted
    consent.heard("Stop using my voice.")
    consent.attribute("granted")
    assert consent.granted


def test_an_attribute_says_something_when_it_changes_only():
    consent = VoiceConsent()
    consent.attribute(None)
    consent.attribute("")
    assert consent.wants_asking
    consent.attribute("granted")
    consent.heard("Stop using my voice.")
    consent.attribute("granted")
    assert consent.state is State.WITHDRAWN
    consent.attribute("")
    consent.attribute("granted")
    assert consent.granted
    consent.attribute("")
    assert consent.state is State.WITHDRAWN


def test_an_llm_cannot_grant_by_itself():
    consent = VoiceConsent()
    assert not consent.understood()
    consent.heard("I am just telling a story.")
    assert not consent.understood()
    consent.saying(REPLY)
    assert not consent.understood()
    consent.said(REPLY)
    assert not consent.understood()
    consent.heard("No.")
    assert not consent.understood()


def test_a_key_pressed_while_the_question_is_spoken_counts_when_it_was_heard():
    for heard, state in ((REPLY, State.GRANTED), ("That", State.UNASKED)):
        consent = VoiceConsent()
        consent.key("1")
        consent.saying(REPLY)
        consent.key("1")
        assert not consent.granted
        consent.said(heard)
        assert consent.state is state


def test_the_log_tells_the_path_and_not_a_word(caplog):
    caplog.set_level(logging.DEBUG)
    granted().heard("Stop using my voice, canary.")
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "consent: asking",
        "consent: asked",
        "consent: granted (spoken)",
        "consent: withdrawn (spoken)",
    ]


EVENTS = {
    "ask": lambda c: c.saying(REPLY),
    "reply": lambda c: c.saying("Fine."),
    "heard it": lambda c: c.said(REPLY),
    "heard some": lambda c: c.said("That is"),
    "yes": lambda c: c.heard("Yes."),
    "no": lambda c: c.heard("No."),
    "talk": lambda c: c.heard("It rains."),
    "stop": lambda c: c.heard("Stop using my voice."),
    "wish": lambda c: c.heard("Use my voice."),
    "tool": lambda c: c.understood(),
    "stop tool": lambda c: c.stop(),
    "1": lambda c: c.key("1"),
    "0": lambda c: c.key("0"),
    "attribute": lambda c: c.attribute("granted"),
    "no attribute": lambda c: c.attribute("denied"),
}
GRANTING = {"yes", "wish", "tool", "1", "attribute", "heard it"}
DECLINING = {"stop", "stop tool", "no attribute"}


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=30))
def test_whatever_happens_only_the_caller_grants_and_nobody_is_asked_twice(events):
    consent, heard_question, spoke_since = VoiceConsent(), 0, False
    for event in events:
        before = consent.state
        EVENTS[event](consent)
        after = consent.state
        assert (consent.grant is not None) is (after is State.GRANTED)
        if after is State.GRANTED and before is not State.GRANTED:
            assert event in GRANTING
            if event in {"yes", "1", "tool"}:
                assert before is State.ASKED
            if event == "tool":
                assert spoke_since
            if event == "heard it":  # a key was pressed while the question was spoken
                assert before is State.ASKING
        if event in DECLINING and event != "no attribute":
            assert after in (State.REFUSED, State.WITHDRAWN)
        if after is State.ASKED and before is not State.ASKED:
            heard_question, spoke_since = heard_question + 1, False
        spoke_since = spoke_since or event in {"yes", "no", "talk", "stop", "wish"}
        if before not in (State.UNASKED, State.ASKING, State.ASKED):
            assert not consent.wants_asking
    assert heard_question <= 1


def asked_by(policy: ConsentPolicy, heard: str | None = None) -> VoiceConsent:
    """Consent after its question, of which the caller heard everything or only `heard`."""
    consent = VoiceConsent(policy)
    reply = f"I see. {consent.question}"
    consent.saying(reply)
    consent.said(reply if heard is None else heard)
    return consent


def test_a_policy_has_words_of_its_own():
    policy = ConsentPolicy(question="May I sound like you?")
    consent = asked_by(policy)
    assert consent.state is State.ASKED
    consent.heard("Yes.")
    assert "May I sound like you?" in consent.grant.statement
    assert policy.question_for(telephone=True).startswith("May I sound like you? You can also")


def test_a_question_of_ones_own_counts_when_it_was_heard_whole():
    policy = ConsentPolicy(question="May I sound like you?")
    assert asked_by(policy, "I see. May I sound").state is State.UNASKED
    assert asked_by(policy, "I see. May I sound like you").state is State.ASKED
    usual = ConsentPolicy()
    assert asked_by(usual, "I see. By the way, I can go on in your own voice").state is State.ASKED


def test_without_asking_a_caller_may_still_wish_it_and_stop_it():
    consent = VoiceConsent(ConsentPolicy(ask=False))
    assert not consent.wants_asking
    consent.heard("Yes.")
    assert consent.state is State.UNASKED
    consent.heard("Please use my voice.")
    assert consent.granted
    consent.heard("Stop using my voice.")
    assert consent.state is State.WITHDRAWN


def test_german_callers_are_asked_and_understood_in_german():
    consent = asked_by(ConsentPolicy(languages=("de",)))
    assert consent.question.startswith("Übrigens")
    consent.heard("Ja, gerne.")
    assert consent.granted
    consent.heard("Benutzen Sie meine Stimme nicht mehr.")
    assert consent.state is State.WITHDRAWN


def test_a_handoff_while_the_question_is_spoken_does_not_change_what_was_asked():
    consent = VoiceConsent(ConsentPolicy(question="May I sound like you?"))
    consent.saying(f"Fine. {consent.question}")
    consent.policy = ConsentPolicy(languages=("de", "en"))
    consent.said("Fine. May I sound like you?")
    consent.heard("Yes.")
    assert "May I sound like you?" in consent.grant.statement


def test_a_policy_that_cannot_be_followed_is_refused():
    with pytest.raises(ConfigError, match="No phrases for the language 'xx'"):
        ConsentPolicy(languages=("xx",))
    with pytest.raises(ConfigError, match=r'must be a tuple such as \("en",\)'):
        ConsentPolicy(languages="en")
    with pytest.raises(ConfigError, match="use ask=False"):
        ConsentPolicy(question=" ")
