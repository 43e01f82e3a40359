"""A receptionist who hands over to a second agent, which keeps consent and the caller's voice.

    AGENT_LLM=openai:gpt-4.1-mini python examples/receptionist.py dev

`worker.run` starts an engine and, for AGENT_STT=offline, speech-to-text on this machine. The LLM
must support tools, because the handoff is one.
"""

import sys
from typing import Any

from livekit.agents import Agent, AgentSession, JobContext, function_tool, llm

from csm_tts_plugin import TTS, CallerVoiceAgent, ConsentPolicy, worker
from csm_tts_plugin.config import AgentConfig
from csm_tts_plugin.offline.providers import make_stt

POLICY = ConsentPolicy(
    question="If you like, I can answer in your own voice, made from this call. May I?",
    languages=("en", "de"),
)


class Receptionist(CallerVoiceAgent):
    def __init__(self, ctx: JobContext) -> None:
        super().__init__(
            ctx,
            instructions="You are the receptionist of a small hotel. Answer in a short sentence.",
            greeting="Hotel Seaview, good day. What can I do for you?",
            consent=POLICY,
        )

    @function_tool
    async def hand_over_to_reservations(self) -> tuple[Agent, str]:
        """Call this when the caller wants to book, change or cancel a room."""
        return Reservations(self.ctx, self.chat_ctx), "Reservations take over."


class Reservations(CallerVoiceAgent):
    def __init__(self, ctx: JobContext, history: llm.ChatContext) -> None:
        super().__init__(
            ctx,
            instructions="You book rooms of a small hotel. Ask for dates. Use short sentences.",
            chat_ctx=history.copy(exclude_instructions=True),
        )

    async def on_enter(self) -> None:
        await super().on_enter()
        self.session.generate_reply()

    async def on_voice_changed(self, name: str) -> None:
        print(f"The replies are now in the voice: {name}", flush=True)


async def answer(ctx: JobContext) -> None:
    config, processes = AgentConfig.from_env(), ctx.proc.userdata
    speech = TTS()
    ctx.add_shutdown_callback(speech.aclose)
    session: AgentSession[Any] = AgentSession(
        vad=processes["vad"],
        stt=make_stt(config.stt, processes["vad"]),
        llm=processes["llm"],
        tts=speech,
        tts_text_transforms=None,  # the TTS cleans text itself and keeps star keys and products
    )
    session.on("close", lambda _: ctx.shutdown())
    await session.start(Receptionist(ctx), room=ctx.room)


if __name__ == "__main__":
    sys.exit(worker.run(answer))
