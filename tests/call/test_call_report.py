"""Recording and events of a call become the figures of each turn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from scripts import call_heard, call_picture, call_report, call_turns, caller, pins
from scripts.setup_tools import TOOLS

RATE = 24_000
FIGURES = {"endpointing": 0.5, "stt": 0.4, "llm_ttft": 0.2, "tts_first_audio": 0.1, "e2e": 0.9}
FIGURES |= {"first_sentence": 0.06, "playout": 0.01}


def tone(side: np.ndarray, begin: float, end: float) -> None:
    time = np.arange(int((end - begin) * RATE)) / RATE
    side[int(begin * RATE) : int(begin * RATE) + len(time)] = 0.2 * np.sin(2 * np.pi * 300 * time)


def figures(turn: int, spoke: float, **more: object) -> dict:
    fixed = {"voice": "caller", "interrupted": False}
    return {"event": "figures", "at": 99.0, "turn": turn, "spoke_at": 1000.0 + spoke} | (
        FIGURES | fixed | more
    )


@pytest.fixture
def two_turns(tmp_path):
    """The caller speaks at 2-4 s and 7-9 s; replies begin at 5 s (interrupted) and at 10 s."""
    sound = np.zeros((14 * RATE, 2), np.float32)
    tone(sound[:, 0], 2.0, 4.0)
    tone(sound[:, 1], 5.0, 7.6)
    tone(sound[:, 0], 7.0, 9.0)
    tone(sound[:, 1], 10.0, 12.0)
    soundfile.write(tmp_path / "call.wav", sound, RATE)
    (tmp_path / "one.txt").write_text("what was said\n")
    events = [
        {"event": "joined", "at": 0.0, "epoch": 1000.0},
        {"event": "said", "turn": 1, "start": 2.0, "end": 4.2, "file": str(tmp_path / "one.wav")},
        {"event": "caller_text", "at": 4.5, "text": "What was said."},
        {"event": "answered", "turn": 1, "at": 5.0},
        {"event": "reply_text", "at": 5.0, "text": "I see, and"},
        {"event": "interrupts", "turn": 1, "at": 7.0},
        {"event": "said", "turn": 2, "start": 7.0, "end": 9.0, "file": str(tmp_path / "two.wav")},
        {"event": "caller_text", "at": 9.4, "text": "Wait."},
        figures(1, 2.1, interrupted=True, voice="stock"),
        {"event": "reply_text", "at": 10.0, "text": "Yes?"},
        figures(2, 7.1),
        {"event": "agent", "model": "tiny", "device": "cpu"},
    ]
    return events, tmp_path


def test_the_answer_is_timed_from_the_last_voiced_sample_to_the_first_heard(two_turns):
    events, folder = two_turns
    first, second = call_report.build(events, folder / "call.wav").turns
    assert first.e2e == pytest.approx(1.0, abs=0.03)
    assert second.e2e == pytest.approx(1.0, abs=0.03)
    assert second.reply_seconds == pytest.approx(2.0, abs=0.05)


def test_a_reply_that_is_broken_into_ends_when_the_agent_falls_silent(two_turns):
    events, folder = two_turns
    first, second = call_report.build(events, folder / "call.wav").turns
    assert first.silent_after == pytest.approx(0.6, abs=0.05)
    assert second.silent_after is None


def test_the_agents_figures_go_to_the_turn_that_they_are_of(two_turns):
    events, folder = two_turns
    first, second = call_report.build(events, folder / "call.wav").turns
    assert (first.voice, first.interrupted) == ("stock", True)
    assert (second.voice, second.interrupted) == ("caller", False)
    assert first.stt == second.stt == 0.4


@pytest.mark.parametrize("spoke", [4.8, None], ids=["noticed late", "not noticed"])
def test_figures_of_an_agent_that_noticed_speech_late_go_to_the_same_turn(two_turns, spoke):
    events, folder = two_turns
    late = {"spoke_at": None if spoke is None else 1000.0 + spoke}
    events = [event | late if event.get("interrupted") else event for event in events]
    first, second = call_report.build(events, folder / "call.wav").turns
    assert (first.interrupted, first.voice) == (True, "stock")
    assert (second.interrupted, second.voice) == (False, "caller")


def test_the_parts_of_the_wait_follow_one_another_and_add_up_to_it(two_turns):
    """The agent heard the caller's end 0.05 s late; the caller heard the agent 0.03 s late."""
    events, folder = two_turns
    for event in events:
        if event["event"] == "figures":
            event |= {"silent_at": 1000.0 + event["turn"] * 5 - 0.95, "sounds_at": 1000.0 + 4.97}
    events[8]["sounds_at"] = 1000.0 + 4.97
    first, _ = call_report.build(events, folder / "call.wav").turns
    assert list(first.parts) == list(call_turns.PARTS)
    assert sum(first.parts.values()) == pytest.approx(first.e2e, abs=0.002)
    assert first.parts["way_back"] == pytest.approx(0.03, abs=0.02)
    assert first.parts["first_sentence"] == pytest.approx(0.06, abs=0.001)
    assert first.parts["llm"] == pytest.approx(0.2, abs=0.001)
    # 0.5 s from the end known to the agent, 0.05 s before it, and the unexplained rest
    assert first.parts["turn_end"] == pytest.approx(1.0 - 0.4, abs=0.03)


def test_what_ran_beside_the_end_of_the_turn_is_counted_once():
    turn = call_turns.Turn(endpointing=0.6, llm_ttft=0.9, tts_first_audio=0.1, e2e=1.0)
    parts = call_turns.parts_of(turn, before=0.0, after=0.1)
    assert parts["llm"] == pytest.approx(0.2)
    assert parts["turn_end"] == pytest.approx(0.6)
    assert sum(parts.values()) == pytest.approx(1.0)


def test_words_go_to_the_turn_in_which_they_were_said(two_turns):
    events, folder = two_turns
    first, second = call_report.build(events, folder / "call.wav").turns
    assert (first.caller_text, first.reference_text) == ("What was said.", "what was said")
    assert (first.reply_text, second.reply_text) == ("I see, and", "Yes?")
    assert second.reference_text == ""


def test_the_report_is_written_as_json_and_drawn(two_turns):
    events, folder = two_turns
    report = call_report.build(events, folder / "call.wav")
    call_report.write(report, folder)
    written = json.loads((folder / "call.json").read_text())
    assert (written["model"], written["device"]) == ("tiny", "cpu")
    assert [turn["voice"] for turn in written["turns"]] == ["stock", "caller"]
    assert (folder / "call.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_does_not_clone_is_not_said_to_speak_in_the_callers_voice(two_turns):
    events, folder = two_turns
    told = [
        {**event, "clones": "false"} if event["event"] == "agent" else event for event in events
    ]
    report = call_report.build(told, folder / "call.wav")
    assert [report.voice_of(turn) for turn in report.turns] == ["stock", "stock"]
    told_of = call_report.timeline(report)
    assert "in the caller voice" not in told_of
    assert "tiny does not clone" in told_of
    assert "in the caller voice" in call_report.timeline(
        call_report.build(events, folder / "call.wav")
    )


def test_a_model_that_follows_a_voice_is_said_to_do_so_and_not_to_clone(two_turns):
    events, folder = two_turns
    facts = caller.facts_of(
        {"csm.model": "tiny", "csm.clones": "false", "csm.follows": "pitch and size"}
    )
    told = [event | facts if event["event"] == "agent" else event for event in events]
    report = call_report.build(told, folder / "call.wav")
    assert [report.voice_of(turn) for turn in report.turns] == ["stock", "caller"]
    first, second = [line for line in call_report.timeline(report).split("\n") if "replies" in line]
    assert ", in the stock voice, for" in first
    assert ", in the caller's pitch and size, for" in second
    assert (
        "The caller consented to cloning; tiny follows the pitch and size of their voice and does"
        " not clone it." in call_report.timeline(report)
    )
    assert "in the caller voice" not in call_report.timeline(report)
    call_report.write(report, folder)
    written = json.loads((folder / "call.json").read_text())
    assert (written["clones"], written["follows"]) == (False, "pitch and size")
    report.turns[1].voice = "anna"
    assert "in the pitch and size of the voice anna" in call_report.timeline(report)


@pytest.mark.parametrize(
    ("facts", "label"),
    [
        ({}, "agent, the caller's voice"),
        ({"clones": "false", "follows": ""}, None),
        ({"clones": "false", "follows": "pitch and size"}, "agent, the caller's pitch and size"),
    ],
)
def test_the_pictures_legend_claims_no_more_than_the_model_does(two_turns, facts, label):
    events, folder = two_turns
    told = [event | facts if event["event"] == "agent" else event for event in events]
    figure, axis = call_picture.plt.subplots()
    call_picture._legend(axis, call_report.build(told, folder / "call.wav"))
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    call_picture.plt.close(figure)
    assert labels[:2] == ["caller", "agent, stock voice"]
    assert labels[2:-1] == ([] if label is None else [label])


def test_a_reply_in_the_callers_pitch_is_drawn_in_the_colour_of_the_legend(two_turns):
    events, folder = two_turns
    facts = {"clones": "false", "follows": "pitch and size"}
    told = [event | facts if event["event"] == "agent" else event for event in events]
    report = call_report.build(told, folder / "call.wav")
    colours = [call_picture._voice_colour(report, turn) for turn in report.turns]
    assert colours == [call_picture.STOCK, call_picture.CLONED]


def test_a_call_that_worked_has_no_failure(two_turns):
    events, folder = two_turns
    report = call_report.build(events, folder / "call.wav")
    assert call_report.failure(events, report, 2) is None


def test_a_turn_without_a_reply_is_a_failure(two_turns):
    events, folder = two_turns
    sound, _ = soundfile.read(folder / "call.wav")
    sound[9 * RATE :, 1] = 0
    soundfile.write(folder / "call.wav", sound, RATE)
    report = call_report.build(events, folder / "call.wav")
    assert call_report.failure(events, report, 2) == "Turn 2 got no reply"
    assert "NO REPLY" in call_report.timeline(report)


def test_a_call_that_broke_off_says_why(two_turns):
    events, folder = two_turns
    events.append({"event": "failed", "reason": "no agent joined within 45 s"})
    report = call_report.build(events, folder / "call.wav")
    assert "no agent joined" in (call_report.failure(events, report, 2) or "")


def test_a_turn_that_was_never_spoken_is_a_failure(two_turns):
    events, folder = two_turns
    report = call_report.build(events, folder / "call.wav")
    assert call_report.failure(events, report, 3) == "Only 2 of 3 turns were spoken"


@pytest.mark.parametrize(
    ("heard", "said", "rate"),
    [
        ("I wonder where he went.", "I wonder where he went", 0.0),
        ("I wonder where we went", "I wonder where he went.", 0.2),
        ("", "two words", 1.0),
        ("Mr. Ill-disposed", "mister ill disposed", 0.0),
        ("a b c d", "a b", 1.0),
    ],
)
def test_words_that_were_got_wrong_are_counted_by_words_said(heard, said, rate):
    assert call_heard.word_errors(heard, said) == pytest.approx(rate)


def test_the_replies_of_a_recording_are_transcribed_but_for_the_one_broken_into(two_turns):
    """A human recording stands in for the second reply."""
    events, folder = two_turns
    sound, _ = soundfile.read(folder / "call.wav", dtype="float32")
    recording = TOOLS / pins.SPEECH_FOLDER / f"{pins.SPEECH[4].name}.wav"
    speech, rate = soundfile.read(recording, dtype="float32")
    sound[9 * RATE :, 1] = 0
    spoken = np.repeat(speech, 3)[::2][: 4 * RATE]
    assert rate * 3 == RATE * 2
    sound[10 * RATE : 10 * RATE + len(spoken), 1] = spoken
    soundfile.write(folder / "call.wav", sound, RATE)
    for event in events:
        if event["event"] == "reply_text" and event["at"] == 10.0:
            event["text"] = "He might even have been made amiable himself."
    report = call_report.build(events, folder / "call.wav")
    call_heard.listen(report)
    first, second = report.turns
    assert first.reply_wer is None
    assert "amiable" in second.reply_heard
    assert second.reply_wer <= 0.25
    assert "WER" in call_report.timeline(report)
