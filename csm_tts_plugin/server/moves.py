"""Moves a conversation from a lost socket to the client's next one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import web

from ..errors import CsmError, UnavailableError


@dataclass(frozen=True, slots=True)
class Move:
    socket: web.WebSocketResponse
    received: int
    """Number of the engine's messages that the client has received."""
    left: asyncio.Future[None]
    """Done when the session no longer uses the socket."""


class Moves:
    """Hands one session its sockets, one at a time; the latest one that asked is next."""

    def __init__(self) -> None:
        self._asked: Move | None = None
        self._now: Move | None = None
        self._moving = asyncio.Event()

    def ask(self, socket: web.WebSocketResponse, received: int) -> asyncio.Future[None]:
        """Offer another socket. The future is done when the session no longer uses it."""
        if self._asked is not None:
            _finish(self._asked)
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked = Move(socket, received, left)
        self._moving.set()
        return left

    async def wait(self) -> None:
        """Wait until another socket was offered."""
        await self._moving.wait()

    async def next(self, ended: asyncio.Task[bool], seconds: float) -> Move | None:
        """The next socket; None if the session has ended or no socket came within `seconds`."""
        self._leave_now()
        moving = asyncio.create_task(self._moving.wait(), name="csm-moving")
        try:
            await asyncio.wait(
                [ended, moving], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            moving.cancel()
            with suppress(asyncio.CancelledError):
                await moving
        if self._asked is None or ended.done():
            return None
        self._now, self._asked = self._asked, None
        self._moving.clear()
        return self._now

    def leave(self, error: CsmError | None = None) -> None:
        """Release all sockets, with `error` if given."""
        self._leave_now(error)
        if self._asked is not None:
            _finish(self._asked, gone())

    def _leave_now(self, error: CsmError | None = None) -> None:
        if self._now is not None:
            _finish(self._now, error)
        self._now = None


def _finish(move: Move, error: CsmError | None = None) -> None:
    if move.left.done():
        return
    if error is None:
        move.left.set_result(None)
    else:
        move.left.set_exception(error)


def gone() -> UnavailableError:
    return UnavailableError("This conversation is no longer kept; open another.")
