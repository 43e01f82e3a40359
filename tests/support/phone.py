"""A telephone as LiveKit's SIP bridge adds it to a room: a participant of kind SIP with the
attributes of a call, whose audio goes through 8 kHz mu-law in both directions.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self

import numpy as np

from livekit import api, rtc
from scripts import caller
from scripts.livekit_server import LiveKitServer
from tests.support import mulaw
from tests.support.waiting import LIMIT_S

NUMBER, TRUNK, NAME = "+493023125987", "+493023125111", "Phone zanzibar-canary"
"""Unassigned: Berlin's range for films. Canaries: none of them may appear in a log."""
LOUD = 300
"""Of 32768: 40 dB below full scale, above the level of silence after coding."""


class Phone:
    """`async with Phone(server, room) as phone:` dials, and hangs up at the end of the block."""

    def __init__(
        self, server: LiveKitServer, room: str, status: str = "ringing", **attributes: str
    ) -> None:
        self._url = server.url
        self.called = room
        self.identity = f"sip_{NUMBER}"
        known = {"sip.phoneNumber": NUMBER, "sip.trunkPhoneNumber": TRUNK, "sip.callID": "SCL_test"}
        self._token = (
            api.AccessToken(server.key, server.secret)
            .with_identity(self.identity)
            .with_name(NAME)
            .with_kind("sip")
            .with_attributes({**known, "sip.callStatus": status, **attributes})
            .with_grants(api.VideoGrants(room_join=True, room=room, can_update_own_metadata=True))
            .to_jwt()
        )
        self.turns: list[dict[str, Any]] = []
        """The agent's figures for each turn."""
        self.final_words: list[str] = []
        """The agent's final transcripts of this participant, turn by turn."""
        self._frames: list[np.ndarray] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self.room = rtc.Room()
        self._recording = caller.Recording()
        self._microphone = caller.Microphone(self._recording)
        self.room.on("track_subscribed", lambda track, *_: self._start(self._listen(track)))
        self.room.on("data_received", self._take)
        self.room.register_text_stream_handler(
            "lk.transcription", lambda reader, who: self._start(self._read(reader, who))
        )
        await asyncio.wait_for(self.room.connect(self._url, self._token), LIMIT_S)
        track = rtc.LocalAudioTrack.create_audio_track("phone", self._microphone.source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=False)
        await asyncio.wait_for(self.room.local_participant.publish_track(track, options), LIMIT_S)
        self._start(self._microphone.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hang_up()

    async def hang_up(self) -> None:
        """Leaves the room; returns when the server knows."""
        await asyncio.wait_for(self.room.disconnect(), LIMIT_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def status(self, status: str) -> None:
        await asyncio.wait_for(
            self.room.local_participant.set_attributes({"sip.callStatus": status}), LIMIT_S
        )

    async def press(self, digit: str) -> None:
        await self.room.local_participant.publish_dtmf(code=int(digit), digit=digit)

    async def speak(self, pcm: np.ndarray, rate: int) -> None:
        """int16; returns when the last of it has been sent."""
        await self._microphone.speak(mulaw.spoken_into(pcm, rate, caller.RATE))

    @property
    def heard(self) -> np.ndarray:
        """All received audio: int16 at 8 kHz."""
        return np.concatenate([np.zeros(0, np.int16), *self._frames])

    @property
    def heard_speech(self) -> bool:
        return self.loud_frames() > 0

    def loud_frames(self, since: int = 0) -> int:
        """Number of 10 ms frames with speech, not counting the first `since` frames."""
        return sum(1 for frame in self._frames[since:] if _rms(frame) > LOUD)

    @property
    def frames(self) -> int:
        return len(self._frames)

    @property
    def quiet_frames(self) -> int:
        """Frames since the last audible sound."""
        loud = (n for n, frame in enumerate(reversed(self._frames)) if _rms(frame) > LOUD)
        return next(loud, len(self._frames))

    @property
    def agent_state(self) -> str:
        people = self.room.remote_participants.values()
        return next((p.attributes.get("lk.agent.state", "") for p in people), "")

    async def _listen(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream.from_track(
            track=track, sample_rate=mulaw.RATE, num_channels=1, frame_size_ms=10
        )
        async for event in stream:
            pcm = np.frombuffer(event.frame.data, np.int16)
            self._frames.append(mulaw.decode(mulaw.encode(pcm)))

    def _take(self, packet: rtc.DataPacket) -> None:
        if packet.topic == "csm.turn":
            self.turns.append(json.loads(packet.data))

    async def _read(self, reader: rtc.TextStreamReader, who: str) -> None:
        try:
            text = await reader.read_all()
        except rtc.StreamError:
            return  # a participant hung up
        attributes = reader.info.attributes or {}
        if who == self.identity and attributes.get("lk.transcription_final") == "true":
            self.final_words.append(text)

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _rms(pcm: np.ndarray) -> float:
    return float(np.sqrt(np.mean(pcm.astype(np.float64) ** 2)))
