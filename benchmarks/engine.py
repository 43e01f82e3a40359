"""Our engine beside transformers' `generate` and beside the seed's method, in one run.

    python benchmarks/engine.py [--size 137m|csm-1b] [--device cpu|cuda] [--streams 1,4,16]

All three make the same number of frames from the same prompt on the same weights, by turns, so that
a busy machine slows all of them; the ratios are medians over the turns. "codes" is the language
model alone (what `generate` gives); "sound" includes the codec. The seed's method is written afresh
from its description: `generate` of the depth decoder for every frame, every chunk of 20 frames
decoded by itself.

The last line is JSON: `ratio_one_stream` and `ratio_16_streams` are our frames a second (codes)
over those of `generate` alone.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from common import finish, machine, random_model, seconds, table

from csm_tts_plugin.config import FRAME_SECONDS
from csm_tts_plugin.engine.frame import draw_frame, read_frame
from csm_tts_plugin.engine.runner import Draw, Runner

TEXT_TOKENS = 40
CHUNK = 20
DRAW = Draw((0.9, 0.9), (50, 50), seed=1)
SAMPLING = {"do_sample": True, "temperature": 0.9, "top_k": 50}
DEPTH_SAMPLING = {f"depth_decoder_{key}": value for key, value in SAMPLING.items()}


class Ours:
    """B streams, all of them from the same prompt."""

    def __init__(self, runner: Runner, prompt: np.ndarray, batch: int) -> None:
        self.runner, self.prompt, self.batch = runner, prompt, batch

    def read(self) -> None:
        for row in range(self.batch):
            self.runner.start(row, DRAW)
            self.runner.read(row, 0, self.prompt)

    @torch.inference_mode()
    def codes(self, frames: int) -> None:
        if self.runner.device.type == "cuda":
            # What is captured includes the codec; ours then does more than `generate` does.
            return self.sound(frames)
        for made in range(frames):
            draw_frame(self.runner.weights, self.runner.state, self.batch, 64)
            length = -(-(len(self.prompt) + made + 1) // 128) * 128
            read_frame(self.runner.weights, self.runner.state, self.batch, length)

    def sound(self, frames: int) -> None:
        for made in range(frames):
            self.runner.draw(self.batch, 50)
            self.runner.advance(self.batch, len(self.prompt) + made + 1)

    def first_audio(self) -> None:
        self.runner.read(0, 0, self.prompt)
        self.runner.draw(1, 50)


@torch.inference_mode()
def seed_method(model, ids: torch.Tensor, frames: int, *, sound: bool) -> None:
    """The seed's way of making speech, from its description."""
    output = model(input_ids=ids, use_cache=True, output_hidden_states=True)
    cache, chunk = output.past_key_values, []
    for _ in range(frames):
        logits = output.logits[:, -1].float() / 0.9
        kept = logits.topk(50).values[:, -1:]
        probabilities = logits.masked_fill(logits < kept, float("-inf")).softmax(-1)
        first = torch.multinomial(probabilities, 1)
        codes = model.depth_decoder.generate(
            input_ids=torch.nn.functional.pad(first, (1, 0)),
            backbone_last_hidden_state=output.hidden_states[-1][:, -1].clone(),
        )[:, 1:]
        codes = codes.clamp(max=model.config.codec_config.codebook_size - 1)
        chunk.append(codes)
        if sound and len(chunk) == CHUNK:
            model.codec_model.decode(torch.stack(chunk, dim=2))
            chunk = []
        output = model(
            input_ids=codes[:, None],
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        cache = output.past_key_values
    if sound and chunk:
        model.codec_model.decode(torch.stack(chunk, dim=2))


def measure(args: argparse.Namespace) -> dict:
    dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    model = random_model(args.size, args.device, dtype)
    vocabulary = min(model.config.text_vocab_size, 1000)
    ids = torch.randint(0, vocabulary, (1, TEXT_TOKENS), device=args.device)
    prompt = np.zeros((TEXT_TOKENS, model.config.num_codebooks + 1), np.int64)
    prompt[:, -1] = ids[0].cpu().numpy()
    streams = [int(n) for n in args.streams.split(",")]
    graphs = args.device.startswith("cuda")
    batches = streams if graphs else None
    runner = Runner(model, rows=max(streams), context=512, batches=batches, graphs=graphs)
    runner.warm_up(print)
    ways = {
        "generate": lambda n: _generate(model, ids, n, sound=False),
        "generate, sound": lambda n: _generate(model, ids, n, sound=True),
        "seed's method": lambda n: seed_method(model, ids, n, sound=False),
        "seed's method, sound": lambda n: seed_method(model, ids, n, sound=True),
    }
    per_frame = {name: [] for name in ways}
    ours = {batch: Ours(runner, prompt, batch) for batch in streams}
    per_frame |= {f"ours, {b}": [] for b in streams} | {f"ours, {b}, sound": [] for b in streams}
    first = []
    for turn in range(args.turns + 1):
        taken = {
            name: seconds(lambda w=work: w(args.frames), args.device) for name, work in ways.items()
        }
        for batch, mine in ours.items():
            mine.read()
            taken[f"ours, {batch}"] = seconds(lambda m=mine: m.codes(args.frames), args.device)
            mine.read()
            taken[f"ours, {batch}, sound"] = seconds(
                lambda m=mine: m.sound(args.frames), args.device
            )
        ours[streams[0]].read()
        moment = seconds(ours[streams[0]].first_audio, args.device)
        if turn:  # the first turn warms everything up
            first.append(moment)
            for name, value in taken.items():
                per_frame[name].append(value / args.frames)
    return {"per_frame": per_frame, "first_audio": first, "streams": streams}


def _generate(model, ids: torch.Tensor, frames: int, *, sound: bool) -> None:
    options = {**SAMPLING, **DEPTH_SAMPLING}
    if sound:
        # Random weights may draw ids that no codec has, on which the codec fails.
        beyond = list(range(model.config.codec_config.codebook_size, model.config.vocab_size))
        options |= {"suppress_tokens": beyond, "depth_decoder_suppress_tokens": beyond}
    model.generate(input_ids=ids, max_new_tokens=frames, output_audio=sound, **options)


def ratio(base: list[float], other: list[float], streams: int) -> float:
    """Frames a second of `other` at `streams` streams over those of `base`, the median over the
    turns.
    """
    return statistics.median(b / o * streams for b, o in zip(base, other, strict=True))


def report(args: argparse.Namespace, measured: dict) -> dict:
    per_frame, streams = measured["per_frame"], measured["streams"]
    rows = []
    for name, values in per_frame.items():
        batch = int(name.split(", ")[1]) if name.startswith("ours") else 1
        base = per_frame["generate, sound" if name.endswith("sound") else "generate"]
        middle = statistics.median(values)
        rows.append(
            [
                name,
                f"{middle * 1e3:.2f}",
                f"{batch / middle:.1f}",
                f"{middle / FRAME_SECONDS:.3f}",
                f"{ratio(base, values, batch):.2f}",
            ]
        )
    title = f"{args.size} on {args.device}, {args.frames} frames, {args.turns} turns"
    table(title, ["way", "ms a frame", "frames/s", "RTF a stream", "over generate"], rows)
    first = statistics.median(measured["first_audio"])
    print(f"\nfirst audio, one stream, {TEXT_TOKENS} text positions: {first * 1e3:.1f} ms")
    result = {
        "benchmark": "engine",
        "size": args.size,
        **machine(args.device),
        "ms_per_frame": {n: round(statistics.median(v) * 1e3, 3) for n, v in per_frame.items()},
        "first_audio_ms": round(first * 1e3, 2),
    }
    for batch in streams:
        label = "one_stream" if batch == 1 else f"{batch}_streams"
        mine = per_frame[f"ours, {batch}"]
        result[f"ratio_{label}"] = round(ratio(per_frame["generate"], mine, batch), 2)
        with_sound = per_frame[f"ours, {batch}, sound"]
        heard = round(ratio(per_frame["generate, sound"], with_sound, batch), 2)
        result[f"ratio_{label}_with_sound"] = heard
    seed = per_frame["seed's method, sound"]
    result["ratio_one_stream_seed_with_sound"] = round(
        ratio(seed, per_frame[f"ours, {streams[0]}, sound"], streams[0]), 2
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="137m", choices=["137m", "csm-1b"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--streams", default="1,16", help="how many streams at once, e.g. 1,4,16,64"
    )
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", default=None, help="also write the JSON here")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    finish(report(args, measure(args)), args.out)


if __name__ == "__main__":
    main()
