"""The engines behind one address: their load, and which one gets the next call.

Reads their `/readyz` several times a second and counts the calls that it assigns itself, so that a
burst of calls is distributed before the engines report it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
from aiohttp import hdrs, web

from ..config import Limits
from ..errors import CsmError, UnavailableError
from ..wire.load import fullness
from ..wire.patience import patience
from .account import Account

_POLL_S = 0.25
_ASK_S = 2.0
"""Timeout for requests that a local engine answers at once."""
CONNECT_S = 2.0
"""Timeout for connecting to a local engine."""
_MESSAGE_BYTES = 4 * 2**20
_CLOSE_S = 1.0
_AVOIDED_S = 1.0
"""Time for which an engine that was busy is asked last: half a sentence."""
_KEPT_MORE_S = 1.0


class Process(Protocol):
    """Runs an engine: its supervisor, or a server in a test."""

    @property
    def url(self) -> str:
        """Raises UnavailableError before the URL is known."""

    @property
    def key(self) -> str: ...

    @property
    def restarts(self) -> int: ...


@dataclass(eq=False, slots=True)
class Member:
    """One engine; `name` is its number in the order of the devices."""

    name: str
    device: str
    process: Process
    status: dict[str, Any] = field(default_factory=dict)
    """Its last answer of `/readyz`; empty: it does not answer."""
    account: Account = field(default_factory=Account)
    avoided: float = 0.0
    """Time on the loop's clock until which it is asked last."""

    @property
    def ready(self) -> bool:
        return bool(self.status.get("ready"))

    def fullness(self) -> float:
        return fullness({**self.status, "conversations": self.account.held})

    def avoid(self) -> None:
        self.avoided = asyncio.get_running_loop().time() + _AVOIDED_S


class Kept:
    """The engine of a conversation that a client may resume over another socket, by its secret."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._members: dict[str, Member] = {}
        self._sockets: Counter[str] = Counter()
        self._leaving: dict[str, asyncio.TimerHandle] = {}

    def find(self, keep: str | None) -> Member | None:
        return None if keep is None else self._members.get(keep)

    @contextmanager
    def held(self, keep: str | None, member: Member) -> Iterator[None]:
        """Remembers the engine while a socket is open, and then as long as the engine keeps it."""
        if keep is None:
            yield
            return
        self._members[keep] = member
        self._sockets[keep] += 1
        if (leaving := self._leaving.pop(keep, None)) is not None:
            leaving.cancel()
        try:
            yield
        finally:
            self._sockets[keep] -= 1
            if not self._sockets[keep]:
                loop = asyncio.get_running_loop()
                self._leaving[keep] = loop.call_later(self._seconds, self._forget, keep)

    def _forget(self, keep: str) -> None:
        del self._sockets[keep], self._members[keep], self._leaving[keep]

    def clear(self) -> None:
        for leaving in self._leaving.values():
            leaving.cancel()


class _Connector(aiohttp.TCPConnector):
    """Limits the time to connect; aiohttp's own limit would count pauses of the router too."""

    async def connect(self, *args: Any, **more: Any) -> Any:
        async with patience(CONNECT_S):
            return await super().connect(*args, **more)


class Fleet:
    """`keys`: whether clients send a key, which is then the engines' key too."""

    def __init__(self, members: Sequence[Member], limits: Limits, *, keys: bool) -> None:
        self.members = tuple(members)
        self.limits = limits
        self.kept = Kept(limits.keep_s + _KEPT_MORE_S)
        self.draining = False
        self._keys = keys
        self._session: aiohttp.ClientSession | None = None
        self._following: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Start to poll the engines; `aclose` stops it."""
        self._session = aiohttp.ClientSession(
            connector=_Connector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        self._following = [
            asyncio.create_task(self._follow(member), name="csm-fleet-follow")
            for member in self.members
        ]

    async def aclose(self) -> None:
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        self.kept.clear()
        if self._session is not None:
            await self._session.close()

    def check_open(self) -> None:
        """Raises UnavailableError during shutdown."""
        if self.draining:
            raise UnavailableError("The engines are shutting down; try another.", retry_after=1.0)

    def by_room(self) -> list[Member]:
        """The least loaded engine first; unready ones and those that were just busy last."""
        now = asyncio.get_running_loop().time()

        def order(one: Member) -> tuple[bool, float, int]:
            return one.avoided > now, one.fullness(), one.account.given

        return sorted(self.members, key=order)

    def authorization(self, given: str | None, member: Member) -> dict[str, str]:
        """The `Authorization` header for an engine: the client's key, or without keys the router's
        own, so that an engine accepts only the router.
        """
        shown = given if self._keys else f"Bearer {member.process.key}"
        return {} if shown is None else {hdrs.AUTHORIZATION: shown}

    def request(
        self, member: Member, method: str, path: str, **options: Any
    ) -> aiohttp.client._RequestContextManager:
        """A URL of an engine. Raises UnavailableError if its address is not known yet."""
        assert self._session is not None
        return self._session.request(
            method, f"{member.process.url}{path}", allow_redirects=False, **options
        )

    async def dial(
        self, member: Member, path: str, given: str | None
    ) -> aiohttp.ClientWebSocketResponse | None:
        """A WebSocket to an engine; None if the engine refuses one."""
        assert self._session is not None
        try:
            async with patience(CONNECT_S):
                return await self._session.ws_connect(
                    f"{member.process.url}{path}",
                    headers=self.authorization(given, member),
                    compress=0,
                    heartbeat=self.limits.heartbeat_s,
                    max_msg_size=_MESSAGE_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
                )
        except (OSError, aiohttp.ClientError, CsmError):
            await self.look(member)
            return None

    async def look(self, member: Member) -> None:
        """Reads its load now."""
        asked = member.account.asked()
        member.status = await self._status(member)
        member.account.report(int(member.status.get("conversations") or 0), asked)

    async def look_at_all(self) -> None:
        """Reads the load of all engines that answer at once."""
        looking = {asyncio.create_task(self.look(member)) for member in self.members}
        _, late = await asyncio.wait(looking, timeout=_POLL_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def metrics(self, member: Member) -> str | None:
        """Its metrics as text; None if it does not answer."""
        headers = {hdrs.AUTHORIZATION: f"Bearer {member.process.key}"}
        try:
            async with (
                patience(_ASK_S),
                self.request(member, "GET", "/metrics", headers=headers) as answer,
            ):
                return await answer.text() if answer.status == 200 else None
        except (OSError, aiohttp.ClientError, CsmError, ValueError):
            return None

    async def _status(self, member: Member) -> dict[str, Any]:
        try:
            async with (
                patience(_ASK_S),
                self.request(member, "GET", "/readyz") as answer,
            ):
                return dict(await answer.json())
        except (OSError, aiohttp.ClientError, CsmError, ValueError, TypeError):
            return {}

    async def _follow(self, member: Member) -> None:
        while True:
            await self.look(member)
            await asyncio.sleep(_POLL_S)

    def told(self) -> dict[str, Any]:
        """`/readyz` of all engines: sums, the first engine's model, and each engine's status."""
        ready = [one for one in self.members if one.ready]
        first = (ready or [one for one in self.members if one.status] or list(self.members))[0]
        sums = {name: self._sum(name) for name in _SUMMED}
        same = {name: first.status.get(name) for name in _SAME}
        return {
            "ready": bool(ready) and not self.draining,
            "detail": self._detail(len(ready)),
            **sums,
            **same,
            "device": ", ".join(one.device for one in self.members),
            "engines": [_told(one) for one in self.members],
        }

    def _sum(self, name: str) -> int:
        return sum(int(one.status.get(name) or 0) for one in self.members if one.ready)

    def _detail(self, ready: int) -> str:
        if self.draining:
            return "shutting down"
        late = [f"; engine {m.name}: {_said(m)['detail']}" for m in self.members if not m.ready]
        return f"{ready} of {len(self.members)} engines ready{''.join(late)}"


_SUMMED = ("slots", "speaking", "queued", "queue", "conversations")
_SAME = ("model", "dtype", "path", "adapter", "watermark", "clones", "follows")


def _said(member: Member) -> dict[str, Any]:
    return member.status or {"ready": False, "detail": "does not answer", "slots": 0}


def _told(member: Member) -> dict[str, Any]:
    known = _said(member)
    device = known.get("device") or member.device
    return {
        "engine": member.name,
        **known,
        "device": device,
        "restarts": member.process.restarts,
    }


FLEET = web.AppKey("fleet", Fleet)
