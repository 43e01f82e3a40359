"""Client of engines by their URLs: conversations, status, typed errors.

Independent of LiveKit and torch.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Self

import aiohttp

from .. import telemetry
from ..config import SAMPLE_RATE
from ..errors import (
    AuthError,
    BusyError,
    ConfigError,
    CsmError,
    EngineTimeoutError,
    UnavailableError,
)
from ..wire.load import fullness
from ..wire.patience import patience
from ..wire.protocol import STOCK_VOICE, InlineVoice, Open
from .conversation import Chunk, Conversation, Utterance
from .link import Link, LinkLost

__all__ = ["Chunk", "Conversation", "EngineClient", "InlineVoice", "Utterance"]

_MESSAGE_BYTES = 4 * 2**20
_CLOSE_SECONDS = 1.0
_HEARTBEAT_SECONDS = 15.0
_ASK_S = 0.5
"""Time for engines to report their load before a conversation is opened."""


class EngineClient:
    """The engines at `urls` (http or ws, tried in turn), with one `key` for all of them.

    `connect_timeout` limits connecting to an engine, `timeout` each wait for its answer, in
    seconds.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        key: str | None = None,
        connect_timeout: float = 2.0,
        timeout: float = 10.0,
    ) -> None:
        given = [urls] if isinstance(urls, str) else list(urls)
        if not given:
            raise ConfigError("No engine URL given; name one, such as http://127.0.0.1:8090.")
        self._urls = [_base(url) for url in given]
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None
        self._conversations: set[Conversation] = set()
        self._avoided: dict[str, float] = {}
        """For each engine, the time on the loop's clock until which it is tried last."""
        self._behind: int | None = None
        """The number of engines behind the one URL, once it was asked for."""
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def count_engines(self) -> int:
        """The number of engines, those behind a router (`serve --devices`) included."""
        if len(self._urls) > 1:
            return len(self._urls)
        if self._behind is None:
            try:
                status = await self._status_of(self._urls[0], self._connect_timeout)
            except UnavailableError:
                return 1
            listed = status.get("engines")
            self._behind = max(1, len(listed)) if isinstance(listed, list) else 1
        return self._behind

    async def conversation(
        self,
        voice: str | InlineVoice = STOCK_VOICE,
        *,
        rate: int = SAMPLE_RATE,
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Conversation:
        """Open a conversation on the first engine that accepts it; the least busy is tried first.

        `rate` is one of `config.OUTPUT_RATES`, in Hz; sampling options of None are the checkpoint's
        defaults. Raises AuthError, RequestError; BusyError, UnavailableError, EngineTimeoutError
        when no engine accepts it.
        """
        opening = Open(voice, rate, None, temperature, top_k, seed, telemetry.traceparent())
        failures: list[CsmError] = []
        for url in await self._least_busy_first():
            try:
                return await self._open_at(url, opening)
            except CsmError as error:
                if not error.retryable:
                    raise
                failures.append(error)
        busy = [error for error in failures if isinstance(error, BusyError)]
        raise (busy or failures)[-1]

    async def status(self) -> dict[str, Any]:
        """The answer of `/readyz` (ready, detail, slots, ...) of the first engine that answers.

        Raises UnavailableError when none answers.
        """
        error: CsmError | None = None
        for url in self._urls:
            try:
                return await self._status_of(url, self._connect_timeout)
            except UnavailableError as unreachable:
                error = unreachable
        assert error is not None
        raise error

    async def aclose(self) -> None:
        """Close all open conversations and the connections."""
        self._closed = True
        await asyncio.gather(*(open.aclose() for open in list(self._conversations)))
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def avoid(self, url: str, seconds: float) -> None:
        """Try this engine last for `seconds`, whatever load it reports, because it has refused."""
        self._avoided[url] = asyncio.get_running_loop().time() + seconds

    async def _least_busy_first(self) -> list[str]:
        """The URLs by load; engines that do not answer in time are last, equal ones keep their
        order.
        """
        if len(self._urls) == 1:
            return self._urls
        now = asyncio.get_running_loop().time()

        async def ask(url: str) -> tuple[bool, float]:
            avoided = self._avoided.get(url, 0.0) > now
            try:
                status = await self._status_of(url, min(_ASK_S, self._connect_timeout))
            except UnavailableError:
                return avoided, math.inf
            return avoided, fullness(status)

        found = await asyncio.gather(*(ask(url) for url in self._urls))
        return [url for _, url in sorted(zip(found, self._urls, strict=True), key=itemgetter(0))]

    async def _status_of(self, url: str, seconds: float) -> dict[str, Any]:
        try:
            async with (
                patience(seconds),
                self._http().get(f"{url}/readyz", headers=self._headers) as answer,
            ):
                return dict(await answer.json())
        except (OSError, aiohttp.ClientError, ValueError, TypeError) as cause:
            raise _unreachable(url, cause) from None

    async def _open_at(self, url: str, opening: Open) -> Conversation:
        link = Link(partial(self._dial, url), opening, self._timeout)
        await link.open()
        return Conversation(url, link, opening, self._timeout, self._conversations)

    async def _dial(self, url: str) -> aiohttp.ClientWebSocketResponse:
        """Connect to an engine. Raises LinkLost if another try may succeed, else CsmError."""
        try:
            async with patience(self._connect_timeout):
                return await self._http().ws_connect(
                    f"{url}/v1/stream",
                    headers=self._headers,
                    compress=0,
                    heartbeat=_HEARTBEAT_SECONDS,
                    max_msg_size=_MESSAGE_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
                )
        except aiohttp.WSServerHandshakeError as refusal:
            raise _refused(url, refusal) from None
        except TimeoutError:
            raise EngineTimeoutError(
                f"The engine at {url} did not answer within {self._connect_timeout:g} s."
            ) from None
        except aiohttp.ClientConnectorError as cause:
            raise _unreachable(url, cause) from None
        except (ConnectionError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as cause:
            raise LinkLost(str(_unreachable(url, cause))) from None
        except (OSError, aiohttp.ClientError, ValueError) as cause:
            raise _unreachable(url, cause) from None

    def _http(self) -> aiohttp.ClientSession:
        if self._closed:
            raise UnavailableError("The engine client is closed; make a new one.")
        if self._loop not in (None, asyncio.get_running_loop()):
            raise ConfigError(
                "This engine client was used in another event loop: make one for each loop."
            )
        self._loop = asyncio.get_running_loop()
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session


def _base(url: str) -> str:
    """`url` normalised to `http(s)://host:port`. Raises ConfigError."""
    scheme, found, rest = url.strip().partition("://")
    if not found:
        scheme, rest = "http", scheme
    rest = rest.rstrip("/")
    web = {"http": "http", "https": "https", "ws": "http", "wss": "https"}.get(scheme.lower())
    if web is None or not rest or any(char.isspace() for char in rest):
        raise ConfigError(f"{url!r} is no engine URL; write one like http://127.0.0.1:8090.")
    return f"{web}://{rest}"


def _unreachable(url: str, cause: Exception) -> UnavailableError:
    why = "it did not answer in time" if isinstance(cause, TimeoutError) else type(cause).__name__
    return UnavailableError(
        f"No engine at {url} ({why}); start one with `python -m csm_tts_plugin serve`."
    )


def _refused(url: str, refusal: aiohttp.WSServerHandshakeError) -> CsmError:
    if refusal.status in (401, 403):
        return AuthError(f"The engine at {url} refused the key; set CSM_ENGINE_KEY to its key.")
    retry_after = refusal.headers.get("Retry-After", "") if refusal.headers else ""
    after = float(retry_after) if retry_after.isdecimal() else None
    if refusal.status == 429:
        return BusyError(f"The engine at {url} is busy.", retry_after=after)
    if refusal.status == 503:
        return UnavailableError(f"The engine at {url} takes no calls now.", retry_after=after)
    return UnavailableError(
        f"What listens at {url} is no engine (status {refusal.status}); check the URL."
    )
