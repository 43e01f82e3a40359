"""The way through the server: first audio, frames lost, and what a stalled reader spoils.

    python benchmarks/overhead.py [--model tiny] [--requests 40] [--clients 64] [--readers 32]

First audio is taken by turns from one engine: by a sink in its own process, and by a client over a
socket. That client lives in the engine's process too, and shares its interpreter: the overhead is
an upper bound. The rest runs against an engine process of its own, as in production. Ratios come
from trials by turns, so that a busy machine slows both alike.
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
from functools import partial
from itertools import pairwise

from aiohttp import web
from common import finish, machine, percentile, table

from csm_tts_plugin.client import EngineClient
from csm_tts_plugin.config import EngineConfig, ServerConfig
from csm_tts_plugin.engine.api import Audio
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.errors import BusyError
from csm_tts_plugin.server.app import create_app, create_runner
from csm_tts_plugin.server.supervisor import EngineProcess
from csm_tts_plugin.server.voices import resolve

PARTS = "first_audio,crowd,stalled_reader"
TEXT = "It was the best of times, it was the worst of times."
SETTLE_S = 0.3
"""For a new conversation's voice to be in its place before the clock starts."""
HANDSHAKE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Authorization: Bearer %s\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


# First audio, in the process and over a socket


@asynccontextmanager
async def served(engine: Engine):
    """The URL of a server of that engine."""
    runner = create_runner(create_app(engine, ServerConfig(port=0)))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def inside(engine: Engine, voice) -> float:
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


async def first_audio(model: str, threads: int | None, requests: int) -> dict:
    engine = Engine(EngineConfig(model=model, slots=4, queue=4, threads=threads))
    engine.start()
    await asyncio.to_thread(engine.wait_ready, 600.0)
    voice = resolve("stock", ServerConfig(), engine.info())
    times: dict[str, list[float]] = {"in the process": [], "over a socket": []}
    async with served(engine) as url, EngineClient(url, timeout=60.0) as client:
        for number in range(requests + 3):
            pair = await inside(engine, voice), await outside(client)
            if number >= 3:  # the first ones warm everything up
                for kept, seconds in zip(times.values(), pair, strict=True):
                    kept.append(seconds)
    await asyncio.to_thread(engine.stop)
    rows = [
        [name, *(f"{percentile(t, p) * 1e3:.1f}" for p in (0.5, 0.95))] for name, t in times.items()
    ]
    table("first audio, ms", ["way", "p50", "p95"], rows)
    near, far = (statistics.median(t) for t in times.values())
    each = [b - a for a, b in zip(*times.values(), strict=True)]
    return {
        "requests": requests,
        "inside_p50_ms": round(near * 1e3, 2),
        "outside_p50_ms": round(far * 1e3, 2),
        "overhead_p50_ms": round((far - near) * 1e3, 2),
        "overhead_of_pairs_p50_ms": round(statistics.median(each) * 1e3, 2),
    }


# Many clients of an engine process


async def listen(client: EngineClient, seconds: float) -> dict:
    """One utterance, asked for until there is a place: the gaps between its chunks, and whether it
    came whole."""
    conversation = await client.conversation()
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
        "whole": samples == made * 1920 and frames == list(range(made)),
        "frames": made,
        "gaps": [b - a for a, b in pairwise(moments)],
    }


async def crowd(url: str, key: str, count: int, seconds: float) -> list[dict]:
    async with EngineClient(url, key=key, connect_timeout=60.0, timeout=600.0) as client:
        return await asyncio.gather(*(listen(client, seconds) for _ in range(count)))


def deaf(url: str, key: str) -> socket.socket:
    """Asks for half a minute of speech and never reads a byte of it."""
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


async def stalled_reader(process: EngineProcess, readers: int, seconds: float, turns: int) -> dict:
    """p99 of the frame gap of all but one, which reads like them, or not at all."""
    fine, spoilt = [], []
    for turn in range(turns + 1):
        heard = await crowd(process.url, process.key, readers, seconds)
        plain = await asyncio.to_thread(deaf, process.url, process.key)
        with closing(plain):
            beside = await crowd(process.url, process.key, readers - 1, seconds)
        if turn:  # the first one warms everything up
            for kept, trial in ((fine, heard[1:]), (spoilt, beside)):
                kept.append(percentile([gap for one in trial for gap in one["gaps"]], 0.99))
    ratio = statistics.median(b / a for a, b in zip(fine, spoilt, strict=True))
    rows = [
        [f"{a * 1e3:.0f}", f"{b * 1e3:.0f}", f"{b / a:.2f}"]
        for a, b in zip(fine, spoilt, strict=True)
    ]
    table(f"p99 frame gap of {readers - 1}, ms", ["all read", "one is stalled", "ratio"], rows)
    return {
        "readers": readers,
        "gap_p99_ms": round(statistics.median(fine) * 1e3, 1),
        "gap_p99_ms_beside_a_stalled_one": round(statistics.median(spoilt) * 1e3, 1),
        "ratio": round(ratio, 3),
    }


async def measure(args: argparse.Namespace) -> dict:
    result = {}
    if "first_audio" in args.parts:
        result["first_audio"] = await first_audio(args.model, args.threads, args.requests)
    places = partial(EngineConfig, model=args.model, threads=args.threads)
    for name, config, trial in (
        ("crowd", places(slots=16, queue=48), partial(frames_lost, count=args.clients)),
        (
            "stalled_reader",
            places(slots=args.readers, queue=0),
            partial(stalled_reader, readers=args.readers, turns=args.turns),
        ),
    ):
        if name not in args.parts:
            continue
        with EngineProcess(config, ServerConfig(port=0), on_progress=lambda line: None) as process:
            await process.ready(600.0)
            result[name] = await trial(process, seconds=args.seconds)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="hub id, folder, or tiny")
    parser.add_argument("--parts", default=PARTS, help=f"some of {PARTS}")
    parser.add_argument("--requests", type=int, default=40, help="for first audio, each way")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--readers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one utterance")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", default=None, help="also write the JSON here")
    args = parser.parse_args()
    args.parts = args.parts.split(",")
    result = asyncio.run(measure(args))
    finish({"benchmark": "overhead", "model": args.model, **machine("cpu"), **result}, args.out)


if __name__ == "__main__":
    main()
