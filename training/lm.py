"""Train the language model: text symbols to codec codes, turn by turn, in CSM's prompt format.

Four measures make it learn to read within an hour on a CPU:
- the symbol of a frame is exactly `spec.WIDTH` positions before it (see `phones.py`), and some
  attention heads are initialised to attend there;
- audio inputs are masked or replaced in part of the turns, so the model must use the text;
- most padding is left out of the computation; positions stay those of the full width;
- the depth decoder learns from a random half of the frames.
A sequence has one or two turns: an utterance in the stock voice, or a reference in the encoder's
codes and an utterance of the same speaker.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CsmForConditionalGeneration

from . import common, encode
from .batches import (
    SHARES,
    Corpus,
    Sequences,
    build,
    collate,
    reference,
    speakers,
    token,
)  # fmt: skip
from .common import Clock, arguments, last_step, learning_rate, load, report, save, waves
from .corpus import HELD, STOCK, VOICES, present
from .phones import LEAD, PAUSE, STRESSED
from .prosodic import PITCHES, SIZES
from .spec import AUDIO, AUDIO_END, CODEBOOKS, ENCODED, END, VOCAB, WIDTH, csm_config

DEPTH_SHARE = 0.5
REST = (1.0, 0.5, 0.5)
"""Weights of codebooks 1 to 3: pitch and size are what a reference must determine."""
BEST = "lm-best.safetensors"
"""The checkpoint with the lowest held-out loss; later ones overfit."""


def embed(model: CsmForConditionalGeneration, batch: Sequences) -> torch.Tensor:
    """Input embeddings (rows, length, hidden), merged from text and audio as in the model."""
    sound = (batch.text == AUDIO) | (batch.text == AUDIO_END)
    text = model.embed_text_tokens(batch.text)
    return torch.where(sound[..., None], model.backbone_model.embed_tokens(batch.shown), text)


def hidden_states(model: CsmForConditionalGeneration, batch: Sequences) -> torch.Tensor:
    """The backbone's output (rows, length, hidden).

    Runs layer by layer, because `transformers` takes gaps in positions for document borders.
    """
    backbone = model.backbone_model
    state = embed(model, batch)
    rotary = backbone.rotary_emb(state, position_ids=batch.position)
    for layer in backbone.layers:
        state = layer(state, attention_mask=None, position_embeddings=rotary)
    return backbone.norm(state)


def losses(
    model: CsmForConditionalGeneration, batch: Sequences, random_: torch.Generator, share: float
) -> dict[str, torch.Tensor]:
    """Cross-entropy of codebook 0, and of the others on a share of the frames and half the ends."""
    state = hidden_states(model, batch)[:, :-1]
    codes, weight = batch.codes[:, 1:], batch.weight[:, 1:]
    here = weight > 0
    state, codes, weight = state[here], codes[here], weight[here]
    first = F.cross_entropy(model.lm_head(state).float(), codes[:, 0], reduction="none")
    is_end = codes[:, 0] == END
    lots = torch.rand(len(codes), generator=random_).to(codes.device)
    chosen = (lots < share) | (is_end & (lots < 0.5))
    picked = codes[chosen]
    logits = model.depth_decoder(
        input_ids=F.pad(picked[:, :-1], (1, 0)),
        backbone_last_hidden_state=state[chosen],
        use_cache=False,
    ).logits
    rest = F.cross_entropy(logits.transpose(1, 2).float(), picked[:, 1:], reduction="none")
    frame = ~is_end[chosen]
    return {
        "loss": (first * weight).sum() / weight.sum()
        + ((rest @ rest.new_tensor(REST)) * weight[chosen]).sum() / weight[chosen].sum(),
        "first": first[~is_end].mean(),
        "end": first[is_end].mean(),
        "rest": rest[frame].mean(),
        "books": rest[frame].mean(0).detach(),
    }


def _look_at(model: CsmForConditionalGeneration, layer: int, distances: list[int]) -> None:
    """Initialises the heads of a layer to attend at fixed distances.

    Dimension 0 of every embedding is a constant. Queries and keys project it into their faster
    rotary pairs, with phases that match at the distance.
    """
    config = model.config
    attention = model.backbone_model.layers[layer].self_attn
    half, pairs, strength = config.head_dim // 2, 16, 3.0
    speed = model.backbone_model.rotary_emb.inv_freq[:pairs]
    query = attention.q_proj.weight.view(-1, config.head_dim, config.hidden_size)
    key = attention.k_proj.weight.view(-1, config.head_dim, config.hidden_size)
    for head in range(config.num_key_value_heads):
        key[head].mul_(0.5)
        key[head, :, 0] = 0.0
        key[head, :pairs, 0] = strength / 2
    for head, distance in enumerate(distances):
        query[head].mul_(0.5)
        query[head, :, 0] = 0.0
        query[head, :pairs, 0] = strength / 2 * torch.cos(speed * distance)
        query[head, half : half + pairs, 0] = -strength / 2 * torch.sin(speed * distance)


@torch.no_grad()
def new_model(seed: int) -> CsmForConditionalGeneration:
    """A model with initial weights."""
    torch.manual_seed(seed)
    model = CsmForConditionalGeneration(csm_config())
    depth = 2 * model.config.num_hidden_layers
    for name, weight in model.named_parameters():
        if name.startswith("codec_model") or weight.ndim == 1:
            continue
        fan_in = weight.shape[1]
        scale = fan_in**-0.5 / (math.sqrt(depth) if "o_proj" in name or "down_proj" in name else 1)
        if "embed_text" in name or "embed_audio" in name or "embed_tokens" in name:
            scale = 1.0 if "text" in name else CODEBOOKS**-0.5
        if "lm_head" in name or "codebooks_head" in name:
            scale = 0.02
        nn.init.normal_(weight, 0, scale)
    model.tie_weights()
    teach_voices(model)
    teach_hearing(model)
    model.embed_text_tokens.weight[:, 0] = 2.0
    model.backbone_model.embed_tokens.embed_audio_tokens.weight[:, 0] = 2.0 / CODEBOOKS
    _look_at(model, 0, [WIDTH, WIDTH - 1, WIDTH + 1, 1])
    _look_at(model, 1, [WIDTH - 2, WIDTH, WIDTH + 2, 2])
    return model


def started(folder: Path) -> CsmForConditionalGeneration:
    """An exported model, to continue training without a checkpoint."""
    return CsmForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def teach_symbols(model: CsmForConditionalGeneration) -> None:
    """Initialises the embeddings of new symbols with those of the most similar known symbols."""
    table = model.embed_text_tokens.weight
    for plain, stressed in (*STRESSED.items(), (PAUSE[1], LEAD)):
        table[token(stressed)] = table[token(plain)]


@torch.no_grad()
def teach_voices(model: CsmForConditionalGeneration) -> None:
    """Initialises embeddings and outputs of the codes of pitch and size: near ones are similar.

    With random ones every code would have to be learnt by itself.
    """
    random_ = torch.Generator().manual_seed(1)
    codes = torch.arange(PITCHES * SIZES)
    shapes = torch.cat([waves(codes // SIZES, PITCHES, 10), waves(codes % SIZES, SIZES, 5)], dim=1)
    rows = ENCODED + codes
    table = model.backbone_model.embed_tokens.embed_audio_tokens.weight
    head = model.depth_decoder.codebooks_head.weight
    size, known = table.shape[1], slice(VOCAB, VOCAB + ENCODED)

    def like(wanted: torch.Tensor) -> torch.Tensor:
        made = shapes @ torch.randn(shapes.shape[1], size, generator=random_)
        return made * (wanted.std() / made.std())

    table[VOCAB + rows] = like(table[known])
    head[0, :, rows] = 0.3 * like(head[0, :, :ENCODED]).T


@torch.no_grad()
def teach_hearing(model: CsmForConditionalGeneration) -> None:
    """Initialises the embeddings of the pitches and sizes that the encoder hears (`hearing.py`)
    with those of the same pitches and sizes when they are spoken."""
    table = model.backbone_model.embed_tokens.embed_audio_tokens.weight
    heard = VOCAB + torch.arange(PITCHES * SIZES)
    table[heard] = table[heard + ENCODED]


class Trainee(nn.Module):
    """The language model without its codec: the weights that a checkpoint holds."""

    def __init__(self, model: CsmForConditionalGeneration) -> None:
        super().__init__()
        self.embed_text_tokens = model.embed_text_tokens
        self.backbone_model = model.backbone_model
        self.lm_head = model.lm_head
        self.depth_model = model.depth_decoder.model
        self.depth_head = model.depth_decoder.codebooks_head
        # One shared matrix with two names; `state_dict` has it once.
        self.depth_model.embed_tokens.weight = (
            model.backbone_model.embed_tokens.embed_audio_tokens.weight
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The weights without the second name of the shared matrix."""
        full = super().state_dict(*args, **kwargs)
        return {k: v for k, v in full.items() if k != "depth_model.embed_tokens.weight"}

    def load_state_dict(self, state: dict[str, Any], *_: Any, **__: Any) -> Any:
        """Loads the result of `state_dict`."""
        return super().load_state_dict(state, strict=False)


@torch.no_grad()
def evaluate(model: CsmForConditionalGeneration, rows: list[dict], device: str) -> dict[str, float]:
    """Cross-entropy on held-out turns of the stock voice and of other speakers.

    stock: no reference; voice, foreign: after a reference of the speaker, and of another. `hidden`:
    the turn's own frames are masked, so that voice can come from the reference only. Figures are of
    codebook 0 (phones), of 1 (pitch and size) and of 2 (level); `end` is the end frame's.
    """
    model.eval()
    stock = [[row] for row in rows if row["voice"] == STOCK][:64]
    groups = speakers([row for row in rows if row["voice"] != STOCK])[:64]
    voice = [[reference(heard[0]), said[-1]] for heard, said in groups]
    foreign = [[reference(groups[n - 1][0][0]), said[-1]] for n, (_, said) in enumerate(groups)]
    figures = {}
    for name, turns, share in (
        ("stock", stock, 0.0), ("voice", voice, 0.0),
        ("hidden", voice, 1.0), ("foreign hidden", foreign, 1.0),
    ):  # fmt: skip
        if not turns:
            continue
        random_ = random.Random(7)
        items = [build(some, random_, True, share) for some in turns]
        total = losses(model, collate(items).to(device), torch.Generator().manual_seed(1), 0.25)
        figures[f"{name} 1"] = total["books"][0].item()
        if name in ("stock", "voice"):
            figures[f"{name} 0"] = total["first"].item()
            figures[f"{name} 2"] = total["books"][1].item()
            figures[f"{name} end"] = total["end"].item()
    model.train()
    return figures


def worth(figures: dict[str, float]) -> float:
    """What a checkpoint is judged by: lower is better."""
    judged = ("stock 0", "stock 1", "voice 0", "voice 1", "hidden 1")
    return sum(figures.get(name, 0.0) for name in judged)


def optimizer_of(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices, but not on embeddings and norms."""
    decay = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
    free = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, rate, betas=(0.9, 0.98), eps=1e-8)


def train(args: argparse.Namespace) -> None:
    """Train until the schedule or --minutes ends."""
    model = started(args.start) if args.start else new_model(args.seed)
    if args.new_symbols:
        teach_symbols(model)
    if args.new_hearing:
        teach_hearing(model)
    model = model.to(args.device).train()
    trainee = Trainee(model)
    shards = present(args.work, "codes")
    corpus = Corpus(encode.load(args.work, shards), tuple(args.shares))
    held = encode.load(args.work, [HELD, VOICES])
    print(f"{len(corpus.stock)} stock utterances, {len(corpus.groups)} speakers", flush=True)
    optimizer = optimizer_of(trainee, args.rate)
    path = args.work / "lm.safetensors"
    step = load(path, trainee, optimizer) if path.exists() else 0
    best = lowest(path.with_name(BEST), model, held, args.device)
    clock, mean, first = Clock(args.minutes), {"first": 0.0, "rest": 0.0}, step
    while step < last_step(args) and not clock.over():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
        batch = corpus.batch(args.seed, step).to(args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.half):
            parts = losses(model, batch, torch.Generator().manual_seed(step), DEPTH_SHARE)
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        step += 1
        for key in mean:
            mean[key] += (parts[key].item() - mean[key]) / min(step - first, 25)
        if step % 25 == 0:
            means = "  ".join(f"{key} {value:.3f}" for key, value in mean.items())
            print(f"step {step}  {clock.spent():.0f} s  {means}", flush=True)
        if step % args.check == 0:
            figures = evaluate(model, held, args.device)
            report(step, figures)
            if worth(figures) < best:
                best = worth(figures)
                save(path.with_name(BEST), step, trainee, optimizer)
        if clock.due(120):
            save(path, step, trainee, optimizer)
    save(path, step, trainee, optimizer)
    report(step, evaluate(model, held, args.device))


def lowest(path: Path, model: CsmForConditionalGeneration, held: list[dict], device: str) -> float:
    """The held-out loss of the best checkpoint so far; infinite if there is none."""
    if not path.exists():
        return math.inf
    trainee = Trainee(model)
    now = {name: weight.clone() for name, weight in trainee.state_dict().items()}
    trainee.load_state_dict(common.weights(path))
    figures = evaluate(model, held, device)
    trainee.load_state_dict(now)
    return worth(figures)


def main() -> None:
    """Command line."""
    parser = arguments(__doc__, steps=6000, rate=2e-3)
    parser.add_argument("--check", type=int, default=100, help="steps between held-out figures")
    parser.add_argument(
        "--new-symbols", action="store_true", help="--start lacks stress and leading silence"
    )
    parser.add_argument(
        "--new-hearing",
        action="store_true",
        help="--start does not know the codes of `hearing.py`",
    )
    parser.add_argument("--start", type=Path, help="exported model to start from")
    parser.add_argument("--shares", type=float, nargs=3, default=SHARES, help="see SHARES")
    parser.add_argument(
        "--half", action="store_true", help="bfloat16: 1.45 times as fast on a CPU with AMX"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
