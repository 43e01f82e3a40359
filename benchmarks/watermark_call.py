"""The watermark after Opus at set bit rates in a real room of a LiveKit server.

    python benchmarks/watermark_call.py [--model tiny] [--count 50] [--out FILE]

Utterances, with and without the watermark, are published one after the other at 16 and 24 kbit/s,
received by a second participant, and examined one by one. Takes the length of the speech: all rooms
run at once.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import finish, machine, table
from watermark import spoken

from csm_tts_plugin.audio.detection import detect
from csm_tts_plugin.config import SAMPLE_RATE
from livekit import api, rtc
from scripts.livekit_server import LiveKitServer
from training import sentences

BITS = (16_000, 24_000)
GAP_S, MARGIN_S = 0.8, 0.1
"""Silence between two utterances, and how much of it is examined with each of them."""
FRAME = SAMPLE_RATE // 50
_LIMIT_S = 20
_LOUD = 0.01


def token(server: LiveKitServer, room: str, who: str) -> str:
    grants = api.VideoGrants(room_join=True, room=room)
    made = api.AccessToken(server.key, server.secret).with_identity(who).with_grants(grants)
    return made.to_jwt()


async def through_room(
    server: LiveKitServer, name: str, sound: np.ndarray, bits: int
) -> np.ndarray:
    """What a participant receives of samples [n], float32, 24 kHz, published at `bits` a second."""
    heard: list[np.ndarray] = []
    listening = asyncio.Event()

    async def listen(track: rtc.Track) -> None:
        stream = rtc.AudioStream.from_track(track=track, sample_rate=SAMPLE_RATE, num_channels=1)
        listening.set()
        async for event in stream:
            heard.append(np.frombuffer(event.frame.data, np.int16).astype(np.float32) / 32_768)

    tasks: list[asyncio.Task[None]] = []
    speaker, listener = rtc.Room(), rtc.Room()
    listener.on(
        "track_subscribed", lambda track, *_: tasks.append(asyncio.create_task(listen(track)))
    )
    await asyncio.wait_for(listener.connect(server.url, token(server, name, "listener")), _LIMIT_S)
    await asyncio.wait_for(speaker.connect(server.url, token(server, name, "speaker")), _LIMIT_S)
    source = rtc.AudioSource(SAMPLE_RATE, 1, queue_size_ms=200)
    track = rtc.LocalAudioTrack.create_audio_track("speech", source)
    options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=False)
    options.audio_encoding.max_bitrate = bits
    await asyncio.wait_for(speaker.local_participant.publish_track(track, options), _LIMIT_S)
    await asyncio.wait_for(listening.wait(), _LIMIT_S)
    pcm = np.clip(np.rint(sound * 32_767), -32_768, 32_767).astype(np.int16)
    for start in range(0, len(pcm) - FRAME + 1, FRAME):
        part = pcm[start : start + FRAME]
        await source.capture_frame(rtc.AudioFrame(part.tobytes(), SAMPLE_RATE, 1, FRAME))
    await source.wait_for_playout()
    await asyncio.sleep(1.0)
    await asyncio.gather(speaker.disconnect(), listener.disconnect())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return np.concatenate(heard)


def onset(sound: np.ndarray) -> int:
    """The first sample of speech."""
    return int(np.argmax(np.abs(sound) > _LOUD))


def joined(sounds: list[np.ndarray]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """All utterances with gaps, and where each begins and ends."""
    gap = np.zeros(int(GAP_S * SAMPLE_RATE), np.float32)
    parts, places, at = [gap], [], len(gap)
    for sound in sounds:
        places.append((at, at + len(sound)))
        parts += [sound.astype(np.float32), gap]
        at += len(sound) + len(gap)
    return np.concatenate(parts), places


async def measure(kinds: dict[str, list[np.ndarray]]) -> list[dict]:
    """A row for each kind of speech and bit rate."""
    rows = [(kind, bits) for kind in kinds for bits in BITS]
    whole = {kind: joined(sounds) for kind, sounds in kinds.items()}
    with tempfile.TemporaryDirectory() as folder, LiveKitServer(Path(folder) / "log") as server:
        received = await asyncio.gather(
            *(through_room(server, f"{kind}-{bits}", whole[kind][0], bits) for kind, bits in rows)
        )
    result = []
    for (kind, bits), sound in zip(rows, received, strict=True):
        sent, places = whole[kind]
        shift, margin = onset(sound) - onset(sent), int(MARGIN_S * SAMPLE_RATE)
        cut = [sound[max(0, a + shift - margin) : b + shift + margin] for a, b in places]
        found = [detect(np.ascontiguousarray(one)) for one in cut]
        confidences = [one.whole for one in found]
        result.append(
            {
                "speech": kind,
                "kbit/s": bits // 1000,
                "marked": round(float(np.mean([one.marked for one in found])), 4),
                "mean": round(float(np.mean(confidences)), 3),
                "lowest": round(min(confidences), 3),
                "highest": round(max(confidences), 3),
            }
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--out", default=None, help="also write the JSON here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    texts = sentences.held_out(args.count)
    kinds = {
        name: spoken(args.model, texts, watermark)
        for name, watermark in (("marked", "perth"), ("unmarked", "off"))
    }
    rows = asyncio.run(measure(kinds))
    table(f"{args.count} utterances each", list(rows[0]), [list(row.values()) for row in rows])
    finish({"benchmark": "watermark in a room", **machine("cpu"), "rows": rows}, args.out)


if __name__ == "__main__":
    main()
