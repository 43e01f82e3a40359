"""Turn the corpus into codes once, with the codec of --codec, in float32 (bfloat16 changes codes).

Writes `codes/shard-00000.npz` under --work beside the symbols; only what is missing is made.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from transformers import MimiModel

from . import corpus
from .spec import CODEBOOKS, FRAME

BATCH = 16


@torch.inference_mode()
def encode(codec: MimiModel, rows: list[dict], device: str) -> list[np.ndarray]:
    """Codes (frames, codebooks) of each row; the codec is causal, so padding is safe."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["symbols"]))
    codes: dict[int, np.ndarray] = {}
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        longest = max(len(rows[i]["symbols"]) for i in part)
        audio = np.zeros((len(part), 1, longest * FRAME), np.float32)
        for line, i in enumerate(part):
            audio[line, 0, : len(rows[i]["audio"])] = rows[i]["audio"] / 32768
        out = codec.encode(torch.from_numpy(audio).to(device)).audio_codes.transpose(1, 2)
        for line, i in enumerate(part):
            codes[i] = out[line, : len(rows[i]["symbols"])].cpu().numpy().astype(np.int16)
    return [codes[i] for i in range(len(rows))]


def load(folder: Path) -> list[dict]:
    """All encoded utterances: symbols, codes (frames, codebooks), voice, size, group, shard."""
    rows = []
    for path in sorted((folder / "codes").glob("shard-*.npz")):
        with np.load(path) as data:
            columns = {key: data[key] for key in data.files}
        ends = np.cumsum([len(s) for s in columns["symbols"]])
        codes = np.split(columns.pop("codes"), ends[:-1])
        shard = int(path.stem.split("-")[1])
        for index, code in enumerate(codes):
            row = {key: value[index].item() for key, value in columns.items()}
            rows.append({**row, "group": (shard, row["group"]), "shard": shard, "codes": code})
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--codec", type=Path, default=Path("training/work/codec"))
    parser.add_argument("--first", type=int, default=0, help="encode shards from this number on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec = MimiModel.from_pretrained(args.codec, dtype=torch.float32).to(args.device).eval()
    (args.work / "codes").mkdir(exist_ok=True)
    began, frames = time.monotonic(), 0
    used = np.zeros(CODEBOOKS, int)
    for path in sorted((args.work / "corpus").glob("shard-*.npz")):
        target = args.work / "codes" / path.name
        number = int(path.stem.split("-")[1])
        if number < args.first or target.exists():
            continue
        rows = corpus.load(args.work, range(number, number + 1))
        codes = np.concatenate(encode(codec, rows, args.device))
        keep = {k: [r[k] for r in rows] for k in ("text", "symbols", "voice", "size")}
        np.savez(target, codes=codes, group=[r["group"][1] for r in rows], **keep)
        frames += len(codes)
        used = np.array([len(np.unique(codes[:, k])) for k in range(CODEBOOKS)])
        spent = time.monotonic() - began
        print(f"{path.stem}  {frames} frames  {spent:.0f} s  codes in use {used}", flush=True)


if __name__ == "__main__":
    main()
