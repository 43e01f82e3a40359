"""Encode the corpus with the codec of --codec, in float32 (bfloat16 changes codes).

Writes codes and symbols to `codes/shard-00000.npz` and so on under --work. Existing shards stay.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import MimiModel

from . import corpus, phonetic
from .common import codec_of
from .spec import CODEBOOKS

OWN = "codes"
"""The folder of the codes that the encoder chose."""
Codes = npt.NDArray[np.int16]


@torch.inference_mode()
def encode(codec: MimiModel, rows: list[dict[str, Any]], device: str) -> list[Codes]:
    """Codes (frames, codebooks) of each row. Batches of one are fastest on a CPU."""
    codes = []
    for row in rows:
        audio = torch.from_numpy(row["audio"].astype(np.float32) / 32768)[None, None]
        out = codec.encode(audio.to(device)).audio_codes[0].T
        codes.append(out[: len(row["frames"])].cpu().numpy().astype(np.int16))
    return codes


def load(work: Path, shards: list[int], kind: str = OWN) -> list[dict[str, Any]]:
    """Encoded utterances of the existing shards among `shards`.

    Each has text, symbols, frames, voice, group, shard and codes (frames, codebooks); those of the
    stock voice as in `spoken`. `kind` is their folder in `work`.
    """
    rows = []
    for number in shards:
        path = work / kind / f"shard-{number:05d}.npz"
        if not path.exists():
            continue
        with np.load(path) as data:
            columns = {key: data[key] for key in data.files}
        ends = np.cumsum([len(s) for s in columns["frames"]])
        codes = np.split(columns.pop("codes")[:, :CODEBOOKS], ends[:-1])
        columns = {key: values.tolist() for key, values in columns.items()}
        for index, code in enumerate(codes):
            row = {key: values[index] for key, values in columns.items()}
            row = {**row, "group": (number, row["group"]), "shard": number, "codes": code}
            of_encoder = kind == OWN and row["voice"] == corpus.STOCK
            rows.append(spoken(row) if of_encoder else row)
    return rows


def spoken(row: dict[str, Any]) -> dict[str, Any]:
    """An utterance of the stock voice as the language model speaks it: with phonetic codes.

    The codes that the encoder chose stay in `encoded`.
    """
    codes = row["codes"].copy()
    codes[:, 0] = phonetic.codes_of(row["frames"])
    return {**row, "codes": codes, "encoded": row["codes"]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument(
        "--codec", type=Path, default=Path("training/work/codec"), help="folder of a codec or model"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first shard to encode")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec = codec_of(args.codec).to(args.device).eval()
    (args.work / "codes").mkdir(exist_ok=True)
    began, frames = time.monotonic(), 0
    used = np.zeros(CODEBOOKS, int)
    for path in sorted((args.work / "corpus").glob("shard-*.npz")):
        target = args.work / "codes" / path.name
        number = int(path.stem.split("-")[1])
        if number < args.first or target.exists():
            continue
        rows = corpus.load(args.work, [number])
        codes = np.concatenate(encode(codec, rows, args.device))
        keep = {k: [r[k] for r in rows] for k in ("text", "symbols", "frames", "voice")}
        np.savez(target, codes=codes, group=[r["group"][1] for r in rows], **keep)
        frames += len(codes)
        used = np.array([len(np.unique(codes[:, k])) for k in range(CODEBOOKS)])
        spent = time.monotonic() - began
        print(f"{path.stem}  {frames} frames  {spent:.0f} s  codes in use {used}", flush=True)


if __name__ == "__main__":
    main()
