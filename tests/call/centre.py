"""A small call centre on loopback: agent workers, and callers who listen and type."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from livekit import api, rtc
from scripts.children import Child
from scripts.livekit_server import LiveKitServer
from scripts.setup_tools import ROOT
from tests.call.running import OURS
from tests.support import waiting
from tests.support.endpoint import completion, endpoint, event

LIMIT_S = 240.0
"""Limit of every wait; high, because the machine may be busy."""
_LOUD = 0.003 * 32768
_RATE = 24_000
_ALIVE_S = 0.5


until = partial(waiting.until, limit_s=LIMIT_S)


def get_text(url: str, key: str = "") -> str:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return answer.read().decode()


def get_json(url: str) -> dict:
    return json.loads(get_text(url))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class AgentWorker:
    """`agent.py start`; its health page reports its state. `figures`: folder for its metrics."""

    def __init__(self, log: Path, env: dict[str, str], figures: Path) -> None:
        self._metrics = free_port()
        env |= {"AGENT_METRICS_PORT": str(self._metrics), "PROMETHEUS_MULTIPROC_DIR": str(figures)}
        clean = {name: value for name, value in os.environ.items() if name not in OURS}
        settings = {"AGENT_HEALTH": "127.0.0.1:0", "AGENT_NAME": "", "PYTHONUNBUFFERED": "1"}
        self._registered = threading.Event()
        self._page = ""
        words = [sys.executable, ROOT / "agent.py", "start"]
        self.child = Child(words, log, env={**clean, **settings, **env}, on_line=self._read)

    @property
    def status(self) -> dict:
        return get_json(f"http://{self._page}/worker")

    @property
    def calls(self) -> int:
        return self.status.get("active_jobs", 0)

    @property
    def load(self) -> float:
        return self.status.get("worker_load", 0.0)

    @property
    def healthy(self) -> bool:
        return get_text(f"http://{self._page}/") == "OK"

    @property
    def metrics(self) -> str:
        return get_text(f"http://127.0.0.1:{self._metrics}/metrics")

    def wait_ready(self) -> None:
        assert self._registered.wait(LIMIT_S), self.child.last_line()

    def terminate(self) -> None:
        os.kill(self.child.pid, signal.SIGTERM)

    def _read(self, line: str) -> None:
        if found := re.search(r"HTTP server listening on ([0-9.]+:\d+)", line):
            self._page = found[1]
        if "registered worker" in line:
            self._registered.set()


class Caller:
    """A caller in a new room, who hears the agent and can type to it."""

    def __init__(self) -> None:
        self.room = rtc.Room()
        self.texts: list[str] = []
        """The agent's replies, each added when it has ended."""
        self.heard_s = 0.0
        """Seconds of the agent's audio that were not silent."""
        self.longest_rest_s = 0.0
        """Longest time between two frames that were not silent, since this was last set to 0."""
        self._tasks: set[asyncio.Task] = set()

    def listen(self) -> None:
        def on_track(track: rtc.Track, *_: object) -> None:
            if track.kind == rtc.TrackKind.KIND_AUDIO:
                self._start(self._hear(track))

        self.room.on("track_subscribed", on_track)
        self.room.register_text_stream_handler(
            "lk.transcription", lambda reader, who: self._start(self._read(reader))
        )

    @property
    def agents(self) -> list[rtc.RemoteParticipant]:
        people = self.room.remote_participants.values()
        return [one for one in people if one.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT]

    async def write(self, text: str) -> None:
        await self.room.local_participant.send_text(text, topic="lk.chat")

    async def hang_up(self) -> None:
        await asyncio.wait_for(self.room.disconnect(), LIMIT_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _hear(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream.from_track(
            track=track, sample_rate=_RATE, num_channels=1, frame_size_ms=20
        )
        loud_at = time.monotonic()
        async for heard in stream:
            pcm = np.frombuffer(heard.frame.data, np.int16).astype(np.float32)
            if np.sqrt(np.mean(pcm**2)) > _LOUD:
                self.heard_s += len(pcm) / _RATE
                now = time.monotonic()
                self.longest_rest_s = max(self.longest_rest_s, now - loud_at)
                loud_at = now

    async def _read(self, reader: rtc.TextStreamReader) -> None:
        self.texts.append(" ".join((await reader.read_all()).split()))

    def _start(self, work) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@asynccontextmanager
async def calling(server: LiveKitServer):
    """A caller in a room of their own, who hangs up at the end."""
    room = f"room-{secrets.token_hex(4)}"
    token = (
        api.AccessToken(server.key, server.secret)
        .with_identity("caller")
        .with_grants(api.VideoGrants(room_join=True, room=room))
        .to_jwt()
    )
    caller = Caller()
    caller.listen()
    try:
        await asyncio.wait_for(caller.room.connect(server.url, token), LIMIT_S)
        yield caller
    finally:
        await caller.hang_up()


def refusals(server: LiveKitServer) -> int:
    return server.log.read_text().count("failed to send job request")


@asynccontextmanager
async def greeted(server: LiveKitServer):
    """A caller who was greeted; calls again while no worker takes the call, because workers report
    only every 2.5 s to LiveKit that they have capacity again.
    """
    async with AsyncExitStack() as call:
        async with asyncio.timeout(LIMIT_S):
            caller = await _taken(server, call)
        await until(lambda: caller.texts, "the greeting")
        yield caller


async def _taken(server: LiveKitServer, call: AsyncExitStack) -> Caller:
    """Calls until a worker takes the call; closing `call` hangs up."""
    while True:
        before = refusals(server)
        caller = await call.enter_async_context(calling(server))
        await until(lambda: caller.agents or refusals(server) > before, "an answer")  # noqa: B023
        if caller.agents:
            return caller
        await call.aclose()


class Parrot:
    """An OpenAI-compatible LLM that repeats the last message."""

    def __init__(self) -> None:
        self.url = ""
        self._held: dict[str, threading.Event] = {}

    @contextmanager
    def holding(self, words: str) -> Iterator[threading.Event]:
        """Replies stop before these words until the yielded event is set."""
        goes_on = self._held[words] = threading.Event()
        try:
            yield goes_on
        finally:
            goes_on.set()
            del self._held[words]

    def answer(self, body: bytes) -> Iterator[bytes]:
        said = json.loads(body)["messages"][-1]["content"]
        text = said if isinstance(said, str) else said[0]["text"]
        for words, goes_on in list(self._held.items()):
            before, found, text = text.partition(words)
            yield _words(before)
            while found and not goes_on.wait(_ALIVE_S):
                yield b": still thinking\n\n"  # else the agent takes it for lost
            text = found + text
        yield _words(text)
        yield completion([])


def _words(text: str) -> bytes:
    return b"".join(event({"role": "assistant", "content": f"{w} "}) for w in text.split())


@contextmanager
def parrot() -> Iterator[Parrot]:
    made = Parrot()
    with endpoint(made.answer) as made.url:
        yield made
