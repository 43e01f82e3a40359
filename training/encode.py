"""Encode the corpus with the codec of --codec, in float32 (bfloat16 changes codes).

Writes codes and symbols to `codes/shard-00000.npz` and so on under --work. Existing shards stay.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import MimiModel

from . import corpus, prosodic, speakers
from .common import codec_of
from .spec import CODEBOOKS

HEARD = 4
"""How many utterances of a synthetic speaker serve as references."""
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


def load(work: Path, shards: list[int]) -> list[dict[str, Any]]:
    """Encoded utterances of the existing shards among `shards`.

    Each has text, symbols, frames, voice, group, shard and codes (frames, codebooks), those in
    which the model speaks (`prosodic.py`); references also have `encoded`, those of the encoder.
    """
    rows = []
    for number in shards:
        path = work / OWN / f"shard-{number:05d}.npz"
        if not path.exists():
            continue
        with np.load(path) as data:
            columns = {key: data[key] for key in data.files}
        ends = np.cumsum([len(s) for s in columns["frames"]])
        codes, said = (np.split(columns.pop(key), ends[:-1]) for key in ("codes", "said"))
        columns = {key: values.tolist() for key, values in columns.items()}
        for index, code in enumerate(codes):
            row = {key: values[index] for key, values in columns.items()}
            row |= {"group": (number, row["group"]), "shard": number, "codes": said[index]}
            rows.append({**row, "encoded": code} if code[0, 0] >= 0 else row)
    return rows


def heard_rows(rows: list[dict[str, Any]], number: int) -> list[dict[str, Any] | None]:
    """What the encoder hears of each utterance of a shard; None for those that are no references.

    The first `HEARD` utterances of a synthetic speaker are, all but the very first (which has a
    channel already) through a random channel, and all of the stock voice, as they are.
    """
    random_, out, before = random.Random(number), list[dict[str, Any] | None](), 0
    for index, row in enumerate(rows):
        if index and row["group"] != rows[index - 1]["group"]:
            before = index
        if row["voice"] == corpus.STOCK or index == before:
            out.append(row)
        elif index - before < HEARD:
            sound = speakers.channel(row["audio"].astype(np.float32) / 32768, random_)
            out.append({**row, "audio": (sound.clip(-1, 1) * 32767).astype(np.int16)})
        else:
            out.append(None)
    return out


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
        heard = heard_rows(rows, number)
        found = iter(encode(codec, [row for row in heard if row], args.device))
        codes = np.concatenate(
            [
                next(found) if row else np.full((len(own["frames"]), CODEBOOKS), -1, np.int16)
                for own, row in zip(rows, heard, strict=True)
            ]
        )
        said = np.concatenate(
            [prosodic.codes_of(r["frames"], r["periods"], r["size"], r["audio"]) for r in rows]
        )
        keep = {k: [r[k] for r in rows] for k in ("text", "symbols", "frames", "voice")}
        np.savez(target, codes=codes, said=said, group=[r["group"][1] for r in rows], **keep)
        frames += len(codes)
        used = np.array([len(np.unique(codes[codes[:, k] >= 0, k])) for k in range(CODEBOOKS)])
        spent = time.monotonic() - began
        print(f"{path.stem}  {frames} frames  {spent:.0f} s  codes in use {used}", flush=True)


if __name__ == "__main__":
    main()
