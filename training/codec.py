"""Train the codec, a small Mimi, from a trained one or from scratch.

Loss: log-mel distances at three resolutions, the commitment loss, and the cross-entropy of the
phone, which a linear layer predicts from codebook 0. The corpus has one symbol per codec frame, so
the phone loss needs no aligner. It makes codebook 0 phonetic, as distillation from a speech model
does for Mimi's semantic codebook.
`--freeze` trains the decoder and the entries of the codes in which the model speaks (`entries.py`)
alone; the encoder's codes stay valid, and so do models trained on them.
`--ear` adds a perceptual loss: the distance in features of a phone classifier (`ear.py`), and the
phones that it finds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torchaudio
from torch import nn
from torch.nn import functional as F
from transformers import MimiModel

from . import corpus, crops, phonetic
from .books import UNREACHABLE, displace, follow, lighten
from .common import Clock, arguments, codec_of, last_step, learning_rate, load, report, save
from .ear import Ear, trained
from .entries import Entries, books_of
from .spec import ENCODED, FRAME, SAMPLE_RATE, SYMBOLS, mimi_config

FLOOR = 2e-2
"""Added to mel magnitudes before the logarithm; smaller magnitudes are inaudible."""
LINE_FLOOR = 0.5
"""The same for the lines of a spectrum of 2,048 samples."""
HARMONICS = 0.3
"""Weight of the harmonics."""
WAVES = 2.0
"""Weight of the relative difference of complex spectra below 1.2 kHz. The corpus has whole periods
of the voice in every frame, so phases are known; without it low voices came out an octave up."""
HEARD = 4.0
"""Weight of the perceptual loss; with it both parts of the loss are about 1."""
SAID = 1.5
"""Weight of the cross-entropy of the phones that the ear finds in the decoded audio."""
REFIT = 200
"""Steps between new fits of the phone reader to the codebooks, which move."""


class MelLoss(nn.Module):
    """Mean absolute difference of log-mel and mel spectra at three resolutions, of the harmonics
    below 2.4 kHz, which mel bands do not tell apart, and of the lowest ones with their phases."""

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
        self.harmonics = torchaudio.transforms.Spectrogram(2048, hop_length=512, power=1.0)
        self.waves = torchaudio.transforms.Spectrogram(1024, hop_length=256, power=None)

    def forward(self, made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        loss = made.new_zeros(())
        for mel in self.mels:
            a, b = mel(made) * self.gain, mel(wanted) * self.gain
            loss = loss + F.l1_loss((a + FLOOR).log(), (b + FLOOR).log())
            loss = loss + 0.3 * F.l1_loss(a, b)
        a, b = (self.harmonics(x)[:, :, :205] for x in (made, wanted))
        fine = F.l1_loss((a + LINE_FLOOR).log(), (b + LINE_FLOOR).log())
        a, b = (self.waves(x)[:, :, :52] for x in (made, wanted))
        shape = (a - b).abs().mean() / b.abs().mean().clamp_min(1e-3)
        return loss / len(self.mels) + HARMONICS * fine + WAVES * shape


def random_weights(model: MimiModel) -> None:
    """Initialises all weights randomly: Mimi's default initialisation hardly trains."""
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
    for quantizer in books_of(model):
        quantizer.embed_sum.normal_()
        quantizer.cluster_usage.fill_(1.0)


class Trainee(nn.Module):
    """The codec with a linear layer that predicts phones from codebook 0."""

    def __init__(self, codec: MimiModel) -> None:
        super().__init__()
        self.codec = codec
        self.reader = nn.Linear(codec.config.codebook_dim, len(SYMBOLS))
        self.mel = MelLoss()
        self.spoken = Entries(codec)

    def forward(
        self,
        audio: torch.Tensor,
        phones: torch.Tensor,
        learn_codes: bool,
        ear: Ear | None = None,
    ) -> dict[str, torch.Tensor]:
        """Losses for audio (batch, 1, samples) and phone numbers per frame (batch, frames)."""
        # On a CPU bfloat16 is no faster, and the decoder's gradients grow without bound in it.
        half = self.training and audio.device.type == "cuda"
        with torch.set_grad_enabled(learn_codes and torch.is_grad_enabled()):
            with torch.autocast(audio.device.type, torch.bfloat16, enabled=half):
                latents = self.codec.encoder(audio).latents
            latents = latents.float()
            quantizer = self.codec.quantizer
            code, vectors, commitment = self._quantize(
                quantizer.semantic_residual_vector_quantizer, latents, learn_codes
            )
            rest = self._quantize(
                quantizer.acoustic_residual_vector_quantizer, latents, learn_codes
            )
            phone = F.cross_entropy(self.reader(vectors).transpose(1, 2), phones)
        code, commitment = code + rest[0], commitment + rest[2]
        with torch.autocast(audio.device.type, torch.bfloat16, enabled=half):
            made = self.codec.decoder(code).audio_values
        near = self._compare(made.float()[..., : audio.shape[-1]], audio, phones, ear)
        if learn_codes:
            near["loss"] = near["loss"] + 0.25 * commitment + 0.3 * phone
        return {**near, "commitment": commitment, "phone": phone}

    def redecode(
        self,
        codes: torch.Tensor,
        audio: torch.Tensor,
        phones: torch.Tensor,
        lead: int,
        ear: Ear | None = None,
    ) -> dict[str, torch.Tensor]:
        """Losses of decoded codes (batch, codebooks, frames) against their audio and phones, from
        frame `lead` on."""
        made = self.codec.decoder(self.spoken.decoded(self.codec, codes)).audio_values
        skip = lead * FRAME
        made, audio = made.float()[..., skip : audio.shape[-1]], audio[..., skip:]
        return self._compare(made, audio, phones[:, lead:], ear)

    def keep(self) -> MimiModel:
        """The codec with the spoken entries as they are now."""
        self.spoken.keep(self.codec)
        return self.codec

    def _compare(
        self, made: torch.Tensor, wanted: torch.Tensor, phones: torch.Tensor, ear: Ear | None
    ) -> dict[str, torch.Tensor]:
        spectral = self.mel(made, wanted)
        if ear is None:
            return {"loss": spectral, "spectral": spectral}
        heard, said = ear.compare(made, wanted, phones)
        loss = spectral + HEARD * heard + SAID * said
        return {"loss": loss, "spectral": spectral, "heard": heard, "said": said}

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
                follow(book, chosen, residual)
            residual, total = residual - picked, total + picked
        straight = x + (total - x).detach()
        size = x.detach().pow(2).mean().clamp_min(1e-3)
        return part.output_proj(straight.transpose(1, 2)), straight, F.mse_loss(x, total) / size


def fit_reader(model: Trainee, rows: crops.Crops, start: int, batches: int = 40) -> float:
    """Fit the phone reader to the current codec; returns its last loss.

    A random reader sends large gradients into the encoder. An outdated reader pulls codes towards
    the former places of the phones.
    """
    part = model.codec.quantizer.semantic_residual_vector_quantizer
    device, pairs = next(model.parameters()).device, []
    with torch.no_grad():
        for step in range(batches):
            audio, phones = rows.batch(-1, start + step, str(device))
            _, vectors, _ = model._quantize(part, model.codec.encoder(audio).latents, False)
            pairs.append((vectors.flatten(0, 1), phones.flatten()))
    vectors, phones = (torch.cat(some) for some in zip(*pairs, strict=True))
    size = float(vectors.pow(2).mean().sqrt().clamp_min(1))
    optimizer = torch.optim.Adam(model.reader.parameters(), 0.03 / size, weight_decay=1e-4)
    for _ in range(200):
        loss = F.cross_entropy(model.reader(vectors), phones)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def start(path: Path | None) -> MimiModel:
    """The codec to train: from a folder of a codec or of a whole model, or a new one."""
    if path:
        return codec_of(path)
    model = MimiModel(mimi_config())
    with torch.no_grad():
        random_weights(model)
    first = model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    first.embed_sum[0], first.cluster_usage[0] = UNREACHABLE, 1.0
    return model


def place_phonetic(codec: MimiModel, rows: list[dict[str, Any]]) -> None:
    """Give the phonetic codes entries near those that the encoder chooses for the same phones, and
    all codes in which the model speaks a place that the encoder does not reach."""
    first = codec.quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    coded = [(row["encoded"][:, 0], row["frames"]) for row in rows if "encoded" in row]
    mean = first.embed[1:ENCODED].mean(0)
    phonetic.place(codec, phonetic.means(first.embed, coded, mean))


def evaluate(
    model: Trainee, rows: crops.Crops, device: str, ear: Ear | None = None
) -> dict[str, float]:
    """Mean losses over 8 fixed batches."""
    model.eval()
    totals: dict[str, float] = {}
    with torch.no_grad():
        for step in range(8):
            if "codes" in rows.stock[0]:
                parts = model.redecode(*rows.coded_batch(0, -1 - step, device), ear)
            else:
                parts = model(*rows.batch(0, -1 - step, device), False, ear)
            for key, value in parts.items():
                totals[key] = totals.get(key, 0.0) + value.item() / 8
    model.train()
    return totals


def _layer(name: str) -> float:
    """The encoder layer of a weight; infinity for weights after the convolutions."""
    _, found, rest = name.partition("encoder_seanet.layers.")
    return int(rest.split(".")[0]) if found else float("inf")


def optimizer_of(model: Trainee, rate: float) -> torch.optim.AdamW:
    """AdamW; the encoder's rate is a third of the decoder's, so that the codebooks can follow."""
    fast_parts = (model.codec.decoder, model.reader)
    shares = {
        1.0: [*model.spoken.parameters(), *(p for part in fast_parts for p in part.parameters())]
    }
    fast = set(map(id, shares[1.0]))
    shares[1 / 3] = [p for p in model.parameters() if id(p) not in fast]
    groups = [
        {"params": [p for p in some if p.requires_grad], "share": share}
        for share, some in shares.items()
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, rate, betas=(0.8, 0.99), weight_decay=0.0)


def _trainee(args: argparse.Namespace, rows: crops.Crops) -> Trainee:
    """The codec to continue with; gradients are on only for the weights to train."""
    codec = start(args.start)
    if args.freeze and not phonetic.placed(codec):
        place_phonetic(codec, rows.stock)
    if not args.freeze:
        displace(codec)  # encoder and projections move, so the entries must be placed again
    model = Trainee(codec).to(args.device).train()
    if args.freeze:
        model.requires_grad_(False)
        model.codec.decoder.requires_grad_(True)
        model.spoken.requires_grad_(True)
    for name, weight in model.codec.encoder.named_parameters():
        if _layer(name) < args.encoder_from:
            weight.requires_grad_(False)
    return model


def _rows(args: argparse.Namespace) -> crops.Crops:
    if args.freeze:
        coded = crops.coded_rows(args.work, corpus.present(args.work))
        return crops.Crops(coded, args.stock_share)
    return crops.Crops(corpus.load(args.work, corpus.present(args.work)), args.stock_share)


def _losses(
    model: Trainee, rows: crops.Crops, step: int, args: argparse.Namespace, ear: Ear | None
) -> dict[str, torch.Tensor]:
    if args.freeze:
        return model.redecode(*rows.coded_batch(args.seed, step, args.device), ear)
    if step % REFIT == 0 and (step or args.start):
        print(f"reader fitted: {fit_reader(model, rows, step):.3f}", flush=True)
    return model(*rows.batch(args.seed, step, args.device), True, ear)


def train(args: argparse.Namespace) -> None:
    """Run until the end of the schedule, or until `--until` or `--minutes`."""
    torch.manual_seed(args.seed)
    rows = _rows(args)
    model = _trainee(args, rows)
    ear = trained(args.ear).to(args.device) if args.ear else None
    held = crops.Crops(
        crops.coded_rows(args.work, [corpus.HELD, corpus.VOICES])
        if args.freeze
        else corpus.load(args.work, [corpus.HELD]),
        args.stock_share,
    )
    learn = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(model, args.rate)
    path = args.work / args.name
    step = load(path, model, optimizer) if path.exists() else 0
    if not step and not args.freeze and args.start:
        lighten(model.codec)
    clock, means = Clock(args.minutes), Means(step)
    while step < last_step(args) and not clock.over():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate) * group["share"]
        losses = _losses(model, rows, step, args, ear)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(learn, 1.0)
        optimizer.step()
        step += 1
        means.add(step, losses)
        if step % 50 == 0:
            print(f"step {step}  {clock.spent():.0f} s  {means}", flush=True)
        if step % 500 == 0:
            report(step, evaluate(model, held, args.device, ear))
        if clock.due(120):
            save(path, step, model, optimizer)
            model.keep().save_pretrained(args.work / "codec")
    save(path, step, model, optimizer)
    model.keep().save_pretrained(args.work / "codec")
    report(step, evaluate(model, held, args.device, ear))


class Means:
    """Running means of the printed losses."""

    def __init__(self, first: int) -> None:
        self.first, self.values = first, dict[str, float]()

    def add(self, step: int, losses: dict[str, torch.Tensor]) -> None:
        """Add one step's losses."""
        for key, value in losses.items():
            mean = self.values.setdefault(key, value.item())
            self.values[key] = mean + (value.item() - mean) / min(step - self.first, 50)

    def __str__(self) -> str:
        return "  ".join(f"{key} {mean:.3f}" for key, mean in self.values.items())


def main() -> None:
    """Command line."""
    parser = arguments(__doc__, steps=20_000, rate=5e-4)
    parser.add_argument(
        "--start", type=Path, help="folder of a codec, or of an exported model, to start from"
    )
    parser.add_argument("--freeze", action="store_true", help="train the decoder alone")
    parser.add_argument("--ear", type=Path, help="checkpoint of the phone classifier")
    parser.add_argument(
        "--stock-share", type=float, default=crops.STOCK_SHARE, help="share of stock-voice crops"
    )
    parser.add_argument("--encoder-from", type=int, default=0, help="first encoder layer to train")
    parser.add_argument("--name", default="codec.safetensors", help="checkpoint's file name")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
