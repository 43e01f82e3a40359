"""Make the corpus: flite speaks generated sentences, every phone is set on the codec's grid.

Writes shards `corpus/shard-00000.npz` (500 utterances each) under --work. A shard depends only on
its number, so making more later continues where it stopped and never changes what is there.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from .grid import change_size, flite, to_grid
from .phones import spell
from .sentences import sentences, words
from .spec import FRAME, WIDTH

UTTERANCES = 500
"""In a shard."""
VOICES: tuple[tuple[str, float | None], ...] = (
    ("rms", 1.0),
    ("rms", None),
    ("slt", None),
    ("awb", None),
)
"""flite's voice, and its size: 1 as it is, None drawn for each shard's group of utterances."""
SHARES = (0.45, 0.25, 0.18, 0.12)
MAIN = ("rms", 1.0)
"""The voice that speaks where there is no reference."""
MIXED = 18
"""Shards from this number on hold the main voice alone."""
GROUP = 10
"""Utterances in a row by one speaker, so that turns of one voice can follow one another."""


def draw_voice(random_: random.Random) -> tuple[str, float]:
    """A speaker: a synthesiser and the factor on its pitch and formants."""
    name, size = random_.choices(VOICES, SHARES)[0]
    low, high = (0.86, 1.2) if name == "rms" else (0.82, 1.08)
    return name, size or round(random_.uniform(low, high), 3)


def speak(text: str, name: str, size: float) -> tuple[str, np.ndarray] | None:
    """Symbols and 24 kHz samples (int16, `len(symbols) * FRAME` of them); None if it cannot be."""
    samples, rate, phones = flite(text, name)
    try:
        symbols = spell([phone for phone, _ in phones], text.endswith("?"))
    except KeyError:
        return None
    joined = "".join(symbols)
    if not joined or len(joined) > WIDTH:
        return None
    samples, clock = change_size(samples, rate, size)
    out = to_grid(samples, clock, phones, [len(s) for s in symbols])
    out = out[: len(joined) * FRAME] * (0.7 / max(float(np.abs(out).max()), 1e-3))
    return joined, np.round(out * 32767).astype(np.int16)


def make_shard(number: int, path: Path) -> float:
    """Write one shard; returns its hours."""
    random_ = random.Random(number)
    texts = sentences(number, UTTERANCES, words())
    rows, voice = [], MAIN
    for index, text in enumerate(texts):
        if index % GROUP == 0:
            voice = draw_voice(random_) if number < MIXED else MAIN
        spoken = speak(text, *voice)
        if spoken:
            rows.append((text, *spoken, *voice, index // GROUP))
    text, symbols, audio, name, size, group = zip(*rows, strict=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, text=text, symbols=symbols, voice=name, size=size, group=group,
                 audio=np.concatenate(audio))  # fmt: skip
    part.rename(path)
    return sum(map(len, audio)) / 24_000 / 3600


def load(folder: Path, shards: range) -> list[dict]:
    """Utterances of these shards: text, symbols, voice, size, group, audio (int16)."""
    rows = []
    for number in shards:
        path = folder / "corpus" / f"shard-{number:05d}.npz"
        if not path.exists():
            continue
        with np.load(path) as data:
            columns = {key: data[key] for key in data.files}
        ends = np.cumsum([len(s) * FRAME for s in columns["symbols"]])
        audio = np.split(columns.pop("audio"), ends[:-1])
        for index, sound in enumerate(audio):
            row = {key: value[index].item() for key, value in columns.items()}
            rows.append({**row, "group": (number, row["group"]), "audio": sound})
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument(
        "--shards", type=int, default=30, help="shards in all (500 utterances each)"
    )
    parser.add_argument("--first", type=int, default=0, help="make shards from this number on")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    folder = args.work / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {n: folder / f"shard-{n:05d}.npz" for n in range(args.first, args.shards)}
    todo = [n for n, path in paths.items() if not path.exists()]
    began, hours = time.monotonic(), 0.0
    with ProcessPoolExecutor(args.workers) as pool:
        jobs = pool.map(make_shard, todo, [paths[n] for n in todo])
        for done, length in enumerate(jobs, 1):
            hours += length
            spent = time.monotonic() - began
            print(f"{done}/{len(todo)} shards  {hours:.2f} h of speech  {spent:.0f} s", flush=True)


if __name__ == "__main__":
    main()
