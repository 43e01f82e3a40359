"""Train the language model: text symbols to codec codes, turn after turn, in CSM's prompt format.

What makes it learn to read within an hour on a CPU:
- the symbol that a frame speaks stands exactly `spec.WIDTH` positions before it (see `grid.py`),
  and some attention heads begin by looking there;
- audio inputs are hidden or falsified in part of the turns: history cannot replace the text;
- most of the padding is left out of the computation (positions stay those of the full width);
- the depth decoder learns from a random half of the frames.
Sequences are one to three turns of one speaker; from the second on a voice has a reference.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CsmForConditionalGeneration

from . import encode
from .common import Clock, arguments, batch_random, last_step, learning_rate, load, save
from .corpus import MAIN
from .spec import AUDIO, AUDIO_END, BOS, CODEBOOKS, END, EOS, SPECIAL, VOCAB, WIDTH, csm_config

ROWS = 16
"""Sequences in a batch."""
DEPTH_SHARE = 0.5
LOOSE_SHARE = 0.4
"""Of references that keep no time; nothing is learnt from speaking them."""
HIDDEN = VOCAB - 1
"""The padding id, which stands for a frame that is not shown."""
SPEAKERS = ("0", "0", "0", "0", "1", "1", "2", "agent", "caller", "stock")
HELD_SHARD = 0


@dataclass
class Sequences:
    """A padded batch. All tensors are (rows, length) but `codes`, which is (rows, length, 8)."""

    text: torch.Tensor
    """Token ids; AUDIO where there is a frame, AUDIO_END at end frames."""
    shown: torch.Tensor
    """Codes as the model sees them, hidden and falsified ones included."""
    codes: torch.Tensor
    """True codes, of frames and end frames."""
    position: torch.Tensor
    weight: torch.Tensor
    """Of predicting this place; 0 where it is no frame."""

    def to(self, device: str) -> Sequences:
        """The same on a device."""
        return Sequences(*(value.to(device) for value in vars(self).values()))


def _token(character: str) -> int:
    return len(SPECIAL) + ord(character) - 0x20


def _hide(codes: np.ndarray, random_: random.Random, share: float) -> np.ndarray:
    """Hide a share of the frames, and a tenth as many get the codes of another frame."""
    shown, count = codes.copy(), len(codes)
    lots = np.array([random_.random() for _ in range(count)])
    wrong = lots > 1 - 0.1 * min(share * 2, 1)
    shown[wrong] = codes[[random_.randrange(count) for _ in range(int(wrong.sum()))]]
    shown[lots < share] = HIDDEN
    return shown


def build_turn(
    row: dict, symbols: str, speaker: str, random_: random.Random, share: float, pads: int
) -> tuple[list[int], list[int], np.ndarray, np.ndarray, int]:
    """One turn: token ids, positions within the turn, shown codes, true codes, positions used."""
    head = [BOS, *map(_token, f"[{speaker}]")]
    places = list(range(len(symbols)))
    places += sorted(random_.sample(range(len(symbols), WIDTH), min(pads, WIDTH - len(symbols))))
    text = [*head, *(_token(symbols[i] if i < len(symbols) else " ") for i in places), EOS]
    position = [*range(len(head)), *(len(head) + i for i in places), len(head) + WIDTH]
    frames = len(row["codes"])
    ids = [*text, *[AUDIO] * frames, AUDIO_END]
    position += range(position[-1] + 1, position[-1] + 2 + frames)
    codes = np.zeros((len(ids), CODEBOOKS), np.int64)
    codes[len(text) : -1] = row["codes"]
    shown = codes.copy()
    shown[len(text) : -1] = _hide(codes[len(text) : -1], random_, share)
    return ids, position, shown, codes, position[-1] + 1


def loosen(row: dict, random_: random.Random) -> dict:
    """The turn at another pace: sound that is not on the grid, as a real speaker's is not."""
    count = len(row["codes"])
    length = max(2, round(count * random_.uniform(0.5, 1.6)))
    places = np.clip(np.sort([random_.uniform(0, count) for _ in range(length)]), 0, count - 1)
    return {**row, "codes": row["codes"][places.astype(int)]}


def share_hidden(random_: random.Random) -> float:
    """How much of a turn's own sound the model may not see: nothing, half, or nearly all."""
    return random_.choices((0.0, 0.5, 0.95), (0.3, 0.4, 0.3))[0]


def build(turns: list[dict], random_: random.Random, full: bool) -> dict[str, np.ndarray]:
    """A sequence of turns of one speaker."""
    speaker = random_.choice(SPEAKERS)
    ids, position, shown, codes, weight, start = [], [], [], [], [], 0
    for number, row in enumerate(turns):
        pads = WIDTH if full else 6
        loose = number == 0 and len(turns) > 1 and random_.random() < LOOSE_SHARE
        row = loosen(row, random_) if loose else row
        turn = build_turn(row, row["symbols"], speaker, random_, share_hidden(random_), pads)
        ids += turn[0]
        position += [start + p for p in turn[1]]
        shown.append(turn[2])
        codes.append(turn[3])
        # Without a reference another voice than the main one cannot be known; its words can.
        worth = 1.0 if number or (row["voice"], row["size"]) == MAIN else 0.4
        worth = 0.0 if loose else worth
        weight += [worth if token in (AUDIO, AUDIO_END) else 0.0 for token in turn[0]]
        start += turn[4]
    return {
        "text": np.array(ids),
        "position": np.array(position),
        "shown": np.concatenate(shown),
        "codes": np.concatenate(codes),
        "weight": np.array(weight, np.float32),
    }


def collate(items: list[dict[str, np.ndarray]]) -> Sequences:
    """Pad on the right; attention is causal, so what stands there touches nothing."""
    length = max(len(item["text"]) for item in items)

    def stack(key: str) -> torch.Tensor:
        first = items[0][key]
        out = np.zeros((len(items), length, *first.shape[1:]), first.dtype)
        for line, item in enumerate(items):
            out[line, : len(item[key])] = item[key]
        return torch.from_numpy(out)

    return Sequences(*(stack(k) for k in ("text", "shown", "codes", "position", "weight")))


class Corpus:
    """Draws batches: main voice and other voices, one to three turns, rows of similar length."""

    def __init__(self, rows: list[dict], main_share: float = 0.7) -> None:
        self.main_share = main_share
        self.main = [r for r in rows if (r["voice"], r["size"]) == MAIN]
        groups: dict[Any, list[dict]] = {}
        for row in rows:
            if (row["voice"], row["size"]) != MAIN:
                groups.setdefault(row["group"], []).append(row)
        self.others = [group for group in groups.values() if len(group) > 2]

    def draw(self, random_: random.Random) -> list[dict]:
        """Turns of one speaker."""
        count = random_.choices((1, 2, 3), (0.4, 0.45, 0.15))[0]
        if not self.others or random_.random() < self.main_share:
            return random_.sample(self.main, count)
        return random_.sample(random_.choice(self.others), max(count, 2))

    def batch(self, seed: int, step: int) -> Sequences:
        """The batch of a step; the same for the same seed and corpus."""
        random_ = batch_random(seed, step)
        pool = sorted((self.draw(random_) for _ in range(ROWS * 4)), key=_frames)
        start = random_.randrange(len(pool) - ROWS + 1)
        full = random_.random() < 0.06
        return collate([build(turns, random_, full) for turns in pool[start : start + ROWS]])


def _frames(turns: list[dict]) -> int:
    return sum(len(turn["codes"]) for turn in turns)


def embed(model: CsmForConditionalGeneration, batch: Sequences) -> torch.Tensor:
    """Input embeddings (rows, length, hidden), as the model's own merging makes them."""
    sound = (batch.text == AUDIO) | (batch.text == AUDIO_END)
    text = model.embed_text_tokens(batch.text)
    return torch.where(sound[..., None], model.backbone_model.embed_tokens(batch.shown), text)


def hidden_states(model: CsmForConditionalGeneration, batch: Sequences) -> torch.Tensor:
    """The backbone's output (rows, length, hidden).

    Layer by layer, because `transformers` reads gaps in positions as borders between documents.
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
    """Cross-entropy of codebook 0, and of the others on a share of the frames and all ends."""
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
        + 0.5 * (rest.mean(1) * weight[chosen]).sum() / weight[chosen].sum(),
        "first": first[~is_end].mean(),
        "end": first[is_end].mean(),
        "rest": rest[frame].mean(),
        "books": rest[frame].mean(0).detach(),
    }


def _look_at(model: CsmForConditionalGeneration, layer: int, distances: list[int]) -> None:
    """Let the heads of a layer begin by attending at fixed distances.

    Dimension 0 of every embedding is a constant; queries and keys take it into their faster rotary
    pairs with phases that agree at the distance.
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
    """Weights to start from."""
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
    model.embed_text_tokens.weight[:, 0] = 2.0
    model.backbone_model.embed_tokens.embed_audio_tokens.weight[:, 0] = 2.0 / CODEBOOKS
    _look_at(model, 0, [WIDTH, WIDTH - 1, WIDTH + 1, 1])
    _look_at(model, 1, [WIDTH - 2, WIDTH, WIDTH + 2, 2])
    return model


def started(folder: Path) -> CsmForConditionalGeneration:
    """The weights of an exported model, to go on from where no checkpoint was kept."""
    return CsmForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


class Trainee(nn.Module):
    """The language model without its codec, so that checkpoints hold what is trained."""

    def __init__(self, model: CsmForConditionalGeneration) -> None:
        super().__init__()
        self.embed_text_tokens = model.embed_text_tokens
        self.backbone_model = model.backbone_model
        self.lm_head = model.lm_head
        self.depth_model = model.depth_decoder.model
        self.depth_head = model.depth_decoder.codebooks_head
        # One matrix under two names: saved once.
        self.depth_model.embed_tokens.weight = (
            model.backbone_model.embed_tokens.embed_audio_tokens.weight
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Without the second name."""
        full = super().state_dict(*args, **kwargs)
        return {k: v for k, v in full.items() if k != "depth_model.embed_tokens.weight"}

    def load_state_dict(self, state: dict[str, Any], *_: Any, **__: Any) -> Any:
        """Accept what `state_dict` gives."""
        return super().load_state_dict(state, strict=False)


@torch.no_grad()
def evaluate(model: CsmForConditionalGeneration, rows: list[dict], device: str) -> dict[str, float]:
    """Cross-entropy of codebook 0 on held-out turns of the main voice.

    right, wrong: all history shown, with its own text and with another's; text: no history shown.
    """
    model.eval()
    rows = [r for r in rows if (r["voice"], r["size"]) == MAIN][:96]
    figures = {}
    for name, share, shift in (("right", 0.0, 0), ("wrong", 0.0, 1), ("text", 1.0, 0)):
        random_ = random.Random(7)
        items = []
        for index, row in enumerate(rows):
            symbols = rows[(index + shift) % len(rows)]["symbols"]
            ids, position, shown, codes, _ = build_turn(row, symbols, "0", random_, share, WIDTH)
            weight = np.array([float(t in (AUDIO, AUDIO_END)) for t in ids], np.float32)
            items.append({"text": np.array(ids), "position": np.array(position), "shown": shown,
                          "codes": codes, "weight": weight})  # fmt: skip
        total = losses(model, collate(items).to(device), torch.Generator().manual_seed(1), 0.25)
        figures[name] = total["first"].item()
        if name == "right":
            figures["rest"], figures["end"] = total["rest"].item(), total["end"].item()
    figures["gap"] = figures["wrong"] - figures["right"]
    model.train()
    return figures


def optimizer_of(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, embeddings and norms do not."""
    decay = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
    free = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, rate, betas=(0.9, 0.98), eps=1e-8)


def train(args: argparse.Namespace) -> None:
    """Run until the schedule's or the piece's end."""
    model = started(args.start) if args.start else new_model(args.seed)
    model = model.to(args.device).train()
    trainee = Trainee(model)
    rows = encode.load(args.work)
    corpus = Corpus([r for r in rows if r["shard"] != HELD_SHARD], args.main_share)
    held = [r for r in rows if r["shard"] == HELD_SHARD]
    print(f"{len(corpus.main)} main, {sum(map(len, corpus.others))} other utterances", flush=True)
    optimizer = optimizer_of(trainee, args.rate)
    path = args.work / "lm.safetensors"
    step = load(path, trainee, optimizer) if path.exists() else 0
    clock, mean, first = Clock(args.minutes), {"first": 0.0, "rest": 0.0}, step
    while step < last_step(args) and not clock.over():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
        batch = corpus.batch(args.seed, step).to(args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
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
            report(step, evaluate(model, held, args.device))
        if clock.due(120):
            save(path, step, trainee, optimizer)
    save(path, step, trainee, optimizer)
    report(step, evaluate(model, held, args.device))


def report(step: int, figures: dict[str, float]) -> None:
    """One line of a table: held-out figures."""
    print(
        f"| {step} | " + " | ".join(f"{k} {v:.3f}" for k, v in figures.items()) + " |", flush=True
    )


def main() -> None:
    """Command line."""
    parser = arguments(__doc__, steps=6000, rate=2e-3)
    parser.add_argument("--check", type=int, default=100, help="steps between held-out figures")
    parser.add_argument("--main-share", type=float, default=0.7, help="sequences of the main voice")
    parser.add_argument("--start", type=Path, help="exported model to start from")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
