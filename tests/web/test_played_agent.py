"""The page's reaction to an agent's messages, valid or not, and to spoken consent."""

from __future__ import annotations

import pytest

from tests.web.played_agent import MARKUP

pytestmark = [pytest.mark.call, pytest.mark.timeout(600)]


def test_parts_that_follow_one_another_leave_the_rest_to_the_network(followed):
    assert followed.turns[0]["parts"] == {
        "Speech to text": 0.5,
        "End of turn": 0.1,
        "Language model": 0.8,
        "First sentence": 0.2,
        "First audio": 0.3,
        "Network, rest": 0.3,
    }


def test_what_the_llm_did_before_the_turns_end_counts_once(followed):
    parts = followed.turns[1]["parts"]
    assert parts["Language model"] == 0.3
    assert sum(parts.values()) == pytest.approx(1.4)


def test_parts_are_never_longer_than_the_wait(followed):
    turn = followed.turns[3]
    assert turn["head"].startswith("0.70 s")
    assert sum(turn["parts"].values()) == pytest.approx(0.7, abs=0.011)


def test_a_turn_without_figures_is_one_whole(followed):
    assert followed.turns[2]["parts"]["Network, rest"] == 1.0
    assert followed.turns[2]["slices"] == 1


def test_messages_that_are_no_turns_are_ignored(followed):
    assert [turn["turn"] for turn in followed.turns] == [1, 2, 3, 5]


def test_a_guess_is_marked_as_such_and_replaced_by_the_words(followed):
    assert (followed.interim["who"], followed.interim["busy"]) == ("You", "true")
    assert (followed.final["who"], followed.final["busy"]) == ("You", "false")


def test_words_never_become_part_of_the_page(followed):
    assert followed.final["text"] == MARKUP
    assert followed.images == 0


def test_each_voice_has_its_name(followed):
    assert followed.voices[-1] == "Voice “anna”"
    assert set(followed.voices[:-1]) == {"Standard voice", "Your voice"}


def test_a_model_that_does_not_clone_is_said_to_give_what_it_gives(followed):
    assert followed.heard_as == {
        "caller, pitch and size": "Your pitch and size (this model does not clone)",
        "anna, pitch and size": "The pitch and size of “anna” (this model does not clone)",
        "stock, pitch and size": "Standard voice",
        "caller, nothing": "Standard voice (this model does not clone)",
        "anna, nothing": "Voice “anna”",
        "stock, nothing": "Standard voice",
    }
    assert followed.heard_in_turn.endswith(" · your pitch and size")


def test_the_switch_follows_what_is_said_aloud_and_every_press_reaches_the_agent(followed):
    steps = list(zip(followed.switch, followed.attribute, strict=True))
    assert steps[:3] == [(False, None), (True, "granted"), (True, "granted")]
    assert steps[3] == (False, "refused")  # withdrawn by voice
    assert steps[4:8] == [(True, "granted"), (False, "refused"), (True, "refused"), (False, None)]
