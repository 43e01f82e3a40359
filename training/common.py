"""Shared parts of the training scripts: exact checkpoints, schedules, time limits of a run."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CsmForConditionalGeneration, MimiModel


def arguments(description: str | None, steps: int, rate: float) -> argparse.ArgumentParser:
    """The options of every trainer."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("training/work"), help="corpus, checkpoints"
    )
    parser.add_argument("--steps", type=int, default=steps, help="length of the schedule")
    parser.add_argument("--rate", type=float, default=rate, help="highest learning rate")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop after this time; run again to continue"
    )
    parser.add_argument("--until", type=int, help="stop after this step; run again to continue")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--seed", type=int, default=1, help="seed of every random choice")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help=f"default here: {device}")
    return parser


def batch_random(seed: int, step: int) -> random.Random:
    """The random choices of one step, which a resumed run repeats."""
    return random.Random(seed * 1_000_003 + step)


def last_step(args: argparse.Namespace) -> int:
    """The step at which this run ends at the latest."""
    return args.steps if args.until is None else min(args.steps, args.until)


def learning_rate(step: int, steps: int, top: float, warm: int = 100) -> float:
    """Linear warm-up, then cosine decay to a twentieth of `top`."""
    if step < warm:
        return top * (step + 1) / warm
    part = min((step - warm) / max(steps - warm, 1), 1.0)
    return top * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * part)))


def save(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint (safetensors) atomically.

    Adam's moments are stored as bfloat16, which keeps a checkpoint of either model below 60 MB. The
    moments in memory are rounded too, so a resumed run computes the same as an uninterrupted one.
    """
    with torch.no_grad():
        for state in optimizer.state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key].copy_(state[key].bfloat16())
    moments = optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, state in moments["state"].items():
        for key, tensor in state.items():
            kept = tensor.bfloat16() if key.startswith("exp") else tensor
            tensors[f"optimizer.{number}.{key}"] = kept
    part = path.with_suffix(".part")
    # Clones: tied weights share memory, which the format does not allow.
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    facts = {"step": str(step), "groups": json.dumps(moments["param_groups"])}
    save_file(tensors, part, metadata=facts)
    part.rename(path)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint into model and optimizer; returns its step."""
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            part, _, rest = name.partition(".")
            if part == "optimizer":
                number, _, key = rest.partition(".")
                tensor = file.get_tensor(name)
                moments.setdefault(int(number), {})[key] = tensor
    model.load_state_dict(weights(path))
    optimizer.load_state_dict({"state": moments, "param_groups": json.loads(facts["groups"])})
    for state in optimizer.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = state[key].float()
    return int(facts["step"])


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The model's weights in a checkpoint."""
    prefix = "model."
    tensors = load_file(path)
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


class Clock:
    """The time limit of a run, and the interval between saves."""

    def __init__(self, minutes: float) -> None:
        self.began = self.saved = time.monotonic()
        self.end = self.began + minutes * 60

    def over(self) -> bool:
        """Whether the time limit of this run is reached."""
        return time.monotonic() >= self.end

    def due(self, seconds: float) -> bool:
        """True once every `seconds`."""
        now = time.monotonic()
        if now - self.saved < seconds:
            return False
        self.saved = now
        return True

    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began


def codec_of(folder: Path) -> MimiModel:
    """The codec from a folder of a codec or of a whole model, in float32."""
    if json.loads((folder / "config.json").read_text())["model_type"] == "csm":
        return CsmForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).codec_model
    return MimiModel.from_pretrained(folder, dtype=torch.float32)


def report(step: int, figures: dict[str, float]) -> None:
    """Prints held-out figures as a line of a table."""
    print(
        f"| {step} | " + " | ".join(f"{k} {v:.3f}" for k, v in figures.items()) + " |", flush=True
    )


def waves(places: torch.Tensor, count: int, most: int) -> torch.Tensor:
    """Cosines (places, most) of 1 to `most` half periods over a range of `count` places, the slow
    ones largest: near places are similar."""
    numbers = torch.arange(1, most + 1)
    return torch.cos(torch.pi * numbers * places[:, None] / (count - 1)) / numbers.sqrt()
