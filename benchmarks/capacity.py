"""How many live streams one engine holds in real time.

    python benchmarks/capacity.py [--size tiny|137m|csm-1b] [--device cpu|cuda] [--streams 1,4,8,16]

For each number, that many streams arrive at `--rate` per second and speak for `--seconds` each. A
stream is starved if one of its frames arrived too late for playback that began with its first
frame. The gap is the time between two frames of a stream; streams with enough lead are paused, so
that gaps near 80 ms are normal.

`frames_per_second` is what live streams take, from the first arrival to the last end: at most 12.5
for each. `--sustained` measures what the engine could give: frames a second of as many streams that
are not live, over 12.5.
"""

from __future__ import annotations

import argparse
import time

from common import finish, machine, percentile, save, table
from streams import engine_of, path_of, reference, speak

from csm_tts_plugin.config import FRAME_SECONDS


def trial(engine, count: int, seconds: float, rate: float) -> dict:
    voice = reference()
    conversations = [engine.open(voice) for _ in range(count)]
    listeners = []
    begin = time.monotonic()
    for number, conversation in enumerate(conversations):
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        listeners.append(speak(engine, conversation, seconds))
    for listener in listeners:
        listener.over.wait(seconds * 20)
    for conversation in conversations:
        engine.close(conversation)
    heard = [listener for listener in listeners if listener.moments]
    gaps = [gap for listener in heard for gap in listener.gaps()] or [float("inf")]
    frames = sum(len(listener.moments) for listener in heard)
    return {
        "streams": count,
        "frames_per_second": round(frames / (time.monotonic() - begin), 1),
        "gap_p50_ms": round(percentile(gaps, 0.5) * 1e3, 1),
        "gap_p99_ms": round(percentile(gaps, 0.99) * 1e3, 1),
        "first_audio_p95_ms": round(percentile([x.first_audio() for x in heard], 0.95) * 1e3, 1),
        "starved": sum(listener.late_frames() > 0 for listener in heard),
        "failed": count - len(heard) + sum(listener.error is not None for listener in heard),
    }


def sustained(engine, count: int, seconds: float) -> float:
    """How many streams in real time the engine gives if `count` streams are made as fast as
    possible, prefill included.
    """
    conversations = [engine.open(reference()) for _ in range(count)]
    began = time.monotonic()
    listeners = [speak(engine, one, seconds, live=False) for one in conversations]
    for listener in listeners:
        listener.over.wait(seconds * 20)
    took = max(listener.moments[-1] for listener in listeners) - began
    for conversation in conversations:
        engine.close(conversation)
    return round(sum(len(one.moments) for one in listeners) / took * FRAME_SECONDS, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=["tiny", "137m", "csm-1b"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--streams", default="1,4,8,12,16")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=20.0, help="arrivals a second")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--sustained", action="store_true", help="also without pacing")
    parser.add_argument("--out", default=None, help="also write the JSON here")
    args = parser.parse_args()
    counts = [int(n) for n in args.streams.split(",")]
    began = time.monotonic()
    engine = engine_of(args.size, args.device, max(counts), args.threads)
    ready = time.monotonic() - began
    trial(engine, 1, 1.0, args.rate)
    result = {"benchmark": "capacity", "size": args.size, **machine(args.device)}
    result |= {"path": path_of(engine), "ready_s": round(ready, 1)}
    trials = []
    for count in counts:
        trials.append(trial(engine, count, args.seconds, args.rate))
        if args.sustained:
            trials[-1]["sustained"] = sustained(engine, count, args.seconds)
        print(trials[-1], flush=True)
        save({**result, "trials": trials}, args.out)
    engine.stop()
    rows = [list(row.values()) for row in trials]
    table(f"{args.size} on {args.device}, ready after {ready:.1f} s", list(trials[0]), rows)
    held = [t["streams"] for t in trials if not t["starved"] and not t["failed"]]
    result |= {"real_time_streams": max(held, default=0)}
    finish({**result, "trials": trials}, args.out)


if __name__ == "__main__":
    main()
