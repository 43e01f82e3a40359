"""Train the codec: a small Mimi, from a first one or from scratch.

Loss: log-mel distances at three resolutions, commitment, and the phone that codebook 0 must tell.
Speech is on the codec's grid, one symbol a frame, so that the last needs no aligner; it makes
codebook 0 phonetic, as Mimi distils its own from a speech model.
`--freeze` trains the decoder alone, from the codes that `encode.py` wrote: they, and what was
trained on them, stay valid. `--ear` adds what a network that knows phones hears (`ear.py`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torchaudio
from torch import nn
from torch.nn import functional as F
from transformers import CsmForConditionalGeneration, MimiModel

from . import corpus, crops
from .common import Clock, arguments, last_step, learning_rate, load, save
from .ear import Ear, trained
from .spec import FRAME, SAMPLE_RATE, SYMBOLS, mimi_config

LEAD = 2
"""Frames of a crop that only warm the decoder up."""
FLOOR = 2e-2
"""Added to mel magnitudes before the logarithm: below it there is nothing to hear."""
HEARD = 4.0
"""Weight of what an ear hears: it brings both parts of the loss to about 1."""
DECAY = 0.99
"""Of the codebooks' running means."""
UNREACHABLE = 1e3
"""Entry 0 of codebook 0: code 0 means the end of speech and must never be chosen."""


class MelLoss(nn.Module):
    """Mean absolute difference of log-mel and mel spectra at three resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.mels = nn.ModuleList(
            torchaudio.transforms.MelSpectrogram(
                SAMPLE_RATE, n_fft=n, hop_length=n // 4, n_mels=m, power=1.0, norm="slaney"
            )
            for n, m in ((512, 40), (1024, 80), (2048, 80))
        )
        self.gain = (
            100.0  # slaney's normalisation makes values small; this brings speech to about 1
        )

    def forward(self, made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        loss = made.new_zeros(())
        for mel in self.mels:
            a, b = mel(made) * self.gain, mel(wanted) * self.gain
            loss = loss + F.l1_loss((a + FLOOR).log(), (b + FLOOR).log())
            loss = loss + 0.3 * F.l1_loss(a, b)
        return loss / len(self.mels)


def random_weights(model: MimiModel) -> None:
    """Start from noise: Mimi's default initialisation hardly trains."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, (nn.Conv1d, nn.Linear)):
            nn.init.normal_(weight, 0, weight[0].numel() ** -0.5)
        elif isinstance(module, nn.ConvTranspose1d):
            fan_in = weight.shape[0] * weight.shape[2] / module.stride[0]
            nn.init.normal_(weight, 0, fan_in**-0.5)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        if name.endswith("block.3.conv"):
            weight.data.mul_(0.5)
    for quantizer in _books(model):
        quantizer.embed_sum.normal_()
        quantizer.cluster_usage.fill_(1.0)


def _books(model: MimiModel) -> list[nn.Module]:
    parts = (
        model.quantizer.semantic_residual_vector_quantizer,
        model.quantizer.acoustic_residual_vector_quantizer,
    )
    return [layer.codebook for part in parts for layer in part.layers]


class Trainee(nn.Module):
    """The codec with the head that reads phones from codebook 0."""

    def __init__(self, codec: MimiModel) -> None:
        super().__init__()
        self.codec = codec
        self.reader = nn.Linear(codec.config.codebook_dim, len(SYMBOLS))
        self.mel = MelLoss()

    def forward(
        self, audio: torch.Tensor, phones: torch.Tensor, learn_codes: bool, ear: Ear | None = None
    ) -> dict[str, torch.Tensor]:
        """Losses for audio (batch, 1, samples) with one phone number a frame (batch, frames)."""
        with torch.set_grad_enabled(learn_codes and torch.is_grad_enabled()):
            with torch.autocast(audio.device.type, torch.bfloat16, enabled=self.training):
                latents = self.codec.encoder(audio).latents
            latents = latents.float()
            quantizer = self.codec.quantizer
            first = self._quantize(
                quantizer.semantic_residual_vector_quantizer, latents, learn_codes
            )
            rest = self._quantize(
                quantizer.acoustic_residual_vector_quantizer, latents, learn_codes
            )
            phone = F.cross_entropy(self.reader(first[1]).transpose(1, 2), phones)
        with torch.autocast(audio.device.type, torch.bfloat16, enabled=self.training):
            made = self.codec.decoder(first[0] + rest[0]).audio_values
        near = self._compare(made.float()[..., : audio.shape[-1]], audio, ear)
        commitment = first[2] + rest[2]
        if learn_codes:
            near["loss"] = near["loss"] + 0.25 * commitment + 0.3 * phone
        return {**near, "commitment": commitment, "phone": phone}

    def redecode(
        self, codes: torch.Tensor, audio: torch.Tensor, ear: Ear | None = None
    ) -> dict[str, torch.Tensor]:
        """Losses of decoding codes (batch, codebooks, frames) against their audio.

        The first frames lack what came before them in the utterance; they do not count.
        """
        made = self.codec.decoder(self.codec.quantizer.decode(codes)).audio_values
        skip = LEAD * FRAME
        return self._compare(made.float()[..., skip : audio.shape[-1]], audio[..., skip:], ear)

    def _compare(
        self, made: torch.Tensor, wanted: torch.Tensor, ear: Ear | None
    ) -> dict[str, torch.Tensor]:
        spectral = self.mel(made, wanted)
        if ear is None:
            return {"loss": spectral, "spectral": spectral}
        heard = ear.distance(made, wanted)
        return {"loss": spectral + HEARD * heard, "spectral": spectral, "heard": heard}

    def _quantize(
        self, part: nn.Module, latents: torch.Tensor, learn: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = part.input_proj(latents).transpose(1, 2)
        residual, total = x.detach(), torch.zeros_like(x)
        for layer in part.layers:
            book = layer.codebook
            chosen = book.encode(residual)
            picked = F.embedding(chosen, book.embed)
            if learn and self.training:
                _follow(book, chosen, residual)
            residual, total = residual - picked, total + picked
        straight = x + (total - x).detach()
        size = x.detach().pow(2).mean().clamp_min(1e-3)
        return part.output_proj(straight.transpose(1, 2)), straight, F.mse_loss(x, total) / size


@torch.no_grad()
def _follow(book: nn.Module, chosen: torch.Tensor, vectors: torch.Tensor) -> None:
    """Move a codebook's entries to the running mean of what chose them; revive idle ones."""
    barred = bool(book.embed[0].abs().max() > UNREACHABLE / 2)
    flat, chosen = vectors.reshape(-1, vectors.shape[-1]), chosen.reshape(-1)
    hits = torch.zeros_like(book.cluster_usage).index_add_(0, chosen, torch.ones_like(flat[:, 0]))
    sums = torch.zeros_like(book.embed_sum).index_add_(0, chosen, flat)
    book.cluster_usage.mul_(DECAY).add_(hits, alpha=1 - DECAY)
    book.embed_sum.mul_(DECAY).add_(sums, alpha=1 - DECAY)
    share = len(flat) / len(hits)
    idle = (book.cluster_usage < 0.05 * share).nonzero()[:, 0]
    if len(idle):
        pick = torch.arange(len(idle), device=idle.device) * 7919 % len(flat)
        book.embed_sum[idle] = flat[pick] * share * 0.5
        book.cluster_usage[idle] = share * 0.5
    if barred:
        book.embed_sum[0], book.cluster_usage[0] = UNREACHABLE, 1.0
    book._embed = None


def start(path: Path | None) -> MimiModel:
    """A codec to train: that of a folder (its own, or a whole model's), or a new one."""
    if path and json.loads((path / "config.json").read_text())["model_type"] == "csm":
        return CsmForConditionalGeneration.from_pretrained(path, dtype=torch.float32).codec_model
    if path:
        return MimiModel.from_pretrained(path, dtype=torch.float32)
    model = MimiModel(mimi_config())
    with torch.no_grad():
        random_weights(model)
    first = model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    first.embed_sum[0], first.cluster_usage[0] = UNREACHABLE, 1.0
    return model


def evaluate(
    model: Trainee, rows: list[dict], device: str, ear: Ear | None = None
) -> dict[str, float]:
    """Mean losses over 8 fixed batches."""
    model.eval()
    totals: dict[str, float] = {}
    with torch.no_grad():
        for step in range(8):
            parts = model(*crops.batch(rows, 0, -1 - step, device), False, ear)
            for key, value in parts.items():
                totals[key] = totals.get(key, 0.0) + value.item() / 8
    model.train()
    return totals


def train(args: argparse.Namespace) -> None:
    """Run until the schedule's or the piece's end."""
    torch.manual_seed(args.seed)
    model = Trainee(start(args.start)).to(args.device).train()
    ear = trained(args.ear).to(args.device) if args.ear else None
    if args.freeze:
        model.requires_grad_(False)
        model.codec.decoder.requires_grad_(True)
        rows = crops.coded_rows(args.work, args.main_share)
    else:
        rows = corpus.load(args.work, range(1, args.shards))
    held = corpus.load(args.work, range(1))
    learn = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learn, args.rate, betas=(0.8, 0.99), weight_decay=0.0)
    path = args.work / args.name
    step = load(path, model, optimizer) if path.exists() else 0
    clock, means, first = Clock(args.minutes), dict[str, float](), step
    while step < last_step(args) and not clock.over():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
        if args.freeze:
            losses = model.redecode(*crops.coded_batch(rows, args.seed, step, args.device), ear)
        else:
            losses = model(*crops.batch(rows, args.seed, step, args.device), True, ear)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(learn, 1.0)
        optimizer.step()
        step += 1
        for key, value in losses.items():
            mean = means.setdefault(key, value.item())
            means[key] = mean + (value.item() - mean) / min(step - first, 50)
        if step % 50 == 0:
            text = "  ".join(f"{key} {mean:.3f}" for key, mean in means.items())
            print(f"step {step}  {clock.spent():.0f} s  {text}", flush=True)
        if step % 500 == 0:
            report(step, evaluate(model, held, args.device, ear))
        if clock.due(120):
            save(path, step, model, optimizer)
            model.codec.save_pretrained(args.work / "codec")
    save(path, step, model, optimizer)
    model.codec.save_pretrained(args.work / "codec")
    report(step, evaluate(model, held, args.device, ear))


def report(step: int, figures: dict[str, float]) -> None:
    """One line of a table: held-out figures."""
    print(f"| {step} | " + " | ".join(f"{k} {v:.3f}" for k, v in figures.items()) + " |",
          flush=True)  # fmt: skip


def main() -> None:
    """Command line."""
    parser = arguments(__doc__, steps=20_000, rate=5e-4)
    parser.add_argument(
        "--start", type=Path, help="folder of a codec, or of an exported model, to start from"
    )
    parser.add_argument("--freeze", action="store_true", help="train the decoder alone")
    parser.add_argument("--ear", type=Path, help="checkpoint of an ear to please")
    parser.add_argument(
        "--main-share", type=float, default=0.7, help="of the main voice (--freeze)"
    )
    parser.add_argument("--name", default="codec.safetensors", help="of the checkpoint")
    parser.add_argument("--shards", type=int, default=24, help="shard 0 is held out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
