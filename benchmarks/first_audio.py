"""Time from text to first audio, with and without a cached voice, alone and under load.

    python benchmarks/first_audio.py [--size tiny|137m|csm-1b] [--device cpu|cuda] [--rates 1,10]

"cached" is a voice that was used before; "new" is one with 6 s of reference audio to encode and
prefill. Under load, requests arrive at the given rate and speak for 2 s each.
"""

from __future__ import annotations

import argparse
import time

from common import finish, machine, percentile, save, table
from streams import Listener, engine_of, path_of, reference, speak


def alone(engine, requests: int, *, cached: bool) -> list[Listener]:
    heard = []
    for number in range(requests):
        conversation = engine.open(reference(seed=0 if cached else 1000 + number))
        listener = speak(engine, conversation, 0.4, live=False)
        listener.over.wait(120)
        engine.close(conversation)
        heard.append(listener)
    return heard


def loaded(engine, rate: float, seconds: float) -> list[Listener]:
    voice, heard = reference(), []
    begin = time.monotonic()
    for number in range(int(rate * seconds)):
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        conversation = engine.open(voice)
        listener = speak(engine, conversation, 2.0)
        heard.append((conversation, listener))
    for conversation, listener in heard:
        listener.over.wait(120)
        engine.close(conversation)
    return [listener for _, listener in heard]


def summary(name: str, listeners: list[Listener]) -> dict:
    times = [listener.first_audio() for listener in listeners if listener.moments]
    return {
        "case": name,
        "requests": len(listeners),
        "p50_ms": round(percentile(times, 0.5) * 1e3, 1),
        "p95_ms": round(percentile(times, 0.95) * 1e3, 1),
        "failed": len(listeners) - len(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=["tiny", "137m", "csm-1b"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rates", default="1,4", help="requests a second under load")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", default=None, help="also write the JSON here")
    args = parser.parse_args()
    engine = engine_of(args.size, args.device, args.slots, args.threads)
    alone(engine, 3, cached=True)
    result = {"benchmark": "first_audio", "size": args.size, **machine(args.device)}
    result["path"] = path_of(engine)
    cases: list[dict] = []

    def add(name: str, listeners: list[Listener]) -> None:
        cases.append(summary(name, listeners))
        print(cases[-1], flush=True)
        save({**result, "cases": cases}, args.out)

    add("alone, cached voice", alone(engine, args.requests, cached=True))
    add("alone, new voice", alone(engine, max(3, args.requests // 4), cached=False))
    for rate in (float(r) for r in args.rates.split(",")):
        add(f"{rate:g} a second", loaded(engine, rate, args.seconds))
    engine.stop()
    title = f"first audio, {args.size} on {args.device}"
    table(title, list(cases[0]), [list(case.values()) for case in cases])
    finish({**result, "cases": cases}, args.out)


if __name__ == "__main__":
    main()
