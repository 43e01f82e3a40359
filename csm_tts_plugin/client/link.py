"""A connection to an engine that survives lost sockets by sending missed messages again.

Both ends count messages in each direction. After a lost socket the next one begins with `open`,
which names the conversation and how many messages have arrived; both ends continue from there. See
`wire.protocol`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace

import aiohttp

from ..errors import CsmError, EngineError, EngineTimeoutError, RequestError, UnavailableError
from ..wire.protocol import Ack, ClientMessage, ErrorMessage, Open, Opened, encode, parse_server

logger = logging.getLogger("csm_tts_plugin.client.link")

_KEEP_S = 10.0
"""Seconds for which an engine keeps a conversation after its socket was lost."""
_PAUSES_S = (0.0, 0.1, 0.3, 0.6)
"""Pauses in seconds before new connections; the last one is repeated."""
_OPENINGS = 4
"""The most sockets that are tried for the first `open`."""
_ACK_EVERY = 32
"""Messages between acknowledgements: some seconds of speech, which the engine can then drop."""

Dial = Callable[[], Awaitable[aiohttp.ClientWebSocketResponse]]


class LinkLost(Exception):
    """The connection was lost; another try may succeed."""


class Link:
    """The connection of one conversation. `dial` opens a socket; it raises LinkLost if another try
    may succeed, else CsmError.
    """

    def __init__(self, dial: Dial, opening: Open, timeout: float) -> None:
        self._dial = dial
        self._opening = replace(opening, keep=secrets.token_urlsafe(24))
        self._timeout = timeout
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._log: deque[str] = deque()
        self._base = 0
        """Number of messages sent before those in the log."""
        self._next = 0
        """The number of the next message to send."""
        self._received = 0
        self._acknowledged = 0
        self._filled = asyncio.Event()

    @property
    def socket(self) -> aiohttp.ClientWebSocketResponse:
        """The current socket. Must be open."""
        assert self._socket is not None
        return self._socket

    def post(self, message: ClientMessage) -> int:
        """Queue a message; returns its number."""
        self._log.append(encode(message))
        self._filled.set()
        return self._base + len(self._log) - 1

    def arrived(self, number: int) -> None:
        """The engine has answered message `number`: it and those before are no longer kept."""
        while self._log and self._base <= number and self._base < self._next:
            self._log.popleft()
            self._base += 1

    def count(self) -> None:
        """Count a complete message from the engine; acknowledges some of them."""
        self._received += 1
        if self._opening.keep and self._received - self._acknowledged >= _ACK_EVERY:
            self._acknowledged = self._received
            self.post(Ack(self._received))

    async def write(self) -> None:
        """Send posted messages until the connection is lost, which the reader notices too."""
        try:
            while True:
                while self._next < self._base + len(self._log):
                    text = self._log[self._next - self._base]
                    self._next += 1
                    await self.socket.send_str(text)
                self._filled.clear()
                await self._filled.wait()
        except (OSError, aiohttp.ClientError):
            return

    @property
    def broken(self) -> bool:
        """Whether the connection was lost and not closed by the engine."""
        lost = self.socket.close_code in (None, aiohttp.WSCloseCode.ABNORMAL_CLOSURE)
        return lost and self._opening.keep is not None

    async def open(self) -> None:
        """Open the first connection. Raises CsmError."""
        for attempt in range(1, _OPENINGS + 1):
            try:
                return await self._connect()
            except LinkLost as lost:
                if attempt == _OPENINGS:
                    raise UnavailableError(str(lost)) from None
            await asyncio.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])

    async def again(self) -> None:
        """Open another connection for the same conversation. Raises UnavailableError if that fails;
        the caller then opens another conversation.
        """
        loop = asyncio.get_running_loop()
        # A connection that failed by its heartbeat was lost some time before.
        dead = isinstance(self.socket.exception(), TimeoutError)
        window = min(_KEEP_S * (0.25 if dead else 1.0), self._timeout)
        deadline, attempt = loop.time() + window, 0
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    await asyncio.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
                    attempt += 1
                    try:
                        await self._connect()
                    except (LinkLost, EngineTimeoutError):
                        continue
                    logger.info("a conversation goes on over another connection")
                    return
        except (TimeoutError, CsmError):
            raise UnavailableError("The connection to the engine was lost; open another.") from None

    async def aclose(self) -> None:
        if self._socket is not None:
            await self._socket.close()

    async def _connect(self) -> None:
        socket = await self._dial()
        try:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._enter(socket)
            except TimeoutError:
                raise EngineTimeoutError(
                    f"The engine did not open the conversation within {self._timeout:g} s."
                ) from None
            except (OSError, aiohttp.ClientError) as broken:
                raise LinkLost(_lost(broken)) from None
        except BaseException:
            await socket.close()
            raise
        if self._socket is not None:
            await self._socket.close()
        self._socket = socket

    async def _enter(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Send `open` with the conversation's name and continue where both ends were."""
        while True:
            await socket.send_str(encode(self._greeting()))
            answer = await self._answer(socket)
            if isinstance(answer, Opened):
                return self._go_on(answer)
            error = answer.to_exception()
            old = isinstance(error, RequestError) and "unknown field" in error.message
            if not old or self._opening.keep is None or self._received:
                raise error
            self._opening = replace(self._opening, keep=None)  # an engine of an earlier version

    def _greeting(self) -> Open:
        received = self._received or None
        return replace(self._opening, received=received)

    async def _answer(self, socket: aiohttp.ClientWebSocketResponse) -> Opened | ErrorMessage:
        while True:
            message = await socket.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            parsed = parse_server(message.data)
            if isinstance(parsed, Opened):
                return parsed
            if isinstance(parsed, ErrorMessage) and parsed.about in ("open", None):
                return parsed
        if message.type is aiohttp.WSMsgType.BINARY:
            raise EngineError("The engine sent sound that it had not announced.")
        lost = socket.close_code in (None, aiohttp.WSCloseCode.ABNORMAL_CLOSURE)
        gone = "The connection to the engine was lost; open another."
        raise LinkLost(gone) if lost else UnavailableError(gone)

    def _go_on(self, opened: Opened) -> None:
        if opened.received is None:  # a new conversation, which that message is the first of
            if self._received:
                raise UnavailableError("The engine has lost the conversation; open another.")
            self._received = 1
            # The voice is with the engine now, and is to be found nowhere when it is given up.
            self._opening = Open(rate=self._opening.rate, keep=self._opening.keep)
            return
        if not self._base <= opened.received <= self._base + len(self._log):
            raise UnavailableError("The engine lost part of the conversation; open another.")
        self.arrived(opened.received - 1)
        self._next = opened.received
        self._filled.set()


def _lost(broken: Exception) -> str:
    return f"The connection to the engine was lost ({type(broken).__name__})."
