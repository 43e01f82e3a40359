"""The plugin in your own agent.

    csm-tts serve --port 8090 &
    CSM_ENGINE_URL=http://127.0.0.1:8090 python examples/plugin_alone.py dev

Speech-to-text and the LLM are OpenAI's here (OPENAI_API_KEY; OPENAI_BASE_URL for another endpoint).
"""

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli

from csm_tts_plugin import TTS
from csm_tts_plugin.worker import engine_load
from livekit.plugins import openai

# LiveKit distributes calls by the engine's occupancy, not by the CPU of this machine.
server = AgentServer(load_fnc=lambda server: engine_load(len(server.active_jobs)), port=0)


@server.rtc_session()
async def answer(ctx: JobContext) -> None:
    speech = TTS()
    ctx.add_shutdown_callback(speech.aclose)  # a session does not close its TTS
    session = AgentSession[None](
        stt=openai.STT(),
        llm=openai.LLM(),
        tts=speech,
        tts_text_transforms=None,  # the TTS cleans text itself and keeps star keys and products
    )
    await session.start(Agent(instructions="Answer in one short sentence."), room=ctx.room)
    await session.say("Hello, how can I help?")


if __name__ == "__main__":
    cli.run_app(server)
