"""An agent's session in the test's own process, in a room of a real LiveKit server: the test sees
every frame and event.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from livekit.agents import AgentSession, utils

from csm_tts_plugin import CallerVoiceAgent
from livekit import api, rtc
from tests.support.waiting import LIMIT_S

KINDS = [rtc.ParticipantKind.PARTICIPANT_KIND_SIP, rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD]


class Job:
    """The part of LiveKit's job context that agents use; only `agent.py start` has a real one."""

    def __init__(self, room: rtc.Room, livekit: api.LiveKitAPI) -> None:
        self.room, self.livekit = room, livekit
        self.ended: list[str] = []

    async def wait_for_participant(self) -> rtc.RemoteParticipant:
        return await utils.wait_for_participant(self.room, kind=KINDS)

    async def delete_room(self) -> None:
        await self.livekit.room.delete_room(api.DeleteRoomRequest(room=self.room.name))

    def shutdown(self, reason: str) -> None:
        self.ended.append(reason)


@asynccontextmanager
async def job_in(server, room_name: str):
    """A job that has joined its room."""
    room = rtc.Room()
    async with api.LiveKitAPI(server.url, server.key, server.secret) as livekit:
        token = api.AccessToken(server.key, server.secret).with_identity("agent").with_kind("agent")
        grants = api.VideoGrants(room_join=True, room=room_name, can_update_own_metadata=True)
        await asyncio.wait_for(
            room.connect(server.url, token.with_grants(grants).to_jwt()), LIMIT_S
        )
        try:
            yield Job(room, livekit)
        finally:
            await asyncio.wait_for(room.disconnect(), LIMIT_S)


@asynccontextmanager
async def session_of(job: Job, agent: CallerVoiceAgent, **options):
    """The agent's session, started."""
    session = AgentSession(**options)
    await session.start(agent, room=job.room, record=False)
    try:
        yield session
    finally:
        await asyncio.wait_for(session.aclose(), LIMIT_S)


@asynccontextmanager
async def browser_in(server, room_name: str, **attributes: str):
    """A caller with a browser, who says nothing."""
    room, token = rtc.Room(), api.AccessToken(server.key, server.secret).with_identity("browser")
    grants = api.VideoGrants(room_join=True, room=room_name, can_update_own_metadata=True)
    token = token.with_attributes(attributes).with_grants(grants)
    await asyncio.wait_for(room.connect(server.url, token.to_jwt()), LIMIT_S)
    try:
        yield room
    finally:
        await asyncio.wait_for(room.disconnect(), LIMIT_S)
