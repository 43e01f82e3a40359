"""The depth decoder in 8 bits compared to the exact weights: equal codes, and time.

    python benchmarks/eight_bit.py [--model tiny|FOLDER | --size 137m|csm-1b] [--device cpu|cuda]

Both draw each frame from the same hidden state, that of the exact model, so that one different code
does not change all frames after it. Codes are compared for each codebook, greedy and sampled with
the same random numbers. With random weights (`--size`) logits are closer together than those of a
trained model: the shares of equal codes are then a lower bound.

The last line is JSON: `same_greedy` and `same_drawn`, the shares of equal codes, and `ratio`, exact
milliseconds per frame over those in 8 bits.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from common import finish, machine, random_model, save, seconds, table

from csm_tts_plugin.config import EngineConfig
from csm_tts_plugin.engine.loading import load_checkpoint
from csm_tts_plugin.engine.prompt import PromptWriter
from csm_tts_plugin.engine.runner import Draw, Runner

TEXTS = (
    "The caller heard the first sound early.",
    "We will meet at the station on Friday morning.",
    "Thank you, that is all I wanted to know.",
)
DRAWS = {"greedy": Draw((0.0, 0.0), (1, 1), 0), "drawn": Draw((0.9, 0.9), (50, 50), 7)}


def load(args: argparse.Namespace):
    """A new model with its prompts, because packing modifies the model it is given."""
    if args.size:
        dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
        model = random_model(args.size, args.device, dtype)
        prompt = np.zeros((40, model.config.num_codebooks + 1), np.int64)
        prompt[:, -1] = np.arange(40)
        return model, [prompt] * len(TEXTS)
    checkpoint = load_checkpoint(EngineConfig(model=args.model, device=args.device))
    config = checkpoint.model.config
    writer = PromptWriter(checkpoint.processor, config.num_codebooks, config.codebook_eos_token_id)
    return checkpoint.model, [writer.turn(0, text) for text in TEXTS]


@torch.inference_mode()
def compare(exact: Runner, small: Runner, prompt, draw: Draw, frames: int):
    """Which codes are equal, bool [frames, K], with the exact model's codes as history."""
    candidates, same = draw.candidates(exact.weights.codes), []
    for runner in (exact, small):
        runner.start(0, draw)
    exact.read(0, 0, prompt)
    for made in range(frames):
        small.state.hidden.copy_(exact.state.hidden)
        small.state.sampling.frame.copy_(exact.state.sampling.frame)
        codes, codes_small = exact.draw(1, candidates).codes, small.draw(1, candidates).codes
        same.append(codes[0] == codes_small[0])
        exact.advance(1, len(prompt) + made + 1)
    return np.stack(same)


def measure(args: argparse.Namespace) -> dict:
    runners = []
    for eight in (False, True):
        model, prompts = load(args)
        # On CUDA inside of graphs, as the engine runs: else launching is what is measured.
        options = {"batches": [1], "graphs": True} if args.device.startswith("cuda") else {}
        runners.append(Runner(model, 1, 512, eight_bit_depth=eight, **options))
        runners[-1].warm_up()
    exact, small = runners
    result: dict = {"benchmark": "eight_bit", "model": args.size or args.model}
    result |= {"path": exact.path, "path_eight_bit": small.path}
    rows = []
    for name, draw in DRAWS.items():
        same = np.concatenate([compare(exact, small, p, draw, args.frames) for p in prompts])
        result[f"same_{name}"] = round(float(same.mean()), 4)
        result[f"same_{name}_by_codebook"] = [round(float(x), 4) for x in same.mean(axis=0)]
        save(result, args.out)
        rows.append([name, *result[f"same_{name}_by_codebook"]])
    books = exact.weights.codebooks
    table("share of equal codes by codebook", ["", *range(books)], rows)
    taken = [[], []]
    for _ in range(args.turns):
        for runner, times in zip(runners, taken, strict=True):
            times.append(seconds(lambda r=runner: frames_of(r, args.frames), args.device))
    best = [min(times) / args.frames * 1e3 for times in taken]
    table("ms to draw a frame", ["exact", "8 bits"], [[f"{ms:.2f}" for ms in best]])
    result |= {
        "ms_exact": round(best[0], 2),
        "ms_eight_bit": round(best[1], 2),
        "ratio": round(best[0] / best[1], 2),
    }
    return result | machine(args.device)


def frames_of(runner: Runner, frames: int) -> None:
    for _ in range(frames):
        runner.draw(1, 50).codes  # noqa: B018  the first look waits for it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", default=None, choices=["137m", "csm-1b"], help="random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", default=None, help="also write the JSON here")
    args = parser.parse_args()
    finish(measure(args), args.out)


if __name__ == "__main__":
    main()
