"""One client's conversation, from its socket to the engine and back.

Everything the engine holds for it is given back in one place, `_release`, at once when the socket
is gone, the client asks, or anything fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from math import inf

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
from .access import which_key, wrong_key
from .admission import Admitted
from .faults import as_csm_error
from .outbox import Outbox
from .relay import Relay
from .state import ServerState
from .voices import resolve

logger = logging.getLogger("csm_tts_plugin.server")

_FAREWELL_S = 1.0
"""For a client to take a last word and to close, before the connection is cut."""
_RETRY_S = 1.0
"""After a sentence was given up: half a sentence of somebody else's."""


class Session:
    """Runs in the task of its request; the relays of its utterances report to it."""

    def __init__(self, state: ServerState, socket: web.WebSocketResponse, key: int | None) -> None:
        """`key`: the number of the client's; None where it is still to come, with `open`."""
        self._state = state
        self._socket = socket
        self._key = key
        self._limits = state.config.limits
        self._outbox = Outbox(socket, self._limits)
        self._admitted: Admitted | None = None
        self._conversation: str | None = None
        self._opening = Open()
        self._sampling = Sampling()
        self._relays: dict[str, Relay] = {}
        """In the order in which they are spoken."""
        self._spoken: OrderedDict[str, str] = OrderedDict()
        """The engine's names of the last utterances by the client's."""
        self._deadline: asyncio.TimerHandle | None = None
        """Of the one whose turn it is."""
        self._continues = False
        """The reply goes on, although all that was said of it may have been spoken."""
        self._failure: CsmError | None = None
        self._ended = asyncio.Event()

    @property
    def speaking(self) -> bool:
        return bool(self._relays) or self._continues

    def ended(self, relay: Relay) -> None:
        self._relays.pop(relay.id, None)
        self._next_turn()
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
        self._continues = False
        self._next_turn()
        if self._admitted is not None:
            self._admitted.close()
        if self._conversation is not None:
            self._state.engine.close(self._conversation)
            logger.info("conversation %s closed", self._conversation)
            self._conversation = None

    async def _receive(self) -> None:
        while True:
            await self._outbox.room()
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
                self._cancel(message.id, message.heard)
            case Close():
                self._ended.set()

    async def _open(self, message: Open) -> None:
        if self._key is None:
            self._key = which_key(message.key, self._state.config.keys)
        if self._key is None:
            raise wrong_key()
        self._state.check_open()
        engine = self._state.engine
        if self._admitted is None:
            self._admitted = self._state.admission.admit(self._key)
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
        self._check_say(message)
        relay = Relay(
            message.id,
            self._opening.rate,
            self,
            self._outbox,
            self._state.metrics,
            first=not self._relays,
            deadline_s=min(message.deadline or inf, self._limits.answer_s),
        )
        try:
            self._hand_over(relay, message)
        finally:
            self._next_turn()

    def _check_say(self, message: Say) -> None:
        if not self._continues:
            self._state.check_open()
        if message.id in self._relays:
            raise RequestError("This utterance's id is in use; take another.")
        if len(self._relays) >= self._limits.utterances_per_conversation:
            raise BusyError(
                f"{len(self._relays)} sentences of this conversation wait already.", retry_after=1.0
            )

    def _hand_over(self, relay: Relay, message: Say) -> None:
        assert self._conversation is not None
        assert self._admitted is not None
        self._admitted.speak()
        relay.engine_id = self._state.engine.say(
            self._conversation,
            message.text,
            partial(self._state.bridge.post, relay.receive),
            sampling=self._sampling,
            max_seconds=message.max_seconds,
            more=message.more,
        )
        self._relays[relay.id] = relay
        self._spoken[relay.id] = relay.engine_id
        while len(self._spoken) > 2 * self._limits.utterances_per_conversation:
            self._spoken.popitem(last=False)
        self._continues = message.more

    def _next_turn(self) -> None:
        """Whatever began or ended: watch the one whose turn it is; hold a place while there is
        one."""
        if self._deadline is not None:
            self._deadline.cancel()
        turn = next(iter(self._relays.values()), None)
        if turn is not None and not turn.begun:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(turn.deadline_s, self._too_late, turn)
        if turn is None and self._admitted is not None:
            self._admitted.rest()

    def _too_late(self, relay: Relay) -> None:
        """Past its deadline nobody waits for it any more: its slot, or its turn, goes to others."""
        if relay.begun or self._relays.get(relay.id) is not relay:
            return
        assert relay.engine_id is not None
        relay.detach()
        self._state.engine.cancel(relay.engine_id)
        late = EngineTimeoutError(
            f"It had no sound within its {relay.deadline_s:g} s, perhaps for want of a free slot.",
            retry_after=_RETRY_S,
        )
        self._tell(late, relay.id)
        self.ended(relay)

    def _cancel(self, id: str, heard: int | None) -> None:
        self._continues = False  # a client that cancels has stopped its reply
        self._outbox.drop_sound(id)  # also of one that the engine has made, but not yet sent
        relay = self._relays.get(id)
        if relay is not None and relay.engine_id is not None:
            relay.silence()
            self._state.engine.cancel(relay.engine_id)
            self._state.metrics.cancels.inc()
        if heard is not None and (known := self._spoken.get(id)) and self._conversation:
            self._state.engine.keep_heard(self._conversation, known, heard)

    def _tell(self, error: CsmError, id: str | None = None, about: str | None = None) -> None:
        self._state.metrics.errors.labels(error.code).inc()
        self._outbox.put(encode(ErrorMessage.of(error, id, about)))


def _close_code(failure: CsmError | None) -> int:
    if failure is None:
        return WSCloseCode.OK
    return WSCloseCode.POLICY_VIOLATION if not failure.retryable else WSCloseCode.TRY_AGAIN_LATER
