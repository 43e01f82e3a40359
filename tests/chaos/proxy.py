"""A bad network: a TCP proxy that delays, stalls, splits and resets connections."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """Times in seconds, and the probability of each fault per piece of at most 4 KiB."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Largest deviation from the delay; the order is kept, as in TCP."""
    stall_s: float = 0.0
    stalls: float = 0.0
    resets: float = 0.0
    slices: float = 0.0
    """Probability that a piece arrives byte by byte."""


POOR = Link(delay_s=0.2, jitter_s=0.1, stall_s=1.0, stalls=0.02, resets=0.02, slices=0.05)


class FaultyProxy:
    """`async with`: listens at `url` and passes on to `target` (http://host:port)."""

    def __init__(self, target: str, link: Link, rng: random.Random) -> None:
        host, port = target.removeprefix("http://").split(":")
        self._target = host, int(port)
        self.link = link
        self._rng = rng
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.resets = 0
        self._swallows = False

    def swallow(self) -> None:
        """From now on nothing arrives at either end and nothing is closed: a cut cable."""
        self._swallows = True

    @property
    def url(self) -> str:
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    async def __aenter__(self) -> FaultyProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            writers.append(far_writer)
            ways = [self._pass(reader, far_writer), self._pass(far_reader, writer)]
            await first_of(ways)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in writers:
                one.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, reader, writer) -> None:
        """Forwards one direction until it ends or is reset."""
        pieces = asyncio.Queue(64)
        await first_of([self._take(reader, pieces), self._give(writer, pieces)])

    async def _take(self, reader, pieces) -> None:
        due, loop, link = 0.0, asyncio.get_running_loop(), self.link
        while data := await reader.read(4096):
            if self._swallows:
                continue
            late = link.delay_s + link.jitter_s * self._rng.uniform(-1.0, 1.0)
            if self._rng.random() < link.stalls:
                late += link.stall_s
            due = max(due, loop.time() + late)
            await pieces.put((due, data))
        if not self._swallows:
            await pieces.put((due, b""))
        await asyncio.Event().wait()  # `_give` ends after the last piece

    async def _give(self, writer, pieces) -> None:
        while True:
            due, data = await pieces.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            if not data:
                return
            if self._rng.random() < self.link.resets:
                self.resets += 1
                return
            await self._write(writer, data)

    async def _write(self, writer, data) -> None:
        sliced = self._rng.random() < self.link.slices
        for at in range(0, len(data), 1 if sliced else len(data)):
            writer.write(data[at : at + 1] if sliced else data)
            await writer.drain()
            if sliced:
                await asyncio.sleep(0)


async def first_of(coroutines) -> None:
    """Waits until one ends, then cancels the others. Lost connections raise no error."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
