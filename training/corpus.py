"""Make the corpus: the teacher speaks sentences, with every phone aligned to codec frames, and a
whole number of periods of the voice in each frame.

Writes shards `corpus/shard-00000.npz` under --work. Shards below 100 have the stock voice. Shards
from 100 on have synthetic speakers with six utterances each; the first of the six has natural
timing, a colour of its own and a simulated recording channel, and serves as a reference only. A
shard depends only on its number and on `texts.txt`, so a later run adds shards.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import phones, speakers, texts
from .sentences import sentences, words
from .spec import FRAME, WIDTH
from .teacher import UNIT, Teacher

UTTERANCES = 400
"""Utterances in a shard."""
GROUP = 6
"""Consecutive utterances of one speaker."""
VOICES = 100
"""Shards from this number on have synthetic speakers; the others have the stock voice."""
HELD = 0
"""The held-out shard of the stock voice. `VOICES` is the held-out shard of synthetic speakers."""
KEPT = 200
"""The first sentences of `texts.txt` are held out for evaluation."""
STOCK = "stock"
STOCK_SPEAKER = speakers.Speaker(0.58, 1.0, 0.85, 0.83, -0.9, 0.0, (0.0,) * 9, 1.0)
"""The stock voice: the teacher's with the pitch and formants of a man. Of the voices tried, the
codec of an earlier csm-tiny, from which these weights started, reproduces this one best."""
_SHORTEST, _LONGEST = 8, 150
"""Limits of an utterance, in frames."""


def held_out(number: int) -> bool:
    """Whether a shard is held out from training."""
    return number in (HELD, VOICES)


def spelled(teacher: Teacher, text: str) -> tuple[list[int], list[phones.Phone]]:
    """hibari's ids and the phones of a text. Raises KeyError if the text cannot be spoken."""
    phonemes = " ".join(phones.clean(part) for part in teacher.phonemes(text))
    ids = teacher.ids(phonemes)
    said = phones.spell(phonemes)
    if len(ids) != len(phonemes) + 2 or not said:
        raise KeyError(text)
    return ids, said


@dataclass(frozen=True)
class Utterance:
    """An utterance of the corpus."""

    frames: str
    """The symbol spoken in each frame."""
    sound: speakers.Samples
    """24 kHz samples, whole frames."""
    periods: npt.NDArray[np.int64]
    """Periods of the voice in each frame (`speakers.periods`)."""


def speak(
    teacher: Teacher, text: str, speaker: speakers.Speaker, rng: np.random.Generator
) -> Utterance | None:
    """Frame-aligned speech; None if the text cannot be spoken or aligned."""
    try:
        ids, said = spelled(teacher, text)
    except KeyError:
        return None
    symbols = phones.symbols_of(said)
    if not _SHORTEST <= len(symbols) <= WIDTH:
        return None
    used = phones.on_grid(said, teacher.durations(ids)).astype(np.float32)
    parts = speakers.change(teacher.parts(ids, used), speaker)
    periods = speakers.periods(parts[-1], len(symbols))
    sound = speakers.vocode(parts, rng, periods)
    length = len(symbols) * FRAME
    sound = np.pad(sound, (0, max(0, length - len(sound))))[:length]
    return Utterance(symbols, sound, periods)


def natural(
    teacher: Teacher, text: str, speaker: speakers.Speaker, rng: np.random.Generator
) -> Utterance | None:
    """Speech in the speaker's natural timing, with the symbol at the middle of each frame."""
    try:
        ids, said = spelled(teacher, text)
    except KeyError:
        return None
    used = teacher.durations(ids, speaker.pace)
    parts = speakers.change(teacher.parts(ids, used), speaker)
    sound = speakers.vocode(parts, rng)
    skip = max(int(used[0]) - int(rng.integers(1, 7)), 0)
    used[0] -= skip
    count = (len(sound) - skip * UNIT) // FRAME
    if not _SHORTEST <= count <= _LONGEST:
        return None
    sound = sound[skip * UNIT :][: count * FRAME]
    f0 = parts[-1][skip * UNIT // speakers.STEP :]
    return Utterance(phones.spoken(said, used, count), sound, speakers.periods(f0, count))


def _row(spoken: Utterance, **facts: Any) -> dict[str, Any]:
    return {**facts, "frames": spoken.frames, "sound": spoken.sound, "periods": spoken.periods}


def _stock_rows(teacher: Teacher, source: Iterator[str], number: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(number)
    for index, text in enumerate(source):
        if (spoken := speak(teacher, text, STOCK_SPEAKER, rng)) is not None:
            yield _row(spoken, text=text, symbols=spoken.frames, voice=STOCK,
                       size=STOCK_SPEAKER.low, group=index)  # fmt: skip


def _voice_rows(teacher: Teacher, source: Iterator[str], number: int) -> Iterator[dict[str, Any]]:
    random_, rng = random.Random(number), np.random.default_rng(number)
    for group in range(UTTERANCES // GROUP + 1):
        speaker = speakers.draw(random_)
        named = json.dumps(speaker.asdict())
        for made in range(GROUP):
            spoken = None
            while spoken is None:
                text = next(source)
                if made:
                    spoken = speak(teacher, text, speaker, rng)
                else:
                    spoken = natural(teacher, text, speakers.coloured(speaker, random_), rng)
            symbols = spoken.frames if made else phones.symbols_of(spelled(teacher, text)[1])
            row = _row(spoken, text=text, symbols=symbols, voice=named, size=speaker.low,
                       group=group)  # fmt: skip
            yield row if made else {**row, "sound": speakers.channel(spoken.sound, random_)}


def make_shard(number: int, work: Path) -> float:
    """Write one shard. Returns its length in hours."""
    teacher = Teacher(work)
    free = texts.load(work)
    free = free[:KEPT] if held_out(number) else free[KEPT:]
    source = sentences(number, words(), free)
    make = _voice_rows if number >= VOICES else _stock_rows
    rows = [row for row, _ in zip(make(teacher, source, number), range(UTTERANCES), strict=False)]
    sounds = [row.pop("sound") for row in rows]
    periods = np.concatenate([row.pop("periods") for row in rows]).astype(np.int16)
    audio = np.round(np.clip(np.concatenate(sounds), -1, 1) * 32767).astype(np.int16)
    path = work / "corpus" / f"shard-{number:05d}.npz"
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(
            file,
            audio=audio,
            periods=periods,
            **{key: [row[key] for row in rows] for key in rows[0]},
        )
    part.rename(path)
    return len(audio) / 24_000 / 3600


def load(work: Path, shards: list[int]) -> list[dict[str, Any]]:
    """Utterances of the shards that exist: text, symbols, frames (the symbol spoken in each
    frame), periods (of the voice, per frame), size, voice, group, shard, audio (int16)."""
    rows = []
    for number in shards:
        path = work / "corpus" / f"shard-{number:05d}.npz"
        if not path.exists():
            continue
        with np.load(path) as data:
            columns = {key: data[key] for key in data.files}
        ends = np.cumsum([len(s) for s in columns["frames"]])[:-1]
        audio = np.split(columns.pop("audio"), ends * FRAME)
        periods = np.split(columns.pop("periods"), ends)
        columns = {key: values.tolist() for key, values in columns.items()}
        for index, (sound, voiced) in enumerate(zip(audio, periods, strict=True)):
            row = {key: values[index] for key, values in columns.items()}
            rows.append({**row, "group": (number, row["group"]), "shard": number,
                         "audio": sound, "periods": voiced})  # fmt: skip
    return rows


def present(work: Path, kind: str = "corpus") -> list[int]:
    """Numbers of the existing shards, without the held-out ones."""
    numbers = [int(path.stem.split("-")[1]) for path in (work / kind).glob("shard-*.npz")]
    return sorted(n for n in numbers if not held_out(n))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--stock", type=int, default=16, help="shards of the stock voice")
    parser.add_argument("--voices", type=int, default=8, help="shards of synthetic speakers")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    (args.work / "corpus").mkdir(parents=True, exist_ok=True)
    Teacher(args.work)  # writes the edited graph once, before the workers need it
    wanted = [*range(args.stock), *range(VOICES, VOICES + args.voices)]
    todo = [n for n in wanted if not (args.work / "corpus" / f"shard-{n:05d}.npz").exists()]
    began, hours = time.monotonic(), 0.0
    with ProcessPoolExecutor(args.workers) as pool:
        for done, length in enumerate(pool.map(make_shard, todo, [args.work] * len(todo)), 1):
            hours += length
            spent = time.monotonic() - began
            print(f"{done}/{len(todo)} shards  {hours:.2f} h of speech  {spent:.0f} s", flush=True)


if __name__ == "__main__":
    main()
