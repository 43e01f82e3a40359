"""A call over a real LiveKit server: from a recorded voice to replies in that voice."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from tests.support.bundled import tiny_follows
from tests.support.wording import errors, words

pytestmark = [pytest.mark.call, pytest.mark.timeout(700)]

NOTICED_S = 1.2
"""Longest time until a reply stops after a barge-in, on a busy machine."""
KEYS = {
    "caller_text",
    "reference_text",
    "reply_text",
    "reply_heard",
    "voice",
    "interrupted",
    "endpointing",
    "stt",
    "llm_ttft",
    "first_sentence",
    "tts_first_audio",
    "e2e",
    "reply_seconds",
}


def test_the_call_ends_with_success(call):
    assert call.code == 0


def test_every_turn_is_answered_by_sound_and_by_words(call):
    turns = call.report["turns"]
    assert len(turns) == 4
    for turn in turns:
        assert turn["e2e"] > 0
        assert turn["reply_seconds"] > 0.2
        assert turn["reply_text"]


def test_the_report_has_every_figure_of_every_turn(call):
    report = call.report
    assert report["model"] == "tiny"
    assert report["device"] == "cpu"
    assert {"python", "livekit-agents", "torch", "transformers"} <= set(report["versions"])
    for turn in report["turns"]:
        assert set(turn) >= KEYS
        assert not [name for name in KEYS if turn[name] is None]


def test_the_wait_for_each_reply_is_accounted_for_without_a_rest(call):
    for turn in call.report["turns"]:
        assert sum(turn["parts"].values()) == pytest.approx(turn["e2e"], abs=0.01)


def test_replies_are_whole_sentences_and_judged_by_what_is_heard_of_them(call):
    for turn in call.report["turns"]:
        assert (turn["reply_wer"] is None) == turn["interrupted"]
        if not turn["interrupted"]:
            assert turn["reply_text"].strip()[-1] in ".!?"


def test_the_caller_is_understood(call):
    said = [word for turn in call.report["turns"] for word in words(turn["reference_text"])]
    heard = [word for turn in call.report["turns"] for word in words(turn["caller_text"])]
    assert len(said) > 40
    assert errors(heard, said) <= 0.15 * len(said)


def test_who_said_yes_is_told_what_the_model_makes_of_their_voice(call):
    told = "The caller consented to cloning, but tiny does not clone."
    if follows := tiny_follows():
        told = (
            f"The caller consented to cloning; tiny follows the {follows} of their voice and does"
            " not clone it."
        )
        assert f"in the caller's {follows}" in call.output
    assert told in call.output
    assert "in the caller voice" not in call.output
    assert call.report["follows"] == tiny_follows()
    assert "the agent's voice is now: caller" not in call.output
    assert [turn["voice"] for turn in call.report["turns"]][-1] == "caller"


def test_the_greeting_is_spoken_before_the_caller_says_a_word(call):
    report = call.report
    assert report["greeting"][1] <= report["turns"][0]["said"][0]


def test_a_caller_who_breaks_in_silences_the_agent_before_having_finished(call):
    turns = call.report["turns"]
    interrupted, breaking_in = turns[1], turns[2]
    assert [turns[number]["interrupted"] for number in (0, 2, 3)] == [False] * 3
    spoken_on = interrupted["heard"][1] - breaking_in["said"][0]
    if not interrupted["interrupted"] and spoken_on < NOTICED_S:
        pytest.skip(f"the LLM's short reply was over {spoken_on:.2f} s after the caller began")
    assert interrupted["interrupted"]
    assert interrupted["silent_after"] is not None
    assert interrupted["heard"][1] < breaking_in["said"][1]


def test_the_recording_has_the_caller_left_and_the_agent_right(call):
    sound, rate = soundfile.read(call.out / "call.wav", always_2d=True)
    assert rate == 24_000
    assert sound.shape[1] == 2
    for turn in call.report["turns"]:
        for side, (begin, end) in enumerate((turn["said"], turn["heard"])):
            part = sound[int(begin * rate) : int(end * rate), side]
            assert np.sqrt(np.mean(part**2)) > 0.003


def test_the_picture_is_drawn(call):
    assert (call.out / "call.png").read_bytes().startswith(b"\x89PNG")


def test_the_log_holds_figures_but_not_a_word_of_the_caller(call):
    log = (call.out / "agent.log").read_text()
    assert log.count("turn {") == 4
    for turn in call.report["turns"]:
        assert turn["caller_text"] not in log
        assert turn["reply_text"] not in log


def test_the_agent_leaves_without_a_traceback(call):
    assert "Traceback" not in (call.out / "agent.log").read_text()
    assert "Traceback" not in call.output
