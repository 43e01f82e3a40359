"""One client's conversation over `/v1/stream`, between its socket and the engine.

Everything that the engine holds for it is freed in one place, `_release`, as soon as the socket is
closed, the client asks for it, or anything fails. If the client asked for it, the conversation
survives a lost socket for some seconds, and the engine goes on in the meantime.
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
    UnavailableError,
)
from ..wire.protocol import (
    Ack,
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
from .moves import Moves, gone
from .outbox import Outbox
from .relay import Relay
from .state import ServerState
from .voices import find

logger = logging.getLogger("csm_tts_plugin.server")

_FAREWELL_S = 1.0
"""Time for a client to read the last message and to close, before the connection is aborted."""
_RETRY_S = 1.0
"""`retry_after` of a sentence that was given up: half a sentence of another stream."""


class Session:
    """Runs in the task of its HTTP request; the relays of its utterances report to it."""

    def __init__(self, state: ServerState, socket: web.WebSocketResponse, key: int | None) -> None:
        """`key`: the index of the client's key; None if the key is expected with `open`."""
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
        """Utterances by the client's ids, in the order in which they are spoken."""
        self._spoken: OrderedDict[str, str] = OrderedDict()
        """The engine's ids of the last utterances by the client's ids."""
        self._deadline: asyncio.TimerHandle | None = None
        """The timer of the utterance that is next to speak."""
        self._continues = False
        """The reply goes on, although all utterances asked for may have ended."""
        self._failure: CsmError | None = None
        self._ended = asyncio.Event()
        self._keep: str | None = None
        """The client's secret for resuming the conversation."""
        self._received = 0
        """Number of messages from the client, without the first `open`."""
        self._handling: asyncio.Task[None] | None = None
        self._closed = False
        """The client has closed its socket; it was not lost."""
        self._moves = Moves()

    @property
    def speaking(self) -> bool:
        return bool(self._relays) or self._continues

    def ended(self, relay: Relay) -> None:
        self._relays.pop(relay.id, None)
        self._next_turn()
        self._state.changed.set()

    def fail(self, error: CsmError) -> None:
        """End the session: free the engine now and report `error` to the client when possible."""
        if self._failure is None:
            self._failure = error
            self._release()

    async def run(self) -> None:
        """Returns when the client leaves or the session ends."""
        self._state.sessions.add(self)
        try:
            await self._serve()
            while await self._another_socket():
                await self._serve()
        finally:
            self._release()
            self._moves.leave()
            if self._handling is not None:
                self._handling.cancel()
            self._state.sessions.discard(self)
            self._state.changed.set()

    async def _serve(self) -> None:
        """Serve one socket until it is lost, another one replaces it, or the session ends."""
        sender = asyncio.create_task(self._outbox.run(), name="csm-send")
        parts = [
            sender,
            asyncio.create_task(self._receive(), name="csm-receive"),
            asyncio.create_task(self._ended.wait(), name="csm-ended"),
            asyncio.create_task(self._moves.wait(), name="csm-moving"),
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stalled = sender.done() and isinstance(sender.exception(), TimeoutError)
            if stalled or not self._may_go_on():
                self._release()
                await self._farewell(sender)
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    def _may_go_on(self) -> bool:
        going = not self._ended.is_set() and not self._closed and not self._state.draining
        return going and self._keep is not None and self._conversation is not None

    async def _another_socket(self) -> bool:
        """Whether the client resumes the conversation in time."""
        if not self._may_go_on():
            return False
        dead = isinstance(self._socket.exception(), TimeoutError)  # silent for a while already
        keep_s = self._limits.keep_s * (0.25 if dead else 1.0)
        ended = asyncio.create_task(self._ended.wait(), name="csm-ended")
        try:
            move = await self._moves.next(ended, keep_s)
        finally:
            ended.cancel()
        if move is None or self._conversation is None:
            return False
        opened = Opened(self._conversation, self._opening.rate, self._received)
        try:
            self._outbox.move(move.socket, move.received, encode(opened))
        except UnavailableError as error:
            self._moves.leave(error)
            return False
        self._socket = move.socket
        self._state.metrics.resumed.inc()
        return True

    def take_over(
        self, socket: web.WebSocketResponse, key: int, received: int
    ) -> asyncio.Future[None]:
        if key != self._key or self._ended.is_set() or self._conversation is None:
            raise gone()
        return self._moves.ask(socket, received)

    async def _farewell(self, sender: asyncio.Task[None]) -> None:
        """Report the error if the client is still there, then close, in bounded time."""
        if self._failure is not None and not sender.done():
            self._outbox.drop_sound()
            self._tell(self._failure)
            self._outbox.finish()
            await asyncio.wait([sender], timeout=_FAREWELL_S)
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._socket.close(code=_close_code(self._failure))

    def _release(self) -> None:
        """Free all that the engine holds for this client; its later messages are ignored."""
        self._ended.set()
        relays, self._relays = self._relays, {}
        for relay in relays.values():
            relay.detach()
        self._continues = False
        self._next_turn()
        if self._keep is not None and self._state.kept.get(self._keep) is self:
            del self._state.kept[self._keep]
        if self._admitted is not None:
            self._admitted.close()
        if self._conversation is not None:
            self._state.engine.close(self._conversation)
            logger.info("conversation %s closed", self._conversation)
            self._conversation = None

    async def _receive(self) -> None:
        if self._handling is not None:  # begun over the socket before this one
            await asyncio.wait([self._handling])
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
                # A message that has arrived completely is processed even if the socket is lost.
                self._handling = asyncio.create_task(self._take(message.data), name="csm-take")
                await asyncio.shield(self._handling)
            elif message.type is WSMsgType.BINARY:
                self._tell(RequestError("Binary messages go to the client only."))
            else:
                self._closed = message.type is WSMsgType.CLOSE
                return None

    def _patience(self) -> float:
        return self._limits.session_idle_s if self._conversation else self._limits.open_s

    async def _take(self, text: str) -> None:
        """Process one message. An error in it is reported to the client and ends nothing else."""
        if self._ended.is_set():
            return
        self._received += self._conversation is not None
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
            case Ack():
                self._outbox.acknowledge(message.received)
            case Close():
                self._ended.set()

    async def _open(self, message: Open) -> None:
        if self._key is None:
            self._key = which_key(message.key, self._state.config.keys)
        if self._key is None:
            raise wrong_key()
        if self._conversation is None and await self._went_on(message, self._key):
            return
        self._state.check_open()
        engine = self._state.engine
        if self._admitted is None:
            self._admitted = self._state.admission.admit(self._key)
        prompt = await find(message.voice, self._state)
        if self._ended.is_set():  # while the voice was read
            return
        sampling = Sampling(message.temperature, message.top_k, message.seed)
        if self._conversation is None:
            self._conversation = engine.open(prompt, sampling)
            logger.info("conversation %s opened", self._conversation)
            if message.keep is not None:
                self._keep, self._outbox.keeps = message.keep, True
                self._state.kept[message.keep] = self
        else:
            engine.set_voice(self._conversation, prompt)
        self._opening, self._sampling = message, sampling
        self._outbox.put(encode(Opened(self._conversation, message.rate)))

    async def _went_on(self, message: Open, key: int) -> bool:
        """Whether `message` resumes a kept conversation; then waits until that no longer uses this
        socket.

        Raises UnavailableError if the conversation is no longer kept.
        """
        kept = None if message.keep is None else self._state.kept.get(message.keep)
        if kept is None:
            if message.received:
                raise gone()
            return False
        left = kept.take_over(self._socket, key, message.received or 0)
        self._state.sessions.discard(self)  # the other one answers for this socket
        try:
            await left
        except UnavailableError:
            self._state.sessions.add(self)
            raise
        self._ended.set()
        return True

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
            parent=message.traceparent or self._opening.traceparent,
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
        """After an utterance began or ended: start the deadline of the next one, and hold a place
        while there is one.
        """
        if self._deadline is not None:
            self._deadline.cancel()
        turn = next(iter(self._relays.values()), None)
        if turn is not None and not turn.begun:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(turn.deadline_s, self._too_late, turn)
        if turn is None and self._admitted is not None:
            self._admitted.rest()

    def _too_late(self, relay: Relay) -> None:
        """Cancel an utterance after its deadline, when the client no longer waits for it."""
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
