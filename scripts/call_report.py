"""Turns a recorded call into figures: `call.json`, the picture, and the timeline on the terminal.

All times of the caller's side are measured from the recorded sound; the agent's own figures come
with its data packets and are matched to turns by the clock.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import soundfile

from . import call_picture, call_sound, pins

Event = dict[str, Any]

_FIGURES = ("endpointing", "stt", "llm_ttft", "tts_first_audio", "voice")
_SAME_TURN_S = 1.5
"""How far apart the agent's and the caller's idea of when a turn began may be."""


@dataclass
class Turn:
    """One turn of the caller and the reply to it; times in seconds, None where there is none."""

    caller_text: str = ""
    """What speech-to-text heard."""
    reference_text: str = ""
    """What was really said, where a transcript lies beside the recording."""
    reply_text: str = ""
    voice: str | None = None
    interrupted: bool = False
    endpointing: float | None = None
    """End of the caller's speech until the agent took the turn for finished; `stt` is within."""
    stt: float | None = None
    llm_ttft: float | None = None
    tts_first_audio: float | None = None
    e2e: float | None = None
    """End of the caller's speech to the first reply sample heard by the caller."""
    reply_seconds: float | None = None
    underruns: int = 0
    """Gaps in the reply where sound did not come in time."""
    silent_after: float | None = None
    """From the first sound of the caller's breaking in until the agent is silent."""
    said: tuple[float, float] = (0.0, 0.0)
    """When the caller spoke, in seconds of the recording."""
    heard: tuple[float, float] | None = None
    """When the reply was heard."""


@dataclass
class Report:
    turns: list[Turn]
    greeting: tuple[float, float] | None
    model: str
    device: str
    versions: dict[str, str]
    seconds: float
    sound: Any = field(repr=False, default=None)
    """float32 [samples, 2]: caller, agent."""
    rate: int = 24_000


def build(events: list[Event], wav: Path) -> Report:
    """Of a call that may have ended early: what there is."""
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
    for packet in _of(events, "figures"):
        if _begins(packet, start, end, events):
            turn.interrupted = packet["interrupted"]
            for name in _FIGURES:
                setattr(turn, name, packet[name])
    breaks_in = any(e["turn"] == event["turn"] for e in _of(events, "interrupts"))
    # An interrupted reply goes on for a moment under the next turn's first words.
    until = upcoming + 3.0 if breaks_in else upcoming
    first = call_sound.first_loud(agent, end, upcoming)
    if first is None:
        return turn
    last = call_sound.last_loud(agent, first, until) or first
    turn.heard = (round(first, 2), round(last, 2))
    turn.e2e, turn.reply_seconds = round(first - end, 3), round(last - first, 2)
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


def _begins(packet: Event, start: float, end: float, events: list[Event]) -> bool:
    """Whether the agent's figures are of the turn said between `start` and `end`."""
    joined = next(iter(_of(events, "joined")), None)
    if joined is None or packet.get("spoke_at") is None:
        return False
    spoke = packet["spoke_at"] - joined["epoch"]
    return bool(start - _SAME_TURN_S <= spoke <= end)


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
    """`call.json` and `call.png`."""
    content = {key: value for key, value in asdict(report).items() if key not in ("sound", "rate")}
    (out / "call.json").write_text(json.dumps(content, indent=2) + "\n")
    call_picture.draw(report, out / "call.png")


def failure(events: list[Event], report: Report, wanted: int) -> str | None:
    """Why the call does not count as one that worked; None when it does."""
    for event in _of(events, "failed"):
        return f"The call broke off: {event['reason']}"
    for number, turn in enumerate(report.turns, 1):
        if turn.heard is None:
            return f"Turn {number} got no reply"
    if len(report.turns) < wanted:
        return f"Only {len(report.turns)} of {wanted} turns were spoken"
    return None


def news(event: Event) -> str | None:
    """A line for the terminal while the call runs; None for what is not worth one."""
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
            return f"turn {event['turn']}: the caller breaks into the reply"
        case "voice":
            return f"the agent's voice is now: {event['voice']}"
        case "failed":
            return f"failed: {event['reason']}"
    return None


def timeline(report: Report) -> str:
    """The call as people read it."""
    lines = ["", f"The call, {report.seconds:.0f} s, model {report.model} on {report.device}:"]
    if report.greeting is not None:
        lines.append(f"{report.greeting[0]:7.2f} s  agent   greets")
    for number, turn in enumerate(report.turns, 1):
        lines += _turn_lines(number, turn)
    answered = sorted(turn.e2e for turn in report.turns if turn.e2e is not None)
    if answered:
        middle = answered[len(answered) // 2]
        gaps = sum(turn.underruns for turn in report.turns)
        lines.append(f"End of speech to first reply sample: median {middle:.2f} s. Gaps: {gaps}.")
    return "\n".join(lines)


def _turn_lines(number: int, turn: Turn) -> list[str]:
    lines = [f"{turn.said[0]:7.2f} s  caller  turn {number}, {turn.said[1] - turn.said[0]:.1f} s"]
    lines.append(f"           heard:  {turn.caller_text or '(nothing)'}")
    if turn.heard is None:
        return [*lines, "           agent   NO REPLY"]
    parts = [("turn end", turn.endpointing), ("of it STT", turn.stt), ("LLM", turn.llm_ttft)]
    parts.append(("first audio", turn.tts_first_audio))
    spent = ", ".join(f"{name} {value:.2f}" for name, value in parts if value is not None)
    how = f"replies after {turn.e2e:.2f} s ({spent}), in the {turn.voice} voice"
    lines.append(f"{turn.heard[0]:7.2f} s  agent   {how}, for {turn.reply_seconds:.1f} s")
    lines.append(f"           spoken: {turn.reply_text or '(no transcript)'}")
    if turn.silent_after is not None:
        lines.append(f"           interrupted: silent {turn.silent_after:.2f} s later")
    return lines
