"""One client's conversation, from its socket to the engine and back.

Everything the engine holds for it is given back in one place, `_release`, at once when the socket
is gone, the client asks, or anything fails.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial

from aiohttp import WSCloseCode, WSMsgType, web

from ..audio.reference import decode_reference
from ..engine.api import Sampling, Turn
from ..errors import (
    AuthError,
    BusyError,
    CsmError,
    EngineTimeoutError,
    RequestError,
)
from ..protocol import (
    Cancel,
    ClientMessage,
    Close,
    ErrorMessage,
    Open,
    Opened,
    Say,
    TurnMessage,
    addressed,
    encode,
    parse_client,
)
from .access import same_key, wrong_key
from .faults import as_csm_error
from .outbox import Outbox
from .relay import Relay
from .state import ServerState
from .voices import resolve

logger = logging.getLogger("csm_tts_plugin.server")

_FAREWELL_S = 1.0
"""For a client to take a last word and to close, before the connection is cut."""


class Session:
    """Runs in the task of its request; the relays of its utterances report to it."""

    def __init__(
        self, state: ServerState, socket: web.WebSocketResponse, *, authorized: bool
    ) -> None:
        self._state = state
        self._socket = socket
        self._authorized = authorized
        self._limits = state.config.limits
        self._outbox = Outbox(socket, self._limits)
        self._conversation: str | None = None
        self._opening = Open()
        self._sampling = Sampling()
        self._relays: dict[str, Relay] = {}
        self._continues = False
        self._failure: CsmError | None = None
        self._ended = asyncio.Event()

    @property
    def speaking(self) -> bool:
        return bool(self._relays)

    def ended(self, relay: Relay) -> None:
        self._relays.pop(relay.id, None)
        self._state.changed.set()

    def fail(self, error: CsmError) -> None:
        """End the session: the engine is freed now, the client told as soon as it can be."""
        if self._failure is None:
            self._failure = error
            self._release()

    async def run(self) -> None:
        """Until the client leaves, or something ends it."""
        sender = asyncio.create_task(self._outbox.run(), name="csm-send")
        parts = [
            sender,
            asyncio.create_task(self._receive(), name="csm-receive"),
            asyncio.create_task(self._ended.wait(), name="csm-ended"),
        ]
        self._state.sessions.add(self)
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._release()
            await self._farewell(sender)
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            self._state.sessions.discard(self)
            self._state.changed.set()

    async def _farewell(self, sender: asyncio.Task[None]) -> None:
        """Tell why, if the client still listens; then close, in bounded time."""
        if self._failure is not None and not sender.done():
            self._outbox.drop_sound()
            self._tell(self._failure)
            self._outbox.finish()
            await asyncio.wait([sender], timeout=_FAREWELL_S)
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._socket.close(code=_close_code(self._failure))

    def _release(self) -> None:
        """Give back all that the engine holds for this client; nothing is taken from it after."""
        self._ended.set()
        relays, self._relays = self._relays, {}
        for relay in relays.values():
            relay.detach()
        if self._conversation is not None:
            self._state.engine.close(self._conversation)
            logger.info("conversation %s closed", self._conversation)
            self._conversation = None

    async def _receive(self) -> None:
        while True:
            try:
                message = await self._socket.receive(timeout=self._patience())
            except TimeoutError:
                if not self._relays:
                    return self.fail(
                        EngineTimeoutError("Nothing was said for too long; open another.")
                    )
                continue
            if message.type is WSMsgType.TEXT:
                await self._take(message.data)
            elif message.type is WSMsgType.BINARY:
                self._tell(RequestError("Binary messages go to the client only."))
            else:
                return None

    def _patience(self) -> float:
        return self._limits.session_idle_s if self._conversation else self._limits.open_s

    async def _take(self, text: str) -> None:
        """One message; what is wrong with it is told to the client and ends nothing else."""
        if self._ended.is_set():
            return
        try:
            await self._handle(parse_client(text, self._limits))
        except AuthError as error:
            self.fail(error)
        except Exception as error:
            id, about = addressed(text, self._limits)
            self._tell(as_csm_error(error, logger), id, None if id else about)

    async def _handle(self, message: ClientMessage) -> None:
        if isinstance(message, Open):
            return await self._open(message)
        if self._conversation is None:
            raise RequestError("The first message must be `open`.")
        match message:
            case TurnMessage():
                await self._turn(message)
            case Say():
                self._say(message)
            case Cancel():
                self._cancel(message.id)
            case Close():
                self._ended.set()

    async def _open(self, message: Open) -> None:
        if not self._authorized and not same_key(message.key, self._state.config.key):
            raise wrong_key()
        self._authorized = True
        self._state.check_open()
        engine = self._state.engine
        prompt = await asyncio.to_thread(resolve, message.voice, self._state.config, engine.info())
        if self._ended.is_set():  # while the voice was read
            return
        sampling = Sampling(message.temperature, message.top_k, message.seed)
        if self._conversation is None:
            self._conversation = engine.open(prompt, sampling)
            logger.info("conversation %s opened", self._conversation)
        else:
            engine.set_voice(self._conversation, prompt)
        self._opening, self._sampling = message, sampling
        self._outbox.put(encode(Opened(self._conversation, message.rate)))

    async def _turn(self, message: TurnMessage) -> None:
        audio = None
        if message.audio is not None:
            decode = partial(decode_reference, message.audio, limits=self._limits)
            audio = await asyncio.to_thread(decode)
        if self._conversation is not None:
            turn = Turn(message.who, message.text, audio)
            self._state.engine.add_turn(self._conversation, turn)

    def _say(self, message: Say) -> None:
        assert self._conversation is not None
        if not self._continues:
            self._state.check_open()
        if message.id in self._relays:
            raise RequestError("This utterance's id is in use; take another.")
        if len(self._relays) >= self._limits.utterances_per_conversation:
            raise BusyError(
                f"{len(self._relays)} sentences of this conversation wait already.", retry_after=1.0
            )
        relay = Relay(message.id, self._opening.rate, self, self._outbox, self._state.metrics)
        relay.engine_id = self._state.engine.say(
            self._conversation,
            message.text,
            partial(self._state.bridge.post, relay.receive),
            sampling=self._sampling,
            max_seconds=message.max_seconds,
            more=message.more,
        )
        self._relays[message.id] = relay
        self._continues = message.more

    def _cancel(self, id: str) -> None:
        self._outbox.drop_sound(id)  # also of one that the engine has made, but not yet sent
        relay = self._relays.get(id)
        if relay is not None and relay.engine_id is not None:
            relay.silence()
            self._state.engine.cancel(relay.engine_id)
            self._state.metrics.cancels.inc()

    def _tell(self, error: CsmError, id: str | None = None, about: str | None = None) -> None:
        self._state.metrics.errors.labels(error.code).inc()
        self._outbox.put(encode(ErrorMessage.of(error, id, about)))


def _close_code(failure: CsmError | None) -> int:
    if failure is None:
        return WSCloseCode.OK
    return WSCloseCode.POLICY_VIOLATION if not failure.retryable else WSCloseCode.TRY_AGAIN_LATER
