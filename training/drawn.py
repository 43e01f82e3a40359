"""Sample codes from the language model for the texts of the corpus, to train the codec's decoder.

The decoder of `codec.py` learns from the encoder's codes. At inference it gets codes sampled by the
language model, which is less certain about the later codebooks. Text and audio of the corpus are
aligned, so the codes sampled for a text match its recording frame by frame. Writes
`drawn/shard-00000.npz` under --work in the format of `codes/`; `codec.py --freeze --codes drawn`
reads them.

In the first pass the history is the corpus' own codes, in later passes the codes of the pass
before. With as many passes as frames the result equals free generation. A few passes approximate
it, and a pass is one forward run over the whole utterance instead of one for each frame.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CsmForConditionalGeneration

from . import batches, common, corpus, encode, lm
from .spec import AUDIO, CODEBOOKS, CODES, END, GENERATION, WIDTH

PASSES = 3
_ROWS = 16


def draw(
    logits: torch.Tensor, temperature: float, top_k: int, generator: torch.Generator
) -> torch.Tensor:
    """One code for each row of logits (frames, VOCAB), sampled as in generation."""
    logits = logits.float()[:, :CODES] / temperature
    least = logits.topk(top_k).values[:, -1:]
    chances = logits.masked_fill(logits < least, -torch.inf).softmax(-1)
    return torch.multinomial(chances, 1, generator=generator)[:, 0]


@torch.inference_mode()
def draw_frames(
    model: CsmForConditionalGeneration, batch: batches.Sequences, generator: torch.Generator
) -> torch.Tensor:
    """Codes (frames, CODEBOOKS) for every position of the batch that predicts a frame, in order."""
    here = batch.text[:, 1:] == AUDIO
    state = lm.hidden_states(model, batch)[:, :-1][here]
    first = model.lm_head(state)
    first[:, END] = -torch.inf  # the corpus has a frame here, so the end is excluded
    codes = [draw(first, GENERATION["temperature"], GENERATION["top_k"], generator)]
    for _ in range(1, CODEBOOKS):
        logits = model.depth_decoder(
            input_ids=F.pad(torch.stack(codes, 1), (1, 0)),
            backbone_last_hidden_state=state,
            use_cache=False,
        ).logits[:, -1]
        codes.append(
            draw(
                logits,
                GENERATION["depth_decoder_temperature"],
                GENERATION["depth_decoder_top_k"],
                generator,
            )
        )
    return torch.stack(codes, 1)


def prompts(rows: list[dict[str, Any]], shown: list[np.ndarray]) -> batches.Sequences:
    """A batch of single turns with fully padded text; `shown` has the codes of their history."""
    items = []
    for row, codes in zip(rows, shown, strict=True):
        random_ = common.batch_random(0, 0)
        ids, position, seen, true, _ = batches.build_turn(
            {"codes": codes}, row["symbols"], "agent", random_, 0.0, WIDTH
        )
        weight = np.zeros(len(ids), np.float32)
        items.append({"text": np.array(ids), "position": np.array(position), "shown": seen,
                      "codes": true, "weight": weight})  # fmt: skip
    return batches.collate(items)


def drawn_codes(
    model: CsmForConditionalGeneration, rows: list[dict[str, Any]], passes: int, seed: int
) -> list[np.ndarray]:
    """Codes (frames, CODEBOOKS) that the model samples for each row."""
    generator = torch.Generator().manual_seed(seed)
    out: list[np.ndarray] = []
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        codes = [row["codes"].astype(np.int64) for row in some]
        ends = np.cumsum([len(c) for c in codes])[:-1]
        for _ in range(passes):
            frames = draw_frames(model, prompts(some, codes), generator)
            codes = np.split(frames.numpy(), ends)
        out += [c.astype(np.int16) for c in codes]
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--lm", type=Path, help="checkpoint; default: WORK/lm-best.safetensors")
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--first",
        type=int,
        default=0,
        help="first shard of the stock voice; those that lm.py knows are drawn better than others",
    )
    parser.add_argument(
        "--shards", type=int, default=16, help="maximum number of stock voice shards"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = lm.new_model(0)
    lm.Trainee(model).load_state_dict(common.weights(args.lm or args.work / lm.BEST))
    model.eval()
    (args.work / "drawn").mkdir(exist_ok=True)
    stock = [n for n in corpus.present(args.work, "codes") if args.first <= n < corpus.VOICES]
    began = time.monotonic()
    for number in stock[: args.shards]:
        rows = encode.load(args.work, [number])
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["codes"]))
        made = drawn_codes(model, [rows[i] for i in order], args.passes, number)
        codes = [made[order.index(i)] for i in range(len(rows))]
        keep = {k: [r[k] for r in rows] for k in ("text", "symbols", "frames", "voice")}
        target = args.work / "drawn" / f"shard-{number:05d}.npz"
        np.savez(target, codes=np.concatenate(codes), group=[r["group"][1] for r in rows], **keep)
        same = np.concatenate([a == r["codes"] for a, r in zip(codes, rows, strict=True)])
        kept = " ".join(f"{share:.2f}" for share in same.mean(0))
        print(f"{target.stem}  {time.monotonic() - began:.0f} s  as encoded: {kept}", flush=True)


if __name__ == "__main__":
    main()
