"""`make web` and its page in a real browser: one call, with recorded speech as the microphone.

The network is lost by stopping the LiveKit server (SIGSTOP) for 5 s: signalling and audio of both
sides pass through it, and no connection is closed, as when a cable is pulled.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tests.support.bundled import tiny_follows
from tests.support.recordings import READER, words_of
from tests.support.wording import errors, words
from tests.web.calling import LONG

pytestmark = [pytest.mark.call, pytest.mark.timeout(900)]

PARTS = {
    "Speech to text",
    "End of turn",
    "Language model",
    "First sentence",
    "First audio",
    "Network, rest",
}


@pytest.fixture
def seen(web_call):
    print(*web_call.seen.missed, sep="\n")
    return web_call.seen


def test_every_step_of_the_call_came_to_its_end(seen):
    assert seen.missed == []


def test_nobody_is_taken_to_consent(seen):
    assert seen.consent_at_first is False
    assert seen.voices[0] == "Standard voice"


def test_the_greeting_and_the_reply_are_audible_in_the_page(seen):
    assert seen.greeting_ms > 300
    assert seen.reply_ms > 500


def test_consent_gives_the_agent_the_callers_voice_and_taking_it_back_the_standard_one(seen):
    follows = tiny_follows()
    heard = "Standard voice" if follows is None else f"Your {follows}"
    told = f"{heard} (this model does not clone)"
    assert seen.voices == ["Standard voice", told, "Standard voice"]


def test_both_sides_words_are_shown_and_become_final(seen):
    assert [line["who"] for line in seen.said[:3]] == ["Agent", "You", "Agent"]
    assert seen.said[0]["busy"] == "false"
    heard, said = words(seen.said[1]["text"]), words(words_of(READER[LONG]))
    assert errors(heard, said) <= 0.2 * len(said)


def test_each_turn_shows_where_its_time_went(seen):
    assert seen.turns
    for turn in seen.turns:
        total = float(turn["head"].split(" s ")[0])
        assert set(turn["parts"]) == PARTS
        assert sum(turn["parts"].values()) == pytest.approx(total, abs=0.05)
        assert 1 <= turn["slices"] <= len(PARTS)
    assert len({turn["turn"] for turn in seen.turns}) == len(seen.turns)


def test_a_reply_that_the_caller_breaks_into_is_marked(seen):
    assert seen.broke_in_into["interrupted"]
    assert "interrupted" in seen.broke_in_into["head"]


def test_five_seconds_without_a_network_are_told_and_the_call_goes_on(seen):
    told = {"Nothing arrives from the other side.", "The connection is lost. Reconnecting…"}
    assert told & set(seen.notices)
    assert seen.ms_after_network > 500


def test_muted_is_said_beside_the_callers_waveform(seen):
    assert seen.muted_words == "Muted"


def test_hanging_up_leads_back_to_the_start(seen):
    assert seen.state_after == "Not in a call"
    assert seen.focus_after == "start"


def test_everybody_can_read_and_reach_everything(seen):
    for found in (seen.faults_before, seen.faults_in_call):
        assert len(found) == 4
        assert {where: what for where, what in found.items() if what} == {}


def test_the_keyboard_reaches_every_control_in_order_and_shows_where_it_is(seen):
    assert seen.tab_stops == ["start", "microphone", "consent"]


def test_the_page_speaks_to_nobody_but_us_and_livekit(web_call):
    others = web_call.seen.hosts - {urlsplit(web_call.url).netloc}
    assert len(others) == 1
    assert others.pop().startswith("127.0.0.1:")


def test_the_console_stays_clean(seen):
    assert [line for line in seen.console if line.startswith("error")] == []


def test_ctrl_c_ends_everything(web_call):
    assert web_call.exit_code == 130
    assert web_call.left == set()


def test_the_log_holds_no_word_of_the_call(web_call):
    assert "Traceback" not in web_call.agent_log
    for line in web_call.seen.said:
        assert line["text"] not in web_call.agent_log
