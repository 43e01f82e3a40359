"""A complete LiveKit worker. It answers callers, with their consent in their own voice.

    python agent.py start | dev | console

Settings come from the environment and from `.env` beside this file; `.env.example` lists them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from livekit.agents import (
    AgentSession,
    APIConnectOptions,
    JobContext,
    ModelSettings,
    inference,
    llm,
)
from livekit.agents.voice.agent_session import SessionConnectOptions

from csm_tts_plugin import TTS, CallerVoiceAgent, telemetry, worker
from csm_tts_plugin.config import AgentConfig
from csm_tts_plugin.offline.providers import make_stt

HISTORY, OFFLINE_HISTORY = 20, 1
"""Messages that the LLM gets besides its instructions. With more than one, the small offline model
answers worse and half a second later."""


class CallAgent(CallerVoiceAgent):
    """The base class handles consent, voice, telephone and figures; the rest is your agent."""

    def __init__(self, ctx: JobContext, config: AgentConfig) -> None:
        super().__init__(
            ctx,
            instructions=config.instructions,
            greeting=config.greeting,
            clone_caller=config.voice_source == "caller",
        )
        self._offline = config.llm == "offline"

    async def llm_node(
        self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
    ) -> AsyncIterator[Any]:
        recent = chat_ctx.copy().truncate(max_items=OFFLINE_HISTORY if self._offline else HISTORY)
        known = [] if self._offline else tools  # SmolLM2 cannot call tools
        async for chunk in super().llm_node(recent, known, model_settings):
            yield chunk


async def answer(ctx: JobContext) -> None:
    """One call, from joining the room until the caller leaves it."""
    config = AgentConfig.from_env()
    vad = ctx.proc.userdata["vad"]
    voice = None if config.voice_source == "caller" else config.voice_source
    speech = TTS(voice=voice, first_piece_s=0.3)
    ctx.add_shutdown_callback(speech.aclose)  # a session does not close its TTS
    ctx.add_shutdown_callback(lambda: asyncio.to_thread(telemetry.flush))
    once = APIConnectOptions(max_retry=1, retry_interval=0.5, timeout=10.0)
    # A local model is slow on a busy machine, and a retry would make it slower.
    heard = replace(once, timeout=30.0) if config.stt == "offline" else once
    session = AgentSession[None](
        vad=vad,
        stt=make_stt(config.stt, vad),
        llm=ctx.proc.userdata["llm"],
        tts=speech,
        turn_handling={
            "turn_detection": inference.TurnDetector(version="v1-mini"),
            "endpointing": {"mode": "fixed", "min_delay": 0.3, "max_delay": 1.2},
            "interruption": {"mode": "vad", "min_duration": 0.3},
            # a reply begins at each pause of the caller, which may be the end of the turn
            "preemptive_generation": {
                "enabled": True,
                "max_retries": 8,
                "max_speech_duration": 30.0,
            },
        },
        conn_options=SessionConnectOptions(stt_conn_options=heard, llm_conn_options=once),
        aec_warmup_duration=None,
        tts_text_transforms=None,  # the TTS cleans text itself and keeps star keys and products
    )
    session.on("close", lambda _: ctx.shutdown())
    speech.prewarm()
    await session.start(CallAgent(ctx, config), room=ctx.room, record=False)


if __name__ == "__main__":
    sys.exit(worker.run(answer, Path(__file__).with_name(".env")))
