"""`make call`: a whole call on this machine, recorded.

Three processes run: a real LiveKit server, the agent's worker, and a caller that plays recordings.
`out/` gets call.wav (caller left, agent right), call.png, call.json and a log of each process.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from csm_tts_plugin.config import load_env_file
from csm_tts_plugin.errors import ConfigError
from livekit import api

from . import call_heard, call_report, pins
from .caller import Line
from .children import Child
from .livekit_server import LiveKitServer, ServerError
from .setup_tools import ROOT, TOOLS
from .worker import Progress, Worker, WorkerError

CALL_LIMIT_S = 600.0
INTERRUPTED_TURN = 2
"""The caller interrupts the reply to this turn if another turn follows."""
INTERRUPT_AFTER_S = 0.4
OUR_LINES = (0, 2, 3, 4)
"""Indices in `pins.SPEECH` of the recordings, one per turn. The first is a good reference."""

GREETING = "Hello, I am listening. Please read me a line of your book."
INSTRUCTIONS = """\
You listen to someone reading a novel aloud. Say one short, friendly sentence about the people in \
the line you just heard.

Caller: Hello, who are you?
You: I am your reading companion, please read me your story.

Caller: It is a truth universally acknowledged, that a single man in possession of a good fortune \
must be in want of a wife.
You: It seems that every rich young man needs a wife in this town.

Caller: She was a woman of mean understanding, little information, and uncertain temper.
You: It seems that she was not easy to live with.

Caller: Thank you, goodbye.
You: Goodbye, I liked your story.

Caller: He left the house that morning and never came back.
You: I wonder where he went, and who will miss him.

Caller: Had she been kinder to her sister, they might have been friends.
You: It seems that a little kindness would have made them happy.
"""
"""Instructions for the agent of `make call`: the recordings are lines of a novel."""


class CallError(Exception):
    """`str(error)` is one line: the cause and the remedy."""


def chosen_lines(wanted: str) -> list[Line]:
    """`wanted`: names of recordings, one per turn; empty: the default ones. Raises CallError."""
    folder = TOOLS / pins.SPEECH_FOLDER
    ours = [folder / f"{pins.SPEECH[index].name}.wav" for index in OUR_LINES]
    files = [Path(name) for name in shlex.split(wanted)] or ours
    for file in files:
        if not file.is_file():
            raise CallError(f"{file} does not exist; correct CALLER or run `make setup`.")
    lines = []
    for turn, file in enumerate(files, 1):
        breaks_in = turn == INTERRUPTED_TURN + 1
        lines.append(Line(str(file), INTERRUPT_AFTER_S if breaks_in else None))
    for line in lines:
        try:
            line.load()
        except Exception as error:
            raise CallError(f"{line.file} cannot be read as audio ({error}); try WAV.") from None
    return lines


def caller_token(server: LiveKitServer, room: str) -> str:
    return (
        api.AccessToken(server.key, server.secret)
        .with_identity("caller")
        .with_attributes({"csm.voice_consent": "granted"})
        .with_grants(api.VideoGrants(room_join=True, room=room))
        .to_jwt()
    )


def run_caller(
    server: LiveKitServer, lines: list[Line], out: Path, worker: Worker, progress: Progress
) -> list[dict[str, Any]]:
    """Returns the caller's events; the last is `failed` if the call failed. Raises CallError."""
    events: list[dict[str, Any]] = []

    def on_line(text: str) -> None:
        try:
            event = json.loads(text)
        except ValueError:
            return
        if isinstance(event, dict) and "event" in event:
            events.append(event)
            if (news := call_report.news(event)) is not None:
                progress.say(news)

    token = caller_token(server, f"call-{secrets.token_hex(4)}")
    env = {**os.environ, "CALLER_URL": server.url, "CALLER_TOKEN": token}
    script = json.dumps([[line.file, line.interrupt_after] for line in lines])
    words: list[str | Path] = [sys.executable, "-m", "scripts.caller", "--lines", script]
    words += ["--wav", out / "call.wav"]
    with Child(words, out / "caller.log", env=env, on_line=on_line) as caller:
        until = time.monotonic() + CALL_LIMIT_S
        while (code := caller.wait(0.5)) is None:
            if worker.child.code is not None:
                raise CallError(f"The agent ended during the call: {worker.last_word()}")
            if time.monotonic() > until:
                raise CallError(f"The call did not end within {CALL_LIMIT_S:.0f} s.")
        if code != 0 and not any(event["event"] == "failed" for event in events):
            raise CallError(f"The caller failed: {caller.last_line()}")
    return events


def make_call(out: Path, progress: Progress) -> int:
    """Runs the call, writes its report and returns the exit code.

    Raises CallError, ServerError or WorkerError.
    """
    lines = chosen_lines(os.environ.get("CALLER", ""))
    out.mkdir(parents=True, exist_ok=True)
    for stale in ("call.wav", "call.png", "call.json"):
        (out / stale).unlink(missing_ok=True)
    for name, ours in (("AGENT_INSTRUCTIONS", INSTRUCTIONS), ("AGENT_GREETING", GREETING)):
        os.environ[name] = os.environ.get(name) or ours
    progress.say("starting a LiveKit server on loopback")
    with LiveKitServer(out / "livekit-server.log") as server:
        progress.say(f"starting the agent, model {os.environ.get('CSM_MODEL') or 'tiny'}")
        worker = Worker(server.keys, out / "agent.log", progress)
        with worker.child:
            worker.wait_ready()
            progress.say("the agent is ready; the caller joins")
            events = run_caller(server, lines, out, worker, progress)
            progress.say("the caller has hung up; stopping the agent")
    report = call_report.build(events, out / "call.wav")
    call_heard.listen(report)
    call_report.write(report, out)
    print(call_report.timeline(report))
    failure = call_report.failure(events, report, len(lines))
    if failure is not None:
        raise CallError(f"{failure}; see {_shown(out)}/agent.log.")
    return 0


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def main() -> int:
    # Both signals raise an exception, so every `finally` runs. SIGINT is set explicitly because a
    # shell's background job ignores it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = Path(os.environ.get("OUT") or ROOT / "out")
    try:
        load_env_file(ROOT / ".env")
        return make_call(out, Progress())
    except (ConfigError, CallError, ServerError, WorkerError) as error:
        print(f"call failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("call interrupted; all its processes are stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
