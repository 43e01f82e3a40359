"""Train the encoder to hear pitch and size: of a reference, codebook 1 tells them.

The codes of codebook 1 below `HEARD_CODES` mean what the codes for speaking mean (`prosodic.py`):
periods of the voice in the frame, and the size of the speaker. The language model then copies them
instead of inferring them from the timbre. The encoder's transformer, its last convolution and the
projection of the acoustic codebooks are trained on features of the other convolutions, which stay
as they are; codebook 0 is held where it was. Codebooks 2 and 3 are fitted to what remains.

Reads the corpus and `others.npz`, writes the codec to `heard/` under --work. Audio passes through
simulated rooms and channels. Features are kept in `features/`.
"""

from __future__ import annotations

import argparse
import copy
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F
from transformers import MimiModel

from . import corpus, encode, others, speakers
from .books import UNREACHABLE
from .common import (
    Clock,
    arguments,
    batch_random,
    codec_of,
    last_step,
    learning_rate,
    load,
    report,
    save,
    waves,
)
from .entries import books_of
from .prosodic import LARGEST, PITCHES, SIZES, SMALLEST
from .spec import ENCODED, FRAME

HEARD_CODES = PITCHES * SIZES
ROWS = 16
"""Crops in a batch."""
LENGTHS = (40, 60, 80, 100)
"""Frames of the crops of a batch."""
PITCH_PART = 0.75
"""Share of the dimensions of an entry that tell the pitch; the others tell the size."""
NORM = 18.0
"""Of the entries, as of those that the codec had."""
COLD = 12.0
"""Divisor of squared distances in the likelihoods."""
BLUR = (0.6, 0.7)
"""Standard deviations of the targets of pitch and size, in codes."""
KEPT = 3.0
"""Weight of the difference of codebook 0's input from what it was."""
PASSES = 12
"""Passes of the fit of codebooks 2 and 3."""


@dataclass
class Heard:
    """Features of an utterance (2 x frames, channels), its periods (frames,), and its size."""

    features: npt.NDArray[np.float16]
    periods: npt.NDArray[np.float64]
    size: float


class Trainee(nn.Module):
    """The parts of the encoder to train, and the vectors of pitches and sizes."""

    pitches: torch.Tensor
    sizes: torch.Tensor

    def __init__(self, codec: MimiModel) -> None:
        super().__init__()
        quantizer = codec.quantizer
        self.transformer = codec.encoder.encoder_transformer
        self.down = codec.encoder.downsample
        self.acoustic = quantizer.acoustic_residual_vector_quantizer.input_proj
        self.before = copy.deepcopy(nn.ModuleList([self.transformer, self.down]))
        self.before.append(copy.deepcopy(quantizer.semantic_residual_vector_quantizer.input_proj))
        self.before.requires_grad_(False)
        random_ = torch.Generator().manual_seed(1)
        self.width = int(PITCH_PART * codec.config.codebook_dim)
        pitches = waves(torch.arange(PITCHES), PITCHES, 10)
        pitches = pitches @ torch.randn(10, self.width, generator=random_)
        rest = codec.config.codebook_dim - self.width
        sizes = waves(torch.arange(SIZES), SIZES, 5) @ torch.randn(5, rest, generator=random_)
        scale = NORM / (pitches.norm(dim=1).mean() ** 2 + sizes.norm(dim=1).mean() ** 2).sqrt()
        self.register_buffer("pitches", scale * pitches)
        self.register_buffer("sizes", scale * sizes)

    def entries(self) -> torch.Tensor:
        """The entry (HEARD_CODES, width) of each code: pitch, then size."""
        codes = torch.arange(HEARD_CODES)
        return torch.cat([self.pitches[codes // SIZES], self.sizes[codes % SIZES]], dim=1)

    def latents(self, features: torch.Tensor) -> torch.Tensor:
        """What the codebooks get (batch, hidden, frames) for features (batch, 2 x frames, ...)."""
        state = self.transformer(features).last_hidden_state
        return self.down(state.transpose(1, 2))

    def told(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-likelihoods of pitches and sizes (batch, frames, ...), and the change of codebook 0's
        input relative to its variance."""
        latents = self.latents(features)
        place = self.acoustic(latents).transpose(1, 2)
        parts = ((place[..., : self.width], self.pitches), (place[..., self.width :], self.sizes))
        pitch, size = ((-(torch.cdist(a, b[None]) ** 2) / COLD).log_softmax(-1) for a, b in parts)
        transformer, down, semantic = self.before
        with torch.no_grad():
            wanted = semantic(down(transformer(features).last_hidden_state.transpose(1, 2)))
        return pitch, size, F.mse_loss(semantic(latents), wanted) / wanted.var()

    def losses(self, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """Losses of features, periods (batch, frames) and sizes (batch,), nan if unknown."""
        features, periods, sizes = batch
        pitch, size, moved = self.told(features)
        high = (periods - speakers.FEWEST).clamp(0, PITCHES - 1)
        wide = (sizes - SMALLEST) / (LARGEST - SMALLEST) * (SIZES - 1)
        known = ~wide.isnan()
        wide = wide.nan_to_num().clamp(0, SIZES - 1)[:, None].expand_as(high)
        pitch = -(blurred(high, PITCHES, BLUR[0]) * pitch).sum(-1).mean()
        size = -(blurred(wide, SIZES, BLUR[1]) * size).sum(-1)[known].sum()
        size = size / (known.sum() * high.shape[1]).clamp_min(1)
        return {"loss": pitch + 0.5 * size + KEPT * moved, "pitch": pitch, "size": size,
                "moved": moved}  # fmt: skip


def blurred(values: torch.Tensor, count: int, width: float) -> torch.Tensor:
    """Distributions (..., count) around values (...)."""
    weights = torch.exp(-((torch.arange(count) - values[..., None]) ** 2) / (2 * width**2))
    return (weights / weights.sum(-1, keepdim=True)).float()


def heard(audio: npt.NDArray[np.int16], random_: random.Random) -> speakers.Samples:
    """The audio in a random room and through a random channel."""
    return speakers.channel(speakers.room(audio.astype(np.float32) / 32768, random_), random_)


@torch.inference_mode()
def features_of(codec: MimiModel, sound: speakers.Samples) -> npt.NDArray[np.float16]:
    """What the frozen convolutions give (2 x frames, channels)."""
    out = codec.encoder.encoder_seanet(torch.from_numpy(sound)[None, None])[0].T
    return np.asarray(out[: 2 * (len(sound) // FRAME)].numpy(), np.float16)


def _made(codec: MimiModel, number: int | None, work: Path) -> list[Heard]:
    """Features of a shard's references, or of other synthesizers: twice, but held-out ones once."""
    random_ = random.Random(number)
    if number is None:
        rows = [(row, heard(row["audio"], random_)) for row in others.load(work) for _ in range(2)]
    else:
        own = corpus.load(work, [number])
        pairs = [(a, b) for a, b in zip(own, encode.heard_rows(own, number), strict=True) if b]
        rows = [(a, b["audio"].astype(np.float32) / 32768) for a, b in pairs]
        if not corpus.held_out(number):
            rows += [(row, heard(row["audio"], random_)) for row, _ in pairs]
    return [Heard(features_of(codec, s), np.asarray(r["periods"]), r["size"]) for r, s in rows]


def features(codec: MimiModel, number: int | None, work: Path) -> list[Heard]:
    """Features of a shard, or of `others.npz` (None), made once and kept."""
    path = work / "features" / ("others.npz" if number is None else f"shard-{number:05d}.npz")
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        rows = _made(codec, number, work)
        joined = {
            "features": np.concatenate([r.features for r in rows] or [np.zeros((0, 1))]),
            "periods": np.concatenate([r.periods for r in rows] or [np.zeros(0)]),
        }
        np.savez(path, **joined, frames=[len(r.periods) for r in rows], size=[r.size for r in rows])
    with np.load(path) as data:
        if not len(data["frames"]):
            return []
        ends = np.cumsum(data["frames"])[:-1]
        parts = np.split(data["features"], 2 * ends), np.split(data["periods"], ends)
        return [Heard(*some) for some in zip(*parts, data["size"].tolist(), strict=True)]


def batch(rows: list[Heard], seed: int, step: int) -> tuple[torch.Tensor, ...]:
    """Features, periods and sizes of random crops; short utterances are repeated."""
    random_ = batch_random(seed, step)
    length, crops = random_.choice(LENGTHS), list[tuple[Any, Any, float]]()
    while len(crops) < ROWS:
        row = random_.choice(rows)
        if len(row.periods) < length and random_.random() < 0.7:
            continue
        lacks = max(0, length - len(row.periods))
        periods = np.pad(row.periods, (0, lacks), mode="wrap")
        long = np.pad(row.features, ((0, 2 * lacks), (0, 0)), mode="wrap")
        start = random_.randrange(len(periods) - length + 1)
        stop = start + length
        crops.append((long[2 * start : 2 * stop], periods[start:stop], row.size))
    some, periods, sizes = zip(*crops, strict=True)
    return (
        torch.from_numpy(np.stack(some).astype(np.float32)),
        torch.from_numpy(np.stack(periods).astype(np.float32)),
        torch.tensor(sizes),
    )


@torch.no_grad()
def evaluate(model: Trainee, rows: list[Heard]) -> dict[str, float]:
    """Correlations of median pitch and of size with the truth over held-out references; the share
    of frames whose pitch is off by more than 0.4 octaves; the change of codebook 0's input."""
    pairs, wrong, moved = [], [], []
    for row in rows:
        pitch, size, change = model.told(torch.from_numpy(row.features.astype(np.float32))[None])
        high = pitch[0].argmax(-1).numpy() + speakers.FEWEST
        wrong.append(np.abs(np.log2(high / row.periods)) > 0.4)
        pairs.append((np.log(np.median(high)), np.log(np.median(row.periods)),
                      float(size[0].argmax(-1).median()), row.size))  # fmt: skip
        moved.append(float(change))
    matrix = np.corrcoef(np.array(pairs).T)
    return {
        "pitch": float(matrix[0, 1]),
        "size": float(matrix[2, 3]),
        "octaves": float(np.concatenate(wrong).mean()),
        "moved": float(np.mean(moved)),
    }


@torch.no_grad()
def fit_books(codec: MimiModel, model: Trainee, rows: list[Heard]) -> None:
    """Sets the entries of codebook 1, and fits the others' to what it leaves of the references."""
    _, first, *rest = books_of(codec)
    first.embed_sum[:ENCODED] = UNREACHABLE
    first.embed_sum[:HEARD_CODES] = model.entries()
    first.cluster_usage[:ENCODED] = 1.0
    first._embed = None
    some = [torch.from_numpy(row.features.astype(np.float32))[None] for row in rows]
    places = [model.acoustic(model.latents(one))[0].T for one in some]
    left = torch.cat(places)
    left = left - first.embed[first.encode(left[None])[0]]
    for book in rest:
        centres = left[torch.randperm(len(left), generator=torch.Generator().manual_seed(1))]
        centres = centres[:ENCODED].clone()
        for _ in range(PASSES):
            chosen = torch.cdist(left, centres).argmin(1)
            count = torch.bincount(chosen, minlength=len(centres))
            sums = torch.zeros_like(centres).index_add_(0, chosen, left)
            centres = torch.where(count[:, None] > 0, sums / count.clamp_min(1)[:, None], centres)
        book.embed_sum[: len(centres)] = centres
        book.cluster_usage[:ENCODED] = 1.0
        book._embed = None
        left = left - centres[torch.cdist(left, centres).argmin(1)]


def train(args: argparse.Namespace) -> None:
    """Run until the end of the schedule, or until `--until` or `--minutes`."""
    torch.manual_seed(args.seed)
    codec = codec_of(args.start)
    numbers = [n for n in corpus.present(args.work) if n >= corpus.VOICES]
    held = features(codec, corpus.VOICES, args.work)
    rows = [row for n in (None, *numbers) for row in features(codec, n, args.work)]
    model = Trainee(codec)
    learn = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learn, args.rate, betas=(0.9, 0.98), weight_decay=0.01)
    path = args.work / "hearing.safetensors"
    step = load(path, model, optimizer) if path.exists() else 0
    clock = Clock(args.minutes)
    while step < last_step(args) and not clock.over():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
        losses = model.losses(batch(rows, args.seed, step))
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(learn, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            means = "  ".join(f"{key} {value:.3f}" for key, value in losses.items())
            print(f"step {step}  {clock.spent():.0f} s  {means}", flush=True)
        if step % 500 == 0:
            report(step, evaluate(model, held))
        if clock.due(120):
            save(path, step, model, optimizer)
    save(path, step, model, optimizer)
    report(step, evaluate(model, held))
    fit_books(codec, model, rows[:: max(1, len(rows) // 1500)])
    codec.save_pretrained(args.work / "heard")


def main() -> None:
    """Command line."""
    parser = arguments(__doc__, steps=4000, rate=7e-4)
    parser.add_argument("--start", type=Path, required=True, help="folder of a codec or model")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
