"""The LiveKit worker: hears a caller, thinks of a reply, and speaks it in the caller's own voice.

    python agent.py start | dev | console

Settings come from the environment and from `.env` beside this file; `.env.example` names them all.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientTimeout
from dotenv import load_dotenv
from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    AgentStateChangedEvent,
    APIConnectOptions,
    APIError,
    APIStatusError,
    ConversationItemAddedEvent,
    ErrorEvent,
    JobContext,
    JobProcess,
    ModelSettings,
    UserStateChangedEvent,
    cli,
    function_tool,
    inference,
    llm,
    stt,
    tts,
)
from livekit.agents import telemetry as livekit_telemetry
from livekit.agents.types import NOT_GIVEN
from livekit.agents.voice.agent_session import SessionConnectOptions
from livekit.agents.voice.io import PlaybackFinishedEvent

from csm_tts_plugin import TTS, personal, telemetry
from csm_tts_plugin.agent_support import (
    Services,
    check_keys,
    engine_facts,
    engine_load,
    turn_figures,
)
from csm_tts_plugin.caller_voice import CALLER, CallerVoice, spoken_words
from csm_tts_plugin.config import AgentConfig, TelemetryConfig
from csm_tts_plugin.consent import ATTRIBUTE, PHONE_QUESTION
from csm_tts_plugin.errors import AuthError, CsmError, UnavailableError
from csm_tts_plugin.offline.providers import make_llm, make_stt
from csm_tts_plugin.telephone import Telephone
from livekit import api, rtc

logger = logging.getLogger("csm_tts_plugin.agent")

INSTRUCTIONS = "You are a friendly voice on the phone. Answer in one or two short sentences."
GREETING = "Hello, nice to hear from you. What is on your mind?"
NO_IDEA = "Sorry, I lost my thread there; please say that once more."
NOT_HEARD = "Sorry, I did not hear that; please say it once more."
HISTORY, OFFLINE_HISTORY = 20, 3
"""Messages that the LLM sees besides its instructions; the small one reads slowly."""
SIP = rtc.ParticipantKind.PARTICIPANT_KIND_SIP
_PRELOADED = ["csm_tts_plugin.tts", "csm_tts_plugin.caller_voice", "anyio._backends._asyncio"]
"""Imported once for all jobs, which are forked from there."""


class CallAgent(Agent):
    """One call: what is heard becomes context and, with consent, the voice of the replies."""

    def __init__(self, ctx: JobContext, speech: TTS, config: AgentConfig) -> None:
        super().__init__(instructions=INSTRUCTIONS)
        self._ctx = ctx
        self._room = ctx.room
        self._speech = speech
        self._line = Telephone(SIP, self._hung_up, config.phone_lead_in_s)
        self._history = OFFLINE_HISTORY if config.llm == "offline" else HISTORY
        self._calls_tools = config.llm != "offline"
        stored = None if config.voice_source == CALLER else config.voice_source
        self._caller = CallerVoice(speech, self._show, stored=stored)
        self._spoken_in = self._caller.name
        self._turn = 0
        self._heard: llm.MetricsReport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def on_enter(self) -> None:
        self.session.on("user_state_changed", self._on_user_state)
        self.session.on("agent_state_changed", self._on_agent_state)
        self.session.on("conversation_item_added", self._on_item)
        self.session.on("error", self._on_error)
        if (ear := self.session.output.audio) is not None:
            ear.on("playback_finished", self._on_played)
        self._room.on("participant_attributes_changed", lambda *_: self._look_at_caller())
        self._room.on("sip_dtmf_received", self._on_key)
        self._line.watch(self._room)
        self._later(self._greet())

    async def _greet(self) -> None:
        """As soon as somebody can hear it; a telephone may still ring."""
        person = await self._ctx.wait_for_participant()
        hears = self.session.input.set_audio_enabled
        hears(person.kind != SIP)  # what sounds while it rings is nobody's turn
        if await self._line.answered(person):
            hears(True)
            self.session.say(GREETING)
        elif not self._line.dead:
            await self._ctx.delete_room()
            self._hung_up()

    def _hung_up(self) -> None:
        """The engine is told first: what nobody hears is not to be spoken."""
        self._later(self._speech.aclose())
        self._ctx.shutdown("the caller hung up")

    def introduce(self) -> None:
        """What speaks here, for all in the room to see, once we are in it."""

        async def tell() -> None:
            facts = await asyncio.to_thread(engine_facts)
            await self._room.local_participant.set_attributes(facts)

        self._show(self._caller.name)
        self._later(tell())

    def _show(self, voice: str) -> None:
        async def tell() -> None:
            await self._room.local_participant.set_attributes({"csm.voice": voice})

        self._later(tell())

    async def stt_node(
        self, audio: AsyncIterable[rtc.AudioFrame], model_settings: ModelSettings
    ) -> AsyncIterator[stt.SpeechEvent]:
        async def overheard() -> AsyncIterator[rtc.AudioFrame]:
            async for frame in audio:
                self._caller.ear.push(bytes(frame.data), frame.sample_rate)
                yield frame

        async for event in Agent.default.stt_node(self, overheard(), model_settings):
            if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT and event.alternatives:
                self._look_at_caller()
                heard = event.alternatives[0]
                self._caller.heard(heard.text, spoken_words(heard.words or []))
            yield event

    async def llm_node(
        self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
    ) -> AsyncIterator[Any]:
        recent = chat_ctx.copy().truncate(max_items=self._history)
        known, reply, called = tools if self._calls_tools else [], "", False
        try:
            async for chunk in Agent.default.llm_node(self, recent, known, model_settings):
                delta = chunk.delta if isinstance(chunk, llm.ChatChunk) else None
                reply += (delta.content or "") if delta is not None else ""
                called = called or bool(delta is not None and delta.tool_calls)
                yield chunk
        except APIError as error:
            logger.warning("the LLM failed (%s); saying so", type(error).__name__)
            yield NO_IDEA
            return
        if not called and (question := self._caller.question_after(reply)):
            yield question

    @function_tool
    async def use_my_voice(self) -> str:
        """Call this when the caller agrees, asked for it, to replies in their own voice."""
        agreed = self._caller.consent.understood()
        self._caller.follow()
        return "They agreed." if agreed else "They have not agreed; do not ask them for it."

    @function_tool
    async def stop_using_my_voice(self) -> str:
        """Call this when the caller does not want their own voice to be used any more."""
        self._caller.consent.stop()
        self._caller.follow()
        return "Their voice is forgotten."

    async def tts_node(
        self, text: AsyncIterable[str], model_settings: ModelSettings
    ) -> AsyncIterator[rtc.AudioFrame]:
        self._caller.consent.unheard()  # of a reply that was broken off before it

        async def told() -> AsyncIterator[str]:
            said = ""
            async for piece in text:
                said += piece
                self._caller.consent.saying(said)
                yield piece

        async for frame in Agent.default.tts_node(self, told(), model_settings):
            rate = frame.sample_rate
            self._caller.own.push(bytes(frame.data), rate)
            if silence := self._line.lead_in(rate):
                yield rtc.AudioFrame(silence, rate, 1, len(silence) // 2)
            yield frame

    def _person(self) -> rtc.RemoteParticipant | None:
        """Who talks to us; nobody else's consent counts."""
        try:
            return self.session.room_io.linked_participant
        except RuntimeError:  # the console has no room
            return None

    def _look_at_caller(self) -> None:
        if (person := self._person()) is not None:
            self._caller.identity = person.identity
            if person.kind == SIP:
                self._caller.consent.question = PHONE_QUESTION
            self._caller.consent.attribute(person.attributes.get(ATTRIBUTE))
            self._caller.follow()

    def _on_key(self, event: rtc.SipDTMF) -> None:
        person = self._person()
        if person and event.participant and event.participant.identity == person.identity:
            self._caller.consent.key(event.digit)
            self._caller.follow()

    def _on_user_state(self, event: UserStateChangedEvent) -> None:
        if event.new_state == "speaking":
            self._caller.ear.speech_began()

    def _on_agent_state(self, event: AgentStateChangedEvent) -> None:
        if event.new_state == "speaking":
            self._spoken_in = self._caller.name

    def _on_played(self, event: PlaybackFinishedEvent) -> None:
        if event.interrupted:
            self._speech.interrupted(event.playback_position)

    def _on_item(self, event: ConversationItemAddedEvent) -> None:
        """Each reply's figures go to the log and to the room, without a word of what was said."""
        item = event.item
        if not isinstance(item, llm.ChatMessage):
            return
        if item.role == "assistant":
            self._caller.consent.said(item.text_content or "")
            self._caller.follow()
        if item.role == "user":
            self._caller.wrote(item.text_content or "")
            self._turn += 1
            self._heard = item.metrics
        elif item.role == "assistant" and self._heard is not None:
            figures = turn_figures(self._heard, item.metrics)
            telemetry.turn(self._heard, item.metrics, interrupted=item.interrupted)
            self._heard = None
            outcome = {"voice": self._spoken_in, "interrupted": item.interrupted}
            packet = json.dumps({"turn": self._turn, **figures, **outcome})
            logger.info("turn %s", packet)
            self._later(self._room.local_participant.publish_data(packet, topic="csm.turn"))

    def _on_error(self, event: ErrorEvent) -> None:
        """A turn that could not be heard is asked for again; `llm_node` speaks for the LLM."""
        if isinstance(event.error, stt.STTError) and not event.error.recoverable:
            logger.warning("speech-to-text failed (%s)", type(event.error.error).__name__)
            self.session.say(NOT_HEARD)
        elif isinstance(event.error, tts.TTSError) and not event.error.recoverable:
            cause = event.error.error
            if isinstance(cause, APIStatusError) and not cause.retryable:
                self._caller.unusable()

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """News for the room, which may be gone already."""

        async def tell() -> None:
            try:
                await work
            except Exception as error:
                logger.info("it did not reach the room (%s)", type(error).__name__)

        task = asyncio.create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Worker(AgentServer):
    """LiveKit's worker; the engine and the offline models start before it and stop after."""

    def __init__(self, config: AgentConfig) -> None:
        host, port = config.health
        super().__init__(
            setup_fnc=prewarm,
            load_fnc=self._load,
            initialize_process_timeout=60.0,
            host=host,
            port=port,
            prometheus_port=config.metrics_port or None,
            preload_modules=_PRELOADED,
        )
        self.failure: CsmError | None = None
        self._services = Services()
        self._ran = self._stopping = False

    async def run(self, *, devmode: bool = False, unregistered: bool = False) -> None:
        personal.guard_logs()
        try:
            if not unregistered:
                await check_livekit(AgentConfig.from_env())
            await self._services.start()
            self._ran = True
            await super().run(devmode=devmode, unregistered=unregistered)
        except CsmError as error:
            self.failure = None if self._stopping else error
        except RuntimeError:
            if not self._connection_failed:
                raise
            self.failure = UnavailableError("LiveKit stays away; start it, then the agent again.")
        finally:
            await self._services.stop()

    def _load(self) -> float:
        """What LiveKit's dispatch goes by; asked in a thread of its own."""
        return engine_load(len(self.active_jobs))

    async def drain(self, timeout: Any = NOT_GIVEN) -> None:
        if self._ran:
            await super().drain(timeout)

    async def aclose(self) -> None:
        self._stopping = True
        if self._ran:
            await super().aclose()
        await self._services.stop()


def prewarm(process: JobProcess) -> None:
    """Before a call comes: what would block its event loop for a moment."""
    personal.guard_logs()
    process.userdata["vad"] = inference.VAD(model="silero")
    process.userdata["llm"] = make_llm(AgentConfig.from_env().llm)
    if (provider := telemetry.begin("csm-agent")) is not None:
        livekit_telemetry.set_tracer_provider(provider, allow_pii=False)


async def check_livekit(config: AgentConfig) -> None:
    """Raises CsmError where LiveKit itself would try again for minutes, or log a traceback."""
    url, key, secret = check_keys(config)
    async with api.LiveKitAPI(url, key, secret, timeout=ClientTimeout(total=10)) as livekit:
        try:
            await livekit.room.list_rooms(api.ListRoomsRequest(names=["-"]))
        except api.TwirpError as error:
            if error.status == 401:
                raise AuthError(
                    f"{url} refuses the key; check LIVEKIT_API_KEY and LIVEKIT_API_SECRET."
                ) from None
            raise UnavailableError(
                f"LiveKit at {url} answers {error.status}; see its log."
            ) from None
        except (ClientError, TimeoutError):
            raise UnavailableError(
                f"No LiveKit server answers at {url}; start it, or correct LIVEKIT_URL."
            ) from None


async def answer(ctx: JobContext) -> None:
    """One call, from joining the room until the caller leaves it."""
    config = AgentConfig.from_env()
    ear = ctx.proc.userdata["vad"]
    speech = TTS(voice=None if config.voice_source == CALLER else config.voice_source)
    ctx.add_shutdown_callback(speech.aclose)
    ctx.add_shutdown_callback(lambda: asyncio.to_thread(telemetry.flush))
    once = APIConnectOptions(max_retry=1, retry_interval=0.5, timeout=10.0)
    session = AgentSession[None](
        vad=ear,
        stt=make_stt(config.stt, ear),
        llm=ctx.proc.userdata["llm"],
        tts=speech,
        turn_handling={
            "turn_detection": inference.TurnDetector(version="v1-mini"),
            "endpointing": {"mode": "fixed", "min_delay": 0.3, "max_delay": 2.0},
            "interruption": {"mode": "vad", "min_duration": 0.3},
            "preemptive_generation": {"enabled": True},
        },
        conn_options=SessionConnectOptions(stt_conn_options=once, llm_conn_options=once),
        aec_warmup_duration=None,
    )
    session.on("close", lambda _: ctx.shutdown())
    speech.prewarm()
    agent = CallAgent(ctx, speech, config)
    await session.start(agent, room=ctx.room, record=False)
    agent.introduce()


def main() -> int:
    load_dotenv(Path(__file__).with_name(".env"))
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        if not os.environ.get(name):
            os.environ.pop(name, None)  # OpenAI's client takes an empty address for an address
    try:
        config = AgentConfig.from_env()
        TelemetryConfig.from_env()
    except CsmError as error:
        print(f"agent: {error}", file=sys.stderr)
        return 1
    worker = Worker(config)
    worker.rtc_session(answer, agent_name=config.agent_name)
    try:
        cli.run_app(worker)
    except SystemExit as ended:
        code = ended.code
    except OSError as error:
        if "PortAudio" not in str(error):
            raise
        print("agent: the console needs PortAudio; install libportaudio2.", file=sys.stderr)
        return 1
    if worker.failure is not None:
        print(f"agent: {worker.failure}", file=sys.stderr)
        return 1
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
