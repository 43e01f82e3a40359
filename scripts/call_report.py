"""Turns a recorded call into figures: `call.json`, the picture, and the timeline on the terminal.

Times on the caller's side are measured in the recording. The agent sends its own figures in data
packets; the shared clock matches them to turns.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import soundfile

from csm_tts_plugin.audio.files import write_whole

from . import call_picture, call_sound, pins
from .call_turns import PARTS, Report, Turn, parts_of

Event = dict[str, Any]

_FIGURES = (
    "endpointing",
    "stt",
    "llm_ttft",
    "first_sentence",
    "tts_first_audio",
    "playout",
    "voice",
)
_SAME_TURN_S = 1.5
"""Largest difference between the agent's and the caller's time of a turn's beginning."""


def build(events: list[Event], wav: Path) -> Report:
    """Builds the report; a call that ended early gives the turns that were recorded."""
    sound, rate = soundfile.read(wav, dtype="float32", always_2d=True)
    said = _of(events, "said")
    starts = [event["start"] for event in said] + [len(sound) / rate]
    turns = [
        _turn(event, upcoming, events, sound, rate)
        for event, upcoming in zip(said, starts[1:], strict=True)
    ]
    facts = next(iter(_of(events, "agent")), {})
    greeting = next(iter(_of(events, "greeting")), None)
    return Report(
        turns=turns,
        greeting=(greeting["start"], greeting["end"]) if greeting else None,
        model=facts.get("model", ""),
        device=facts.get("device", ""),
        clones=facts.get("clones") != "false",
        follows=facts.get("follows") or None,
        versions=_versions(),
        seconds=len(sound) / rate,
        sound=sound,
        rate=rate,
    )


def _turn(event: Event, upcoming: float, events: list[Event], sound: Any, rate: int) -> Turn:
    caller, agent = (call_sound.loud(sound[:, side], rate) for side in (0, 1))
    start, end = event["start"], event["end"]
    end = call_sound.last_loud(caller, start, end) or end
    turn = Turn(said=(round(start, 2), round(end, 2)), reference_text=_beside(event["file"]))
    turn.caller_text = _texts(events, "caller_text", start, upcoming)
    turn.reply_text = _texts(events, "reply_text", end, upcoming)
    figures: Event = {}
    for packet in _of(events, "figures"):
        if _answers(packet, event, upcoming, events):
            figures, turn.interrupted = packet, packet["interrupted"]
            for name in _FIGURES:
                setattr(turn, name, packet.get(name))
    breaks_in = any(e["turn"] == event["turn"] for e in _of(events, "interrupts"))
    # An interrupted reply overlaps the first words of the next turn.
    until = upcoming + 3.0 if breaks_in else upcoming
    first = call_sound.first_loud(agent, end, upcoming)
    if first is None:
        return turn
    last = call_sound.last_loud(agent, first, until) or first
    turn.heard = (round(first, 2), round(last, 2))
    turn.e2e, turn.reply_seconds = round(first - end, 3), round(last - first, 2)
    silent, sounds = (_at(events, figures.get(name)) for name in ("silent_at", "sounds_at"))
    before, after = (silent or end) - end, first - (sounds or first)
    turn.parts = parts_of(turn, before, after)
    if breaks_in:
        spoke = call_sound.first_loud(caller, upcoming, until) or upcoming
        turn.silent_after = round(max(0.0, last - spoke), 2)
    clear = sound[int(first * rate) : int(min(last, upcoming) * rate), 1]
    turn.underruns = len(call_sound.cuts(clear, rate))
    return turn


def _of(events: Iterable[Event], name: str) -> list[Event]:
    return [event for event in events if event["event"] == name]


def _texts(events: list[Event], name: str, start: float, end: float) -> str:
    return " ".join(e["text"].strip() for e in _of(events, name) if start <= e["at"] < end)


def _answers(packet: Event, said: Event, upcoming: float, events: list[Event]) -> bool:
    """Whether the agent's figures belong to the turn `said`; the next one begins at `upcoming`.

    A busy agent detects speech late, or only by its transcript; then it reports no `spoke_at`.
    """
    spoke = _at(events, packet.get("spoke_at"))
    if spoke is None:
        return bool(packet.get("turn") == said["turn"])
    return bool(said["start"] <= spoke + _SAME_TURN_S < upcoming)


def _at(events: list[Event], clock: float | None) -> float | None:
    """Converts a time of the clock that caller and agent share to seconds of the recording."""
    joined = next(iter(_of(events, "joined")), None)
    return None if joined is None or clock is None else float(clock - joined["epoch"])


def _beside(file: str) -> str:
    words = Path(file).with_suffix(".txt")
    return words.read_text().strip() if words.is_file() else ""


def _versions() -> dict[str, str]:
    packages = ("livekit-agents", "livekit", "torch", "transformers")
    return {
        "python": platform.python_version(),
        "livekit-server": pins.LIVEKIT_SERVER,
        **{name: version(name) for name in packages},
    }


def write(report: Report, out: Path) -> None:
    """Writes `call.json` and `call.png`."""
    content = {key: value for key, value in asdict(report).items() if key not in ("sound", "rate")}
    write_whole(out / "call.json", json.dumps(content, indent=2) + "\n")
    call_picture.draw(report, out / "call.png")


def failure(events: list[Event], report: Report, wanted: int) -> str | None:
    """The reason why the call failed; None if it succeeded."""
    for event in _of(events, "failed"):
        return f"The call broke off: {event['reason']}"
    for number, turn in enumerate(report.turns, 1):
        if turn.heard is None:
            return f"Turn {number} got no reply"
    if len(report.turns) < wanted:
        return f"Only {len(report.turns)} of {wanted} turns were spoken"
    return None


def news(event: Event) -> str | None:
    """A progress line for the terminal; None for events that are not shown."""
    match event["event"]:
        case "greeting":
            return f"the agent greets for {event['end'] - event['start']:.1f} s"
        case "said":
            return (
                f"turn {event['turn']}: the caller spoke for {event['end'] - event['start']:.1f} s"
            )
        case "answered":
            return f"turn {event['turn']}: the agent replies"
        case "interrupts":
            return f"turn {event['turn']}: the caller interrupts the reply"
        case "voice":
            return f"the agent's choice of voice is now: {event['voice']}"
        case "failed":
            return f"failed: {event['reason']}"
    return None


def timeline(report: Report) -> str:
    """The call as text for the terminal."""
    lines = ["", f"The call, {report.seconds:.0f} s, model {report.model} on {report.device}:"]
    if report.greeting is not None:
        lines.append(f"{report.greeting[0]:7.2f} s  agent   greets")
    for number, turn in enumerate(report.turns, 1):
        lines += _turn_lines(number, turn, report)
    answered = sorted(turn.e2e for turn in report.turns if turn.e2e is not None)
    if answered:
        middle = answered[len(answered) // 2]
        gaps = sum(turn.underruns for turn in report.turns)
        lines.append(f"End of speech to first reply sample: median {middle:.2f} s. Gaps: {gaps}.")
    if not report.clones and any(turn.voice == "caller" for turn in report.turns):
        lines.append(_instead_of_cloning(report))
    judged = [turn.reply_wer for turn in report.turns if turn.reply_wer is not None]
    if judged:
        lines.append(f"Word error rate of complete replies: {_percent(judged)}.")
    return "\n".join(lines)


def _instead_of_cloning(report: Report) -> str:
    if report.follows is None:
        return f"The caller consented to cloning, but {report.model} does not clone."
    return (
        f"The caller consented to cloning; {report.model} follows the {report.follows} of their"
        " voice and does not clone it."
    )


def _turn_lines(number: int, turn: Turn, report: Report) -> list[str]:
    lines = [f"{turn.said[0]:7.2f} s  caller  turn {number}, {turn.said[1] - turn.said[0]:.1f} s"]
    lines.append(f"           heard:  {turn.caller_text or '(nothing)'}")
    if turn.heard is None:
        return [*lines, "           agent   NO REPLY"]
    spent = ", ".join(f"{PARTS[name]} {value:.2f}" for name, value in turn.parts.items())
    how = f"replies after {turn.e2e:.2f} s ({spent}), {report.manner_of(turn)}"
    lines.append(f"{turn.heard[0]:7.2f} s  agent   {how}, for {turn.reply_seconds:.1f} s")
    lines.append(f"           spoken: {turn.reply_text or '(no transcript)'}")
    if turn.reply_heard:
        lines.append(f"           heard:  {turn.reply_heard}{_judged(turn)}")
    if turn.silent_after is not None:
        lines.append(f"           interrupted: silent {turn.silent_after:.2f} s later")
    return lines


def _judged(turn: Turn) -> str:
    found = [] if turn.reply_wer is None else [f"WER {turn.reply_wer:.2f}"]
    if turn.like_caller is not None:
        found.append(f"voice {turn.like_caller:.2f} like the caller's")
    if turn.like_stock is not None:
        found.append(f"{turn.like_stock:.2f} like the stock voice")
    return f" ({', '.join(found)})" if found else ""


def _percent(rates: list[float]) -> str:
    return ", ".join(f"{100 * rate:.0f} %" for rate in rates)
