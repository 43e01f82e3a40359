"""How a recording and what was heard of the agent become the figures of each turn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from scripts import call_report

RATE = 24_000
FIGURES = {"endpointing": 0.5, "stt": 0.4, "llm_ttft": 0.2, "tts_first_audio": 0.1, "e2e": 0.9}


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
    """The caller speaks at 2-4 s and at 7-9 s; answers come at 5 s, broken into, and at 10 s."""
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
