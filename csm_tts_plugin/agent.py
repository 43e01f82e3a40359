"""The caller's voice for any agent: a `livekit.agents.Agent` to derive from.

`CallerVoiceAgent` obtains the caller's consent, makes reference audio out of their turns and speaks
the replies in their voice. Consent, voice and telephone line of a call belong to its session and
not to an agent, so that they survive a handoff.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from livekit.agents import (
    Agent,
    AgentSession,
    AgentStateChangedEvent,
    APIError,
    APIStatusError,
    ConversationItemAddedEvent,
    ErrorEvent,
    JobContext,
    ModelSettings,
    UserStateChangedEvent,
    function_tool,
    llm,
    stt,
    tts,
)
from livekit.agents.types import NOT_GIVEN, NotGivenOr
from livekit.agents.utils import is_given
from livekit.agents.voice.io import PlaybackFinishedEvent

from livekit import rtc

from .caller.background import Background
from .caller.consent import ATTRIBUTE
from .caller.figures import TurnFigures
from .caller.policy import ConsentPolicy
from .caller.telephone import Telephone
from .caller.voice import CallerVoice, spoken_words
from .config import AgentConfig
from .errors import ConfigError
from .offline.endings import tells_cuts, whole_sentences
from .tts import TTS

logger = logging.getLogger("csm_tts_plugin.agent")

SIP = rtc.ParticipantKind.PARTICIPANT_KIND_SIP


class CallerVoiceAgent(Agent):
    """Replies in the caller's own voice, with their consent.

    ctx: the job's context, as LiveKit gives it to the entrypoint.
    consent: whether and how the caller is asked; None: the policy of the previous agent in the
        session, else one question in English.
    clone_caller: False: replies stay in the voice of the TTS, and a consenting caller's turns are
        context only; None: the value of the previous agent, else True.
    greeting: spoken when the caller can hear it, on a telephone after the call is answered; None:
        no greeting.
    tts: a `csm_tts_plugin.TTS`; default: the session's TTS, which must be one too.
    Other arguments are those of `livekit.agents.Agent`.

    Overridden nodes and `on_enter` must call `super()`. Raises ConfigError for another TTS.
    """

    LLM_FAILED = "Sorry, I lost my thread there; please say that once more."
    """Spoken instead of a reply when the LLM fails."""
    NOT_HEARD = "Sorry, I did not hear that; please say it once more."
    """Spoken when speech-to-text fails."""

    def __init__(
        self,
        ctx: JobContext,
        *,
        instructions: str,
        consent: ConsentPolicy | None = None,
        clone_caller: bool | None = None,
        greeting: str | None = None,
        tts: NotGivenOr[TTS] = NOT_GIVEN,
        **options: Any,
    ) -> None:
        if is_given(tts):
            _ours(tts)
        super().__init__(instructions=instructions, tts=tts, **options)
        self.ctx = ctx
        self.consent_policy = consent
        self.clone_caller = clone_caller
        self.greeting = greeting

    # For subclasses to use or override ------------------------------------------------------------

    async def on_voice_changed(self, name: str) -> None:
        """The replies are in another voice from the next sentence on: `caller`, `stock`, the id of
        a stored voice, or `custom` for the `Voice` that the TTS was made with.
        """

    @property
    def voice_name(self) -> str:
        """The voice of the replies, with the names of `on_voice_changed`."""
        return self._call.voice.name

    @property
    def consent_question(self) -> str:
        """For an agent that asks by itself (`ConsentPolicy(ask=False)`): a reply that contains this
        text counts as the question.
        """
        return self._call.voice.consent.question

    async def caller_listens(self) -> bool:
        """Waits until the caller is in the room and, on a telephone, has answered. Returns False if
        the caller hung up or did not answer within a minute.
        """
        return await self._call.opened()

    # LiveKit's nodes ------------------------------------------------------------------------------

    async def on_enter(self) -> None:
        try:
            call = self._call
        except ConfigError as error:
            logger.error("%s", error)
            self.ctx.shutdown(str(error))
            raise
        call.later(self._greet())

    async def stt_node(
        self, audio: AsyncIterable[rtc.AudioFrame], model_settings: ModelSettings
    ) -> AsyncIterator[stt.SpeechEvent]:
        call = self._call

        async def recorded() -> AsyncIterator[rtc.AudioFrame]:
            async for frame in audio:
                call.voice.recorder.push(bytes(frame.data), frame.sample_rate)
                yield frame

        async for event in Agent.default.stt_node(self, recorded(), model_settings):
            if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT and event.alternatives:
                call.look_at_caller()
                heard = event.alternatives[0]
                words = spoken_words(heard.words or [])
                call.voice.heard(heard.text, words, event.speech_end_time or None)
            yield event

    async def llm_node(
        self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
    ) -> AsyncIterator[Any]:
        reply, called = "", False
        tells_cuts(self.llm or self.session.llm)
        try:
            chunks = Agent.default.llm_node(self, chat_ctx, tools, model_settings)
            async for chunk in whole_sentences(chunks, self.LLM_FAILED, self._call.figures.llm):
                delta = chunk.delta if isinstance(chunk, llm.ChatChunk) else None
                text = chunk if isinstance(chunk, str) else (delta and delta.content)
                reply += text or ""
                called = called or bool(delta and delta.tool_calls)
                yield chunk
        except APIError as error:
            logger.warning("the LLM failed (%s); the caller is told", type(error).__name__)
            yield self.LLM_FAILED
            return
        if not called and (question := self._call.voice.question_after(reply)):
            yield question

    async def tts_node(
        self, text: AsyncIterable[str], model_settings: ModelSettings
    ) -> AsyncIterator[rtc.AudioFrame]:
        call = self._call
        call.replies()

        async def noted() -> AsyncIterator[str]:
            said = ""
            async for piece in text:
                said += piece
                call.voice.consent.saying(said)
                yield piece

        async for frame in Agent.default.tts_node(self, noted(), model_settings):
            rate = frame.sample_rate
            call.voice.own.push(bytes(frame.data), rate)
            if silence := call.line.lead_in(rate):
                yield rtc.AudioFrame(silence, rate, 1, len(silence) // 2)
            yield frame

    @function_tool
    async def use_my_voice(self) -> str:
        """Call this when the caller agrees, asked for it, to replies in their own voice."""
        agreed = self._call.voice.consent.understood()
        self._call.voice.follow()
        return "They agreed." if agreed else "They have not agreed; do not ask them for it."

    @function_tool
    async def stop_using_my_voice(self) -> str:
        """Call this when the caller does not want their own voice to be used any more."""
        self._call.voice.consent.stop()
        self._call.voice.follow()
        return "Their voice is forgotten."

    # ----------------------------------------------------------------------------------------------

    async def _greet(self) -> None:
        call = self._call
        if await call.opened() and self.greeting and call.agent is self:
            self.session.say(self.greeting)

    @property
    def _call(self) -> _Call:
        """The state that this session's agents share; this agent becomes its current one."""
        call = _calls.get(self.session)
        if call is None:
            call = _calls[self.session] = _Call(self)
        elif call.agent is not self:
            call.take_over(self)
        return call


def _ours(found: object) -> TTS:
    if isinstance(found, TTS):
        return found
    what = "none" if found is None or not is_given(found) else type(found).__qualname__
    raise ConfigError(
        "CallerVoiceAgent needs csm_tts_plugin.TTS as the tts of the agent or of its AgentSession,"
        f" found {what}; write AgentSession(tts=csm_tts_plugin.TTS())."
    )


def _tts_of(agent: CallerVoiceAgent) -> TTS:
    return _ours(agent.tts if is_given(agent.tts) else agent.session.tts)


class _Call:
    """One session: the caller's consent and voice, the line, and the figures of each reply."""

    def __init__(self, agent: CallerVoiceAgent) -> None:
        self.agent = agent
        self._ctx, self._room = agent.ctx, agent.ctx.room
        self._session = agent.session
        self._speech = self._replying = _tts_of(agent)
        self._spoken = {self._speech}
        self.line = Telephone(SIP, self._hung_up, AgentConfig().phone_lead_in_s)
        clones = agent.clone_caller is not False
        self.voice = CallerVoice(
            self._speech, self._changed, clones=clones, policy=agent.consent_policy
        )
        self._spoken_in = self.voice.name
        self.figures = TurnFigures()
        self.later = Background().start
        self._watch(agent.session)
        self._opening = asyncio.create_task(self._open(), name="csm-call-opening")

    def _watch(self, session: AgentSession[Any]) -> None:
        session.on("user_state_changed", self._on_user_state)
        session.on("agent_state_changed", self._on_agent_state)
        session.on("conversation_item_added", self._on_item)
        session.on("error", self._on_error)
        session.on("close", lambda _: self._closed())
        if (output := session.output.audio) is not None:
            output.on("playback_finished", self._on_played)
        self._room.on("participant_attributes_changed", lambda *_: self.look_at_caller())
        self._room.on("sip_dtmf_received", self._on_key)
        self.line.watch(self._room)

    def take_over(self, agent: CallerVoiceAgent) -> None:
        """Called after a handoff to another agent, which may have its own TTS."""
        self._speech, self.agent = _tts_of(agent), agent
        self._spoken.add(self._speech)
        if agent.consent_policy is not None:
            self.voice.consent.policy = agent.consent_policy
        clones = self.voice.clones if agent.clone_caller is None else agent.clone_caller
        self.voice.speak_through(self._speech, clones=clones)

    def replies(self) -> None:
        """A reply begins."""
        self.voice.consent.unheard()  # of an earlier, interrupted reply
        self._replying = self._speech

    # The caller and the line ----------------------------------------------------------------------

    async def opened(self) -> bool:
        """Whether the caller can hear the agent; waits for it."""
        return await asyncio.shield(self._opening)

    async def _open(self) -> bool:
        """Waits for the caller and, on a telephone, for the answer; False if there is none."""
        person = await self._ctx.wait_for_participant()  # the agent itself is in the room now too
        self.later(self._introduce())
        listens = self._session.input.set_audio_enabled
        listens(person.kind != SIP)  # sound before the answer is not a turn
        if await self.line.answered(person):
            listens(True)
            return True
        if not self.line.dead:
            await self._ctx.delete_room()
            self._hung_up()
        return False

    def _hung_up(self) -> None:
        """Stops the speech first, so that the engine does not generate unheard audio."""
        for speech in self._spoken:
            self.later(speech.aclose())
        self._ctx.shutdown("the caller hung up")

    def _closed(self) -> None:
        _calls.pop(self._session, None)
        self._opening.cancel()

    def _person(self) -> rtc.RemoteParticipant | None:
        """The session's linked participant; only their consent counts."""
        try:
            return self._session.room_io.linked_participant
        except RuntimeError:  # the console has no room
            return None

    def look_at_caller(self) -> None:
        if (person := self._person()) is not None:
            self.voice.identity = person.identity
            self.voice.consent.telephone = person.kind == SIP
            self.voice.consent.attribute(person.attributes.get(ATTRIBUTE))
            self.voice.follow()

    def _on_key(self, event: rtc.SipDTMF) -> None:
        person = self._person()
        if person and event.participant and event.participant.identity == person.identity:
            self.voice.consent.key(event.digit)
            self.voice.follow()

    # Messages to the room -------------------------------------------------------------------------

    async def _introduce(self) -> None:
        await self._show({"csm.voice": self.voice.name})
        await self._show(await self._speech.engine_facts())

    async def _show(self, attributes: dict[str, str]) -> None:
        await self._room.local_participant.set_attributes(attributes)

    def _changed(self, name: str) -> None:
        self.later(self._show({"csm.voice": name}))
        self.later(self._tell_agent(name))

    async def _tell_agent(self, name: str) -> None:
        try:
            await self.agent.on_voice_changed(name)
        except Exception:
            logger.exception("on_voice_changed failed")

    # The session's events -------------------------------------------------------------------------

    def _on_user_state(self, event: UserStateChangedEvent) -> None:
        if event.new_state == "speaking":
            self.voice.recorder.speech_began()

    def _on_agent_state(self, event: AgentStateChangedEvent) -> None:
        if event.new_state == "speaking":
            self._spoken_in = self.voice.name

    def _on_played(self, event: PlaybackFinishedEvent) -> None:
        if event.interrupted:
            self._replying.interrupted(event.playback_position)

    def _on_item(self, event: ConversationItemAddedEvent) -> None:
        item = event.item
        if not isinstance(item, llm.ChatMessage):
            return
        if item.role == "user":
            self.voice.wrote(item.text_content or "")
            self.figures.heard(item.metrics)
        elif item.role == "assistant":
            self.voice.consent.said(item.text_content or "")
            self.voice.follow()
            self._report(item)

    def _report(self, reply: llm.ChatMessage) -> None:
        """Sends a reply's figures to the log and to the room."""
        packet = self.figures.replied(
            reply.metrics, voice=self._spoken_in, interrupted=reply.interrupted
        )
        if packet is not None:
            logger.info("turn %s", packet)
            self.later(self._room.local_participant.publish_data(packet, topic="csm.turn"))

    def _on_error(self, event: ErrorEvent) -> None:
        """Asks the caller to repeat after an STT error; `llm_node` handles errors of the LLM."""
        if isinstance(event.error, stt.STTError) and not event.error.recoverable:
            logger.warning("speech-to-text failed (%s)", type(event.error.error).__name__)
            self._session.say(self.agent.NOT_HEARD)
        elif isinstance(event.error, tts.TTSError) and not event.error.recoverable:
            cause = event.error.error
            if isinstance(cause, APIStatusError) and not cause.retryable:
                self.voice.unusable()


_calls: weakref.WeakKeyDictionary[AgentSession[Any], _Call] = weakref.WeakKeyDictionary()
"""The calls of all open sessions."""
