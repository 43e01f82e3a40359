"""The caller of `make call`: a LiveKit participant in its own process that plays recordings.

It behaves like a person on the phone and reacts only to the audio that it receives: it waits until
the agent is silent, speaks in real time, waits for an answer and interrupts one. Both sides are
recorded on one clock. It prints its events as JSON, one object per line, and writes the audio to a
stereo WAV file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from livekit import rtc

from .caller_recording import RATE, TICK, TICK_S, Pcm, Recording
from .leaving import leave

LOUD = 10 ** (-50 / 20) * 32768
"""RMS of 10 ms, 50 dB below full scale; a louder frame counts as speech."""
QUEUE_S = 0.1
"""Audio sent ahead, so that a short delay of this process leaves no gap."""
ANSWER_LIMIT_S = 45.0
REPLY_LIMIT_S = 90.0
QUIET_S = 0.8
"""Silence that ends a reply, unless the agent's state is `speaking`."""
LONG_QUIET_S = 6.0
"""Silence that ends a reply whatever the agent's state is."""

_FACTS = ("model", "device", "clones", "follows")


class CallFailed(Exception):
    """`str(error)` is one line: the step of the call that failed."""


@dataclass(frozen=True)
class Line:
    """One turn: a recording, and the seconds into the previous reply at which it interrupts.

    `interrupt_after` None: the turn waits for the end of the previous reply.
    """

    file: str
    interrupt_after: float | None = None

    def load(self) -> Pcm:
        samples, rate = soundfile.read(self.file, dtype="float32", always_2d=True)
        mono = soxr.resample(samples.mean(axis=1), rate, RATE)
        return np.asarray(np.clip(mono, -1, 1) * 32767, np.int16)


class Microphone:
    """Sends 10 ms of audio every 10 ms; silence between turns."""

    def __init__(self, recording: Recording) -> None:
        self.source = rtc.AudioSource(RATE, 1, queue_size_ms=int(1000 * QUEUE_S))
        self._recording = recording
        self._pending: Pcm = np.zeros(0, np.int16)
        self._tick = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._tick * TICK_S - self._recording.now()))
            # After a delay of this process the source's queue is empty, so that the agent hears
            # the following audio later. The recording is shifted in the same way.
            held = QUEUE_S if len(self._pending) else 0.0
            self._tick = max(self._tick, int((self._recording.now() - held) / TICK_S))
            pcm, self._pending = self._pending[:TICK], self._pending[TICK:]
            if not len(self._pending):
                self._idle.set()
            frame = np.zeros(TICK, np.int16)
            frame[: len(pcm)] = pcm
            self._recording.said(self._tick, frame)
            await self.source.capture_frame(rtc.AudioFrame(frame.tobytes(), RATE, 1, TICK))
            self._tick += 1

    async def speak(self, pcm: Pcm) -> tuple[float, float]:
        """Returns the times at which sending began and ended, in seconds of the call."""
        self._idle.clear()
        self._pending = pcm
        began = self._tick * TICK_S
        await self._idle.wait()
        return began, (self._tick + 1) * TICK_S


class Listener:
    """Receives the agent's audio and notes when it was last loud."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.last_loud = -1.0
        self.heard_anything = asyncio.Event()

    async def run(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream.from_track(
            track=track, sample_rate=RATE, num_channels=1, frame_size_ms=10
        )
        async for event in stream:
            pcm = np.frombuffer(event.frame.data, np.int16)
            self._recording.heard(pcm)
            self.heard_anything.set()
            if np.sqrt(np.mean(pcm.astype(np.float32) ** 2)) > LOUD:
                self.last_loud = self._recording.now()


class Caller:
    """One call, from joining to hanging up."""

    def __init__(self, report: Callable[..., None]) -> None:
        self._report = report
        self.recording = Recording()
        self._microphone = Microphone(self.recording)
        self._listener = Listener(self.recording)
        self._room = rtc.Room()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def call(self, url: str, token: str, lines: list[Line]) -> None:
        """Raises CallFailed if the agent does not join or a turn gets no answer."""
        self._listen_to_room()
        try:
            await asyncio.wait_for(self._room.connect(url, token), 20)
            track = rtc.LocalAudioTrack.create_audio_track("caller", self._microphone.source)
            options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=False)
            await asyncio.wait_for(self._room.local_participant.publish_track(track, options), 20)
            self._start(self._microphone.run())
            self._report("joined", at=self.recording.now(), epoch=self.recording.epoch)
            await self._converse(lines)
        finally:
            for agent in self._room.remote_participants.values():
                self._report("agent", **facts_of(agent.attributes))
            self._report("hung_up", at=self.recording.now())
            await self._hang_up()

    async def _converse(self, lines: list[Line]) -> None:
        await self._within(self._listener.heard_anything.wait(), ANSWER_LIMIT_S, "no agent joined")
        began = await self._answer_after(0.0, "the agent did not greet")
        self._report("greeting", start=began, end=await self._reply_end())
        for number, line in enumerate(lines, 1):
            start, end = await self._microphone.speak(line.load())
            self._report("said", turn=number, start=start, end=end, file=line.file)
            heard = await self._answer_after(end, f"turn {number} got no reply")
            self._report("answered", turn=number, at=heard)
            upcoming = lines[number].interrupt_after if number < len(lines) else None
            if upcoming is not None and await self._speaks_for(heard, upcoming):
                self._report("interrupts", turn=number, at=self.recording.now())
                continue
            self._report("reply_ended", turn=number, at=await self._reply_end())

    async def _answer_after(self, end: float, failure: str) -> float:
        """The time at which the agent was first loud after `end`."""
        await self._within(_until(lambda: self._listener.last_loud > end), ANSWER_LIMIT_S, failure)
        return self._listener.last_loud

    async def _speaks_for(self, heard: float, seconds: float) -> bool:
        """True if the reply still goes on after `seconds`; False if it ended before."""
        due = heard + seconds
        await _until(lambda: self._reply_over() or self.recording.now() >= due)
        return self.recording.now() >= due

    async def _reply_end(self) -> float:
        await self._within(_until(self._reply_over), REPLY_LIMIT_S, "a reply did not end")
        return self._listener.last_loud

    def _reply_over(self) -> bool:
        quiet = self.recording.now() - self._listener.last_loud
        return quiet > LONG_QUIET_S or (quiet > QUIET_S and not self._agent_claims_to_speak())

    def _agent_claims_to_speak(self) -> bool:
        agents = self._room.remote_participants.values()
        return any(agent.attributes.get("lk.agent.state") == "speaking" for agent in agents)

    async def _within(self, wait: Awaitable[object], seconds: float, failure: str) -> None:
        try:
            await asyncio.wait_for(wait, seconds)
        except TimeoutError:
            raise CallFailed(f"{failure} within {seconds:.0f} s") from None

    def _listen_to_room(self) -> None:
        def on_track(track: rtc.Track, *_: object) -> None:
            if track.kind == rtc.TrackKind.KIND_AUDIO:
                self._start(self._listener.run(track))

        def on_data(packet: rtc.DataPacket) -> None:
            if packet.topic == "csm.turn":
                self._report("figures", at=self.recording.now(), **json.loads(packet.data))

        def on_text(reader: rtc.TextStreamReader, identity: str) -> None:
            self._start(self._read(reader, identity, self.recording.now()))

        def on_attributes(changed: dict[str, str], _: rtc.Participant) -> None:
            if "csm.voice" in changed:
                self._report("voice", at=self.recording.now(), voice=changed["csm.voice"])

        self._room.on("track_subscribed", on_track)
        self._room.on("participant_attributes_changed", on_attributes)
        self._room.on("data_received", on_data)
        self._room.register_text_stream_handler("lk.transcription", on_text)

    async def _read(self, reader: rtc.TextStreamReader, identity: str, at: float) -> None:
        text = await reader.read_all()
        me = identity == self._room.local_participant.identity
        attributes = reader.info.attributes or {}
        if not me or attributes.get("lk.transcription_final") == "true":
            self._report("caller_text" if me else "reply_text", at=at, text=text)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hang_up(self) -> None:
        try:
            await asyncio.wait_for(self._room.disconnect(), 10)
        except TimeoutError:
            self._report("note", text="leaving the room took more than 10 s")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def facts_of(attributes: Mapping[str, str]) -> dict[str, str]:
    """What the agent tells of its engine; empty text where it tells nothing."""
    return {name: attributes.get(f"csm.{name}", "") for name in _FACTS}


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - conditions on the clock have no event
        await asyncio.sleep(TICK_S)


def _report(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


async def run(url: str, token: str, lines: list[Line], wav: Path) -> int:
    caller = Caller(_report)
    try:
        await caller.call(url, token, lines)
    except CallFailed as error:
        _report("failed", reason=str(error))
        return 1
    except (rtc.ConnectError, TimeoutError) as error:
        _report("failed", reason=f"the caller cannot join the room: {error or 'no answer'}")
        return 1
    finally:
        caller.recording.write(wav)
    return 0


def main() -> int:
    """URL and token come from the environment: a process list would show arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", required=True, help="JSON: a list of [file, interrupt_after]")
    parser.add_argument("--wav", type=Path, required=True)
    args = parser.parse_args()
    lines = [Line(file, interrupt) for file, interrupt in json.loads(args.lines)]
    env = os.environ
    return asyncio.run(run(env["CALLER_URL"], env["CALLER_TOKEN"], lines, args.wav))


if __name__ == "__main__":
    leave(main())
