"""Overhead of the server: first audio, lost frames, and the effect of a stalled client.

    python benchmarks/overhead.py [--model tiny] [--requests 40] [--clients 64] [--readers 32]

First audio is measured in turns with one engine: by a sink in its own process, and by a client over
a socket, without and with the router of `serve --devices`. Client and router run in the engine's
process and share its interpreter, so the overheads are upper bounds. The many clients use an engine
in a process of its own, as in production. Ratios are from trials in turns, so that other load on
the machine slows both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import struct
import threading
import time
from contextlib import asynccontextmanager, closing
from itertools import pairwise

from aiohttp import web
from common import finish, machine, percentile, table

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import FRAME_SECONDS, SAMPLE_RATE, EngineConfig, ServerConfig
from csm_tts_plugin.engine.api import Audio
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.errors import BusyError
from csm_tts_plugin.server.app import create_app, create_runner
from csm_tts_plugin.server.supervisor import EngineProcess
from csm_tts_plugin.server.voices import resolve
from tests.support.routed import routing
from tests.support.stand_in_engine import StandInEngine

PARTS = "first_audio,crowd,stalled_reader"
TEXT = "It was the best of times, it was the worst of times."
SETTLE_S = 0.3
"""Time for a new conversation's voice to be prefilled before the measurement."""
HANDSHAKE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Authorization: Bearer %s\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


# First audio, in the engine's process and over a socket


@asynccontextmanager
async def served(engine):
    """The URL of a server of that engine."""
    runner = create_runner(create_app(engine, ServerConfig(port=0)))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def inside(engine, voice) -> float:
    """Seconds from `say` to the first frame in a sink of this process."""
    conversation = engine.open(voice)
    await asyncio.sleep(SETTLE_S)
    heard, moment = threading.Event(), []

    def sink(event) -> None:
        if isinstance(event, Audio) and not moment:
            moment.append(time.perf_counter())
            heard.set()

    began = time.perf_counter()
    engine.say(conversation, TEXT, sink, max_seconds=1.0)
    await asyncio.to_thread(heard.wait, 60.0)
    engine.close(conversation)
    return moment[0] - began


async def outside(client: EngineClient) -> float:
    """Seconds from `say` to the first chunk at a client."""
    conversation = await client.conversation()
    await asyncio.sleep(SETTLE_S)
    began, taken = time.perf_counter(), 0.0
    async for _ in await conversation.say(TEXT, max_seconds=1.0):
        taken = time.perf_counter() - began
        break
    await conversation.aclose()
    return taken


async def first_audio(args: argparse.Namespace) -> dict:
    """First audio with the model, and with an engine that takes no time, which shows the server
    alone.
    """
    engine = Engine(EngineConfig(model=args.model, slots=4, queue=4, threads=args.threads))
    engine.start()
    await asyncio.to_thread(engine.wait_ready, 600.0)
    with_model = await by_turns(engine, args.requests)
    await asyncio.to_thread(engine.stop)
    stand_in = StandInEngine()
    stand_in.start()
    alone = await by_turns(stand_in, args.requests)
    await asyncio.to_thread(stand_in.stop)
    rows = [[name, *way.values()] for name, way in ((args.model, with_model), ("no model", alone))]
    table("first audio, p50 in ms", ["engine", *alone], rows)
    return {"requests": args.requests, "with_model": with_model, "without": alone}


async def by_turns(engine, requests: int) -> dict:
    """Medians in ms: a sink in this process, a client of the server, one of a router before it."""
    found: dict[str, list[float]] = {"inside": [], "outside": [], "router": []}
    voice = resolve("stock", ServerConfig(), engine.info())
    async with (
        served(engine) as url,
        routing([url]) as router,
        EngineClient(url, timeout=60.0) as client,
        EngineClient(router.url, timeout=60.0) as routed,
    ):
        for number in range(requests + 3):
            ways = await inside(engine, voice), await outside(client), await outside(routed)
            if number >= 3:  # the first ones warm everything up
                for name, seconds in zip(found, ways, strict=True):
                    found[name].append(seconds * 1e3)
    near, far, farther = found.values()
    return {
        **{name: round(statistics.median(times), 2) for name, times in found.items()},
        "overhead": round(statistics.median(far) - statistics.median(near), 2),
        "of_pairs": round(statistics.median(b - a for a, b in zip(near, far, strict=True)), 2),
        "router_of_pairs": round(
            statistics.median(b - a for a, b in zip(far, farther, strict=True)), 2
        ),
    }


# Many clients of an engine process


async def listen(client: EngineClient, seconds: float, rate: int = SAMPLE_RATE) -> dict:
    """One utterance, requested again until it is accepted: the gaps between its chunks, and whether
    it arrived completely.
    """
    conversation = await client.conversation(rate=rate)
    while True:
        utterance = await conversation.say(f"{TEXT} {TEXT}", max_seconds=seconds)
        moments, samples, frames = [], 0, []
        try:
            async for chunk in utterance:
                moments.append(time.perf_counter())
                samples += chunk.samples
                frames.append(chunk.frame)
            break
        except BusyError as full:
            await asyncio.sleep(full.retry_after or 1.0)
    await conversation.aclose()
    made = utterance.result.frames
    return {
        "whole": samples == made * rate * 80 // 1000 and frames[:made] == list(range(made)),
        "frames": made,
        "gaps": [b - a for a, b in pairwise(moments)],
    }


async def crowd(url: str, key: str | None, count: int, seconds: float) -> list[dict]:
    async with EngineClient(url, key=key, connect_timeout=60.0, timeout=600.0) as client:
        return await asyncio.gather(*(listen(client, seconds) for _ in range(count)))


def deaf(url: str, key: str) -> socket.socket:
    """A socket that has requested half a minute of speech and never reads."""
    host, port = url.removeprefix("http://").split(":")
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect((host, int(port)))
    plain.sendall(HANDSHAKE % key.encode())
    say = {"type": "say", "id": "1", "text": " ".join([TEXT] * 20), "max_seconds": 30.0}
    for message in ({"type": "open", "rate": 48_000}, say):
        payload = json.dumps(message).encode()
        plain.sendall(
            bytes([0x81, 0x80 | 126]) + struct.pack(">H", len(payload)) + bytes(4) + payload
        )
    return plain


async def frames_lost(process: EngineProcess, count: int, seconds: float) -> dict:
    began = time.perf_counter()
    heard = await crowd(process.url, process.key, count, seconds)
    taken = time.perf_counter() - began
    frames = sum(one["frames"] for one in heard)
    whole = sum(one["whole"] for one in heard)
    rows = [[count, whole, frames, f"{taken:.1f}", f"{frames * 0.08 / taken:.1f}"]]
    head = ["clients", "whole", "frames", "seconds", "streams in real time"]
    table("every frame of every client", head, rows)
    return {"clients": count, "whole": whole, "frames": frames, "seconds": round(taken, 1)}


async def beside_a_reader(url: str, count: int) -> list[dict]:
    async with EngineClient(url) as client:
        reader = asyncio.create_task(listen(client, 60.0, 48_000))
        heard = await crowd(url, None, count, 60.0)
        await reader
    return heard


async def beside_a_stalled_one(url: str, count: int) -> list[dict]:
    with closing(await asyncio.to_thread(deaf, url, "")):
        return await crowd(url, None, count, 60.0)


async def stalled_reader(readers: int, turns: int) -> dict:
    """The 99th percentile of the frame gap of all clients but one, which reads like them or not at
    all.

    The engine delivers a frame to each client every 80 ms and takes no time, so that differences
    come from the server.
    """
    fine, spoilt = [], []
    engine = StandInEngine(slots=2 * readers, queue=0, frame_s=FRAME_SECONDS)
    engine.start()
    async with served(engine) as url:
        for turn in range(turns + 1):
            # The order alternates, because other load on the machine changes.
            kept = (fine, spoilt) if turn % 2 else (spoilt, fine)
            for gaps in kept:
                last = beside_a_reader if gaps is fine else beside_a_stalled_one
                heard = await last(url, readers - 1)
                if turn:  # the first one warms everything up
                    gaps.append(percentile([gap for one in heard for gap in one["gaps"]], 0.99))
    await asyncio.to_thread(engine.stop)
    ratios = [b / a for a, b in zip(fine, spoilt, strict=True)]
    rows = [
        [f"{a * 1e3:.1f}", f"{b * 1e3:.1f}", f"{ratio:.2f}"]
        for a, b, ratio in zip(fine, spoilt, ratios, strict=True)
    ]
    table(f"p99 frame gap of {readers - 1}, ms", ["all read", "one is stalled", "ratio"], rows)
    return {
        "readers": readers,
        "gap_p99_ms": round(statistics.median(fine) * 1e3, 1),
        "gap_p99_ms_beside_a_stalled_one": round(statistics.median(spoilt) * 1e3, 1),
        "ratio": round(statistics.median(ratios), 3),
    }


async def measure(args: argparse.Namespace) -> dict:
    result = {}
    if "first_audio" in args.parts:
        result["first_audio"] = await first_audio(args)
    if "crowd" in args.parts:
        config = EngineConfig(model=args.model, slots=16, queue=48, threads=args.threads)
        with EngineProcess(config, ServerConfig(port=0), on_progress=lambda line: None) as process:
            await process.ready(600.0)
            result["crowd"] = await frames_lost(process, args.clients, args.seconds)
    if "stalled_reader" in args.parts:
        result["stalled_reader"] = await stalled_reader(args.readers, args.turns)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="hub id, folder, or tiny")
    parser.add_argument("--parts", default=PARTS, help=f"some of {PARTS}")
    parser.add_argument("--requests", type=int, default=40, help="for first audio, each way")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--readers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one utterance")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", default=None, help="also write the JSON here")
    args = parser.parse_args()
    args.parts = args.parts.split(",")
    result = asyncio.run(measure(args))
    finish({"benchmark": "overhead", "model": args.model, **machine("cpu"), **result}, args.out)


if __name__ == "__main__":
    main()
