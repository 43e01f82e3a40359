"""Train the ear: a small network that classifies the phone of every frame from its audio.

It provides a perceptual loss for the codec's decoder (`codec.py --ear`): a spectral distance
compares the level of each band, but not the cues that distinguish a `t` from a `k`. The labels are
the symbols of the corpus. No speech-to-text model used for evaluation takes part in training.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
import torchaudio
from torch import nn
from torch.nn import functional as F

from . import corpus, crops
from .common import Clock, arguments, last_step, learning_rate, load, save, weights
from .spec import FRAME, SAMPLE_RATE, SYMBOLS

BANDS, HOP = 64, FRAME // 8
WIDTHS = (96, 128, 128, 160)
"""Channels of the layers; the last three have stride 2, from 10 ms to a frame of 80 ms."""
FLOOR = 2e-2
"""Added to magnitudes before the logarithm."""
LOUDEST_NOISE = 0.05
"""Training noise: classification must not depend on detail 25 dB below the speech."""


class Ear(nn.Module):
    """Audio (batch, 1, frames x FRAME) to logits of symbols (batch, SYMBOLS, frames)."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, n_fft=1024, win_length=600, hop_length=HOP, n_mels=BANDS, power=1.0
        )
        sizes = (BANDS, *WIDTHS)
        self.layers = nn.ModuleList(
            nn.Conv1d(a, b, 5, stride=1 if a == BANDS else 2, padding=2)
            for a, b in itertools.pairwise(sizes)
        )
        self.head = nn.Conv1d(WIDTHS[-1], len(SYMBOLS), 3, padding=1)

    def forward(self, sound: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits, and the activations of every layer (batch, channels, time)."""
        state = (self.mel(sound[:, 0])[..., :-1] + FLOOR).log()
        heard = []
        for layer in self.layers:
            state = F.gelu(layer(state))
            heard.append(state)
        return self.head(state), heard

    def compare(
        self, made: torch.Tensor, wanted: torch.Tensor, symbols: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Perceptual distance of audio, and the cross-entropy of the symbols heard in `made`.

        The distance is the mean difference of the layers' activations, each relative to its mean
        size: 0 for equal audio, about 1 for unrelated audio. symbols: numbers (batch, frames).
        """
        with torch.no_grad():
            _, truth = self(wanted)
        logits, heard = self(made)
        parts = [(a - b).abs().mean() / b.abs().mean() for a, b in zip(heard, truth, strict=True)]
        return torch.stack(parts).mean(), F.cross_entropy(logits, symbols)


def trained(path: Path) -> Ear:
    """An ear loaded from its checkpoint, frozen."""
    ear = Ear()
    ear.load_state_dict(weights(path))
    return ear.eval().requires_grad_(False)


def noisy(sound: torch.Tensor, step: int) -> torch.Tensor:
    """The audio with random gain and noise, seeded by the step."""
    random_ = torch.Generator().manual_seed(step)
    lots = torch.rand(2, len(sound), 1, 1, generator=random_).to(sound.device)
    noise = torch.randn(sound.shape, generator=random_).to(sound.device)
    return sound * (0.3 + lots[0]) + noise * lots[1] ** 3 * LOUDEST_NOISE


@torch.no_grad()
def evaluate(ear: Ear, rows: crops.Crops, device: str) -> float:
    """Accuracy on held-out frames."""
    right = []
    for step in range(8):
        sound, symbols = rows.batch(0, -1 - step, device)
        right.append((ear(sound)[0].argmax(1) == symbols).float().mean())
    return float(torch.stack(right).mean())


def train(args: argparse.Namespace) -> None:
    """Train until the schedule or --minutes ends."""
    torch.manual_seed(args.seed)
    ear = Ear().to(args.device)
    rows = crops.Crops(corpus.load(args.work, corpus.present(args.work)), args.stock_share)
    held = crops.Crops(corpus.load(args.work, [corpus.HELD, corpus.VOICES]), args.stock_share)
    optimizer = torch.optim.AdamW(ear.parameters(), args.rate, weight_decay=0.01)
    path = args.work / "ear.safetensors"
    step = load(path, ear, optimizer) if path.exists() else 0
    clock = Clock(args.minutes)
    while step < last_step(args) and not clock.over():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
        sound, symbols = rows.batch(args.seed, step, args.device)
        loss = F.cross_entropy(ear(noisy(sound, step))[0], symbols)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 250 == 0:
            told = evaluate(ear, held, args.device)
            print(f"step {step}  {clock.spent():.0f} s  loss {loss.item():.3f}  told {told:.3f}",
                  flush=True)  # fmt: skip
        if clock.due(120):
            save(path, step, ear, optimizer)
    save(path, step, ear, optimizer)
    print(f"| step | held-out accuracy |\n|---|---|\n| {step} | ", end="")
    print(f"{evaluate(ear, held, args.device):.3f} |")


def main() -> None:
    """Command line."""
    parser = arguments(__doc__, steps=4000, rate=1e-3)
    parser.add_argument("--stock-share", type=float, default=0.3, help="share of stock-voice crops")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
