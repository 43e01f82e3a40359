"""Our engine compared to transformers' `generate` and to the method of csm-streaming-tf.

    python benchmarks/engine.py [--size 137m|csm-1b] [--device cpu|cuda] [--streams 1,4,16]

All three generate the same number of frames from the same prompt with the same weights, in turns,
so that other load on the machine slows all of them; the ratios are medians over the turns. "codes"
is the language model alone (the result of `generate`); "sound" includes the codec. The method of
csm-streaming-tf ("seed") is written from its description: `generate` of the depth decoder for each
frame, each chunk of 20 frames decoded separately.

The last line is JSON: `ratio_one_stream` and `ratio_16_streams` are our frames per second (codes)
over those of `generate`.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from common import finish, machine, random_model, save, seconds, table

from csm_tts_plugin.config import FRAME_SECONDS
from csm_tts_plugin.engine.chunks import LENGTHS, pieces
from csm_tts_plugin.engine.runner import Draw, Runner
from csm_tts_plugin.engine.sound import Codec

TEXT_TOKENS = 40
CHUNK = 20
DRAW = Draw((0.9, 0.9), (50, 50), seed=1)
SAMPLING = {"do_sample": True, "temperature": 0.9, "top_k": 50}
DEPTH_SAMPLING = {f"depth_decoder_{key}": value for key, value in SAMPLING.items()}


class Ours:
    """B streams with the same prompt, decoded in the engine's chunks."""

    def __init__(self, runner: Runner, codec: Codec, prompt: np.ndarray, batch: int) -> None:
        self.runner, self.codec, self.prompt, self.batch = runner, codec, prompt, batch

    def read(self) -> None:
        self.runner.select(range(self.batch))
        for row in range(self.batch):
            self.runner.start(row, DRAW)
            self.runner.read(row, 0, self.prompt)

    @torch.inference_mode()
    def codes(self, frames: int) -> None:
        for made in range(frames):
            self._frame(made)

    def _frame(self, made: int) -> np.ndarray:
        frame = self.runner.draw(self.batch, 50)
        if self.runner.runs_behind:
            self.runner.advance(self.batch, len(self.prompt) + made + 1)
            return frame.codes
        codes = frame.codes.copy()
        self.runner.advance(self.batch, len(self.prompt) + made + 1)
        return codes

    def sound(self, frames: int) -> None:
        rows = [self.codec.take() for _ in range(self.batch)]
        waiting: list[np.ndarray] = []
        made = chunk = 0
        for made in range(1, frames + 1):
            waiting.append(self._frame(made - 1))
            if len(waiting) >= min(LENGTHS[-1], max(1, chunk)) or made == frames:
                chunk += len(waiting)
                self._decode(rows, np.stack(waiting, axis=2))
                waiting = []
        for row in rows:
            self.codec.give(row)

    def _decode(self, rows: list[int], codes: np.ndarray) -> None:
        """[B, K, T]"""
        begin, chunk = 0, None
        for length in pieces(codes.shape[2]):
            most = self.codec.most_rows(length)
            for top in range(0, len(rows), most):
                some = slice(top, top + most)
                part = codes[some, :, begin : begin + length]
                chunk = self.codec.decode(rows[some], part, [False] * len(rows[some]))
            begin += length
        assert chunk is not None
        assert np.isfinite(chunk.levels).all()

    def first_audio(self) -> None:
        row = self.codec.take()
        self.runner.read(0, 0, self.prompt)
        codes = self.runner.draw(1, 50).codes
        assert np.isfinite(self.codec.decode([row], codes[:, :, None], [True]).levels).all()
        self.codec.give(row)


@torch.inference_mode()
def seed_method(model, ids: torch.Tensor, frames: int, *, sound: bool) -> None:
    """The method of csm-streaming-tf, written from its description."""
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
    codec = Codec(model.codec_model, max(streams), graphs=graphs)
    codec.warm_up(print)
    ways = {
        "generate": lambda n: _generate(model, ids, n, sound=False),
        "generate, sound": lambda n: _generate(model, ids, n, sound=True),
        "seed's method": lambda n: seed_method(model, ids, n, sound=False),
        "seed's method, sound": lambda n: seed_method(model, ids, n, sound=True),
    }
    per_frame = {name: [] for name in ways}
    ours = {batch: Ours(runner, codec, prompt, batch) for batch in streams}
    per_frame |= {f"ours, {b}": [] for b in streams} | {f"ours, {b}, sound": [] for b in streams}
    first = []
    for turn in range(args.turns + 1):
        taken = {
            name: seconds(lambda w=work: w(args.frames), args.device, args.clock)
            for name, work in ways.items()
        }
        for batch, mine in ours.items():
            mine.read()
            taken[f"ours, {batch}"] = seconds(
                lambda m=mine: m.codes(args.frames), args.device, args.clock
            )
            mine.read()
            taken[f"ours, {batch}, sound"] = seconds(
                lambda m=mine: m.sound(args.frames), args.device, args.clock
            )
        ours[streams[0]].read()
        moment = seconds(ours[streams[0]].first_audio, args.device, args.clock)
        if turn:  # the first turn warms everything up
            first.append(moment)
            for name, value in taken.items():
                per_frame[name].append(value / args.frames)
            measured = {"per_frame": per_frame, "first_audio": first, "streams": streams}
            measured["path"] = f"{runner.path}; codec: {codec.path}"
            save(figures(args, measured), args.out)
    return measured


def _generate(model, ids: torch.Tensor, frames: int, *, sound: bool) -> None:
    options = {**SAMPLING, **DEPTH_SAMPLING}
    if sound:
        # Random weights may draw ids that the codec does not have, for which it raises.
        beyond = list(range(model.config.codec_config.codebook_size, model.config.vocab_size))
        options |= {"suppress_tokens": beyond, "depth_decoder_suppress_tokens": beyond}
    model.generate(input_ids=ids, max_new_tokens=frames, output_audio=sound, **options)


def ratio(base: list[float], other: list[float], streams: int) -> float:
    """Frames per second of `other` with `streams` streams over those of `base` with one, median
    over the turns.
    """
    return statistics.median(b / o * streams for b, o in zip(base, other, strict=True))


def report(args: argparse.Namespace, measured: dict) -> dict:
    per_frame = measured["per_frame"]
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
    return figures(args, measured)


def figures(args: argparse.Namespace, measured: dict) -> dict:
    per_frame, streams = measured["per_frame"], measured["streams"]
    first = statistics.median(measured["first_audio"])
    result = {
        "benchmark": "engine",
        "path": measured["path"],
        "size": args.size,
        "clock": args.clock,
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
    parser.add_argument(
        "--clock",
        default="wall",
        choices=["wall", "cpu"],
        help="cpu: for a busy machine, --threads 1",
    )
    parser.add_argument("--out", default=None, help="also write the JSON here")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    finish(report(args, measure(args)), args.out)


if __name__ == "__main__":
    main()
