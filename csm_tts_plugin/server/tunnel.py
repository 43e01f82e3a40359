"""Connects a client's WebSocket at the router with one of an engine.

The first message selects the engine: the one that keeps the conversation named in the message, else
the least loaded one, skipping full ones. After the engine's first answer, messages pass unchanged
in both directions. If the client's connection is lost, the engine's is cut too, and the engine
keeps the conversation for the next socket; if the client closes, the engine's socket is closed.
If the engine is lost, the client gets the error of an engine that stops, and opens another
conversation.
"""

from __future__ import annotations

import asyncio
import json
import socket as sockets
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import aiohttp
from aiohttp import WSCloseCode, WSMessage, WSMsgType, hdrs, web

from ..config import Limits
from ..errors import CsmError, EngineTimeoutError, UnavailableError
from ..wire.protocol import KEEP, ErrorMessage, encode
from .access import bearer, require_key
from .edge import EDGE
from .fleet import FLEET, Fleet, Member
from .moves import gone

_FAREWELL_S = 1.0
_HEARTBEAT = 2 / 3
"""Fraction of the engines' heartbeat interval: the router must detect a half-open client first, so
that the engine then keeps the conversation for its full time."""
_ERROR_CHARS = 1_000
"""Longest error message of an engine; longer messages need no parsing for errors."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The router's knowledge of a socket's protocol."""

    path: str
    patience: Callable[[Limits], float]
    """Timeout of the first message in seconds."""
    told: Callable[[CsmError, str | None], str]
    """Encodes an error of the router; the second argument is the type of the message it answers."""
    keeps: bool = False
    """Whether conversations outlive their sockets."""


def _native(error: CsmError, about: str | None) -> str:
    return encode(ErrorMessage.of(error, None, about))


def _seeds(error: CsmError, about: str | None) -> str:
    body = {"error": error.message, "code": error.code, "retryable": error.retryable}
    after = {} if error.retry_after is None else {"retry_after": error.retry_after}
    return json.dumps({**body, **after}, separators=(",", ":"))


NATIVE = Dialect("/v1/stream", lambda limits: limits.open_s, _native, keeps=True)
SEED = Dialect("/ws", lambda limits: limits.session_idle_s, _seeds)


async def native_socket(request: web.Request) -> web.StreamResponse:
    """`WS /v1/stream`. A key may also come with `open`; the engine then checks it."""
    config = request.app[EDGE].config
    request.app[FLEET].check_open()
    if bearer(request) is not None or not config.keys:
        require_key(request, config)
    return await _tunnelled(request, NATIVE)


async def seed_socket(request: web.Request) -> web.StreamResponse:
    """`WS /ws`."""
    require_key(request, request.app[EDGE].config)
    request.app[FLEET].check_open()
    return await _tunnelled(request, SEED)


async def _tunnelled(request: web.Request, dialect: Dialect) -> web.StreamResponse:
    limits = request.app[EDGE].config.limits
    client = web.WebSocketResponse(
        compress=False,
        heartbeat=_HEARTBEAT * limits.heartbeat_s,
        max_msg_size=limits.message_bytes,
        timeout=_FAREWELL_S,
    )
    await client.prepare(request)
    transport = request.transport
    tunnel = Tunnel(request, client, dialect)
    try:
        await tunnel.run()
    finally:
        await tunnel.aclose()
        if transport is not None:
            transport.abort()
    return client


def no_engine() -> UnavailableError:
    return UnavailableError("No engine answers now; try again.", retry_after=1.0)


class _Left(Exception):
    """The client has gone."""


class Tunnel:
    """Runs in the task of its request."""

    def __init__(
        self, request: web.Request, client: web.WebSocketResponse, dialect: Dialect
    ) -> None:
        self._fleet: Fleet = request.app[FLEET]
        self._errors = request.app[EDGE].errors
        self._given = request.headers.get(hdrs.AUTHORIZATION)
        self._client = client
        self._dialect = dialect
        self._limits = self._fleet.limits
        self._reading: asyncio.Task[WSMessage] | None = None
        self._engine: aiohttp.ClientWebSocketResponse | None = None
        self._member: Member | None = None
        self._holding = ExitStack()
        """Counters of the fleet that are held while the engine's socket is open."""
        self._early: deque[WSMessage] = deque()
        """Messages of the client from before an engine's first answer."""
        self._close_code: int | None = None
        """The engine's close code, after it has closed its socket."""
        self._closed = False
        """The client has closed its socket or reads nothing: it will not resume."""

    async def run(self) -> None:
        """Returns when the client leaves or the engine ends the connection."""
        try:
            while not await self._placed(await self._first()):
                pass
            await self._pass()
        except _Left:
            return

    async def aclose(self) -> None:
        """Closes the engine's socket, or cuts it if the client's connection was lost."""
        engine = self._engine
        if engine is not None and not engine.closed and not self._closed and await self._lost():
            _cut(engine)
        await self._stop_reading()
        await self._leave()

    async def _stop_reading(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _lost(self) -> bool:
        """Whether the client's connection was lost without a close."""
        reading = self._read()
        await asyncio.wait({reading}, timeout=_FAREWELL_S)
        return not reading.done() or reading.result().type is not WSMsgType.CLOSE

    # Choice of the engine

    async def _first(self) -> WSMessage:
        if self._early:
            return self._early.popleft()
        reading, patience = self._read(), self._dialect.patience(self._limits)
        await asyncio.wait({reading}, timeout=patience)
        if not reading.done():
            late = EngineTimeoutError("Nothing was said for too long; open another.")
            await self._farewell(late, WSCloseCode.TRY_AGAIN_LATER)
            raise _Left
        return await self._next()

    async def _placed(self, message: WSMessage) -> bool:
        """Whether an engine has accepted it; if not, the client got the error. Raises _Left."""
        keep, resumes = self._keep_of(message)
        owner = self._fleet.kept.find(keep)
        if owner is None and resumes:
            return await self._refuse(gone())
        refusals: dict[str, str] = {}
        said = [message]
        for member in [owner] if owner else self._fleet.by_room():
            answer = await self._ask(member, said, keep)
            if answer is not None:
                code = None if owner else _refused(answer, said)
                if code is None:
                    if self._dialect.keeps and '"type":"opened"' in answer:
                        self._holding.enter_context(member.account.opened())
                    await self._to_client(answer, WSMsgType.TEXT)
                    return True
                refusals[code] = answer
                member.avoid()
            await self._leave()
        self._early.extend(said[1:])
        if owner:
            return await self._refuse(gone())
        if told := refusals.get("busy") or refusals.get("unavailable"):
            await self._to_client(told, WSMsgType.TEXT)
            return False
        return await self._refuse(no_engine())

    async def _ask(self, member: Member, said: list[WSMessage], keep: str | None) -> str | None:
        """An engine's first answer to the messages in `said`; None if it gives none.

        Further messages of the client are forwarded and added to `said`, because another engine
        may have to get all of them.
        """
        # At once, before other clients choose an engine.
        self._holding.enter_context(member.account.giving())
        engine = await self._fleet.dial(member, self._dialect.path, self._given)
        if engine is None:
            return None
        self._engine, self._member = engine, member
        self._holding.enter_context(self._fleet.kept.held(keep, member))
        answering = asyncio.create_task(engine.receive(), name="csm-tunnel-answer")
        try:
            with suppress(OSError, aiohttp.ClientError):  # then its close is its answer
                for message in said:
                    await _send(engine, message.data, message.type)
                await self._meanwhile(answering, engine, said)
            await asyncio.wait({answering})
            answer = answering.result()
            return str(answer.data) if answer.type is WSMsgType.TEXT else None
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    async def _meanwhile(
        self,
        answering: asyncio.Task[WSMessage],
        engine: aiohttp.ClientWebSocketResponse,
        said: list[WSMessage],
    ) -> None:
        """Returns when the answer arrives or too many messages are held. Raises _Left."""
        while sum(len(one.data) for one in said) <= self._limits.message_bytes:
            await asyncio.wait({answering, self._read()}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                return
            said.append(await self._next())
            await _send(engine, said[-1].data, said[-1].type)

    def _keep_of(self, message: WSMessage) -> tuple[str | None, bool]:
        """The secret in the first message, and whether it resumes a conversation."""
        if not self._dialect.keeps or message.type is not WSMsgType.TEXT:
            return None, False
        try:
            members = json.loads(message.data)
        except (ValueError, RecursionError):
            return None, False
        keep = members.get("keep") if isinstance(members, dict) else None
        if not isinstance(keep, str) or not KEEP.fullmatch(keep):
            return None, False
        return keep, bool(members.get("received"))

    async def _refuse(self, error: CsmError) -> bool:
        self._errors.labels(error.code).inc()
        await self._to_client(self._dialect.told(error, "open"), WSMsgType.TEXT)
        return False

    # Both ways

    async def _pass(self) -> None:
        up = asyncio.create_task(self._upward(), name="csm-tunnel-up")
        down = asyncio.create_task(self._downward(), name="csm-tunnel-down")
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if up.done() and up.exception() is None:  # the engine's last messages are still to come
                await asyncio.wait({down})
            for task in (up, down):
                if task.done():
                    task.result()
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        await self._end()

    async def _upward(self) -> None:
        """Returns when the engine accepts no more. Raises _Left."""
        assert self._engine is not None
        while True:
            message = await self._next()
            try:
                await _send(self._engine, message.data, message.type)
            except (OSError, aiohttp.ClientError):
                return

    async def _downward(self) -> None:
        """Returns when the engine's connection ends. Raises _Left."""
        assert self._engine is not None
        assert self._member is not None
        while (message := await self._engine.receive()).type in _SPOKEN:
            if message.type is WSMsgType.TEXT and refusal_of(message.data) == "busy":
                self._member.avoid()
            await self._to_client(message.data, message.type)
        if message.type is WSMsgType.CLOSE:
            self._close_code = int(message.data or WSCloseCode.OK)

    async def _end(self) -> None:
        """Passes the end of the engine's connection on to the client."""
        self._closed = True
        await self._stop_reading()
        if self._close_code is not None:
            with suppress(OSError, TimeoutError):
                await self._client.close(code=self._close_code)
            return
        assert self._member is not None
        await self._fleet.look(self._member)
        lost = UnavailableError("The engine was lost; open another conversation.")
        await self._farewell(lost, WSCloseCode.TRY_AGAIN_LATER)

    def _read(self) -> asyncio.Task[WSMessage]:
        """The client's next message, read by one task at a time."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._client.receive(), name="csm-tunnel-client")
        return self._reading

    async def _next(self) -> WSMessage:
        """Raises _Left."""
        reading = self._read()
        await asyncio.wait({reading})  # cancelling a plain await would cancel the task too
        message = reading.result()
        if message.type not in _SPOKEN:
            self._closed = message.type is WSMsgType.CLOSE
            raise _Left
        self._reading = None
        return message

    async def _to_client(self, data: str | bytes, kind: WSMsgType) -> None:
        """Raises _Left."""
        try:
            async with asyncio.timeout(self._limits.stalled_reader_s):
                await _send(self._client, data, kind)
        except TimeoutError:
            self._closed = True
            raise _Left from None
        except OSError:
            raise _Left from None

    async def _farewell(self, error: CsmError, code: int) -> None:
        """Send the error and close, in bounded time."""
        self._errors.labels(error.code).inc()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._client.send_str(self._dialect.told(error, None))
                await self._client.close(code=code)

    async def _leave(self) -> None:
        """Release the engine's socket."""
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                with suppress(OSError, aiohttp.ClientError, TimeoutError):
                    await engine.close()
        finally:  # not earlier: the engine frees the conversation before it closes its socket
            self._holding.close()


_SPOKEN = (WSMsgType.TEXT, WSMsgType.BINARY)


def refusal_of(text: str) -> str | None:
    """The code of an engine's error; None for any other message."""
    if len(text) > _ERROR_CHARS or '"code":"' not in text:
        return None
    try:
        code = json.loads(text).get("code")
    except (ValueError, AttributeError):
        return None
    return code if isinstance(code, str) else None


def _refused(answer: str, said: list[WSMessage]) -> str | None:
    """The code by which an engine refused the first message as full; None: it did not."""
    code = refusal_of(answer)
    if code not in ("busy", "unavailable"):
        return None
    return code if len(said) == 1 or '"about":"open"' in answer else None


async def _send(
    socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    data: str | bytes,
    kind: WSMsgType,
) -> None:
    if kind is WSMsgType.TEXT:
        assert isinstance(data, str)
        await socket.send_str(data)
    else:
        assert isinstance(data, bytes)
        await socket.send_bytes(data)


def _cut(engine: aiohttp.ClientWebSocketResponse) -> None:
    """Abort the connection without a close frame, like a lost one."""
    raw = engine.get_extra_info("socket")
    if raw is not None:
        with suppress(OSError):
            raw.shutdown(sockets.SHUT_RDWR)
