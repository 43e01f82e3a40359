"""Speech of other synthesizers, flite and espeak-ng, with F0 by autocorrelation, for `hearing.py`.

The teacher's changed voice alone does not teach an encoder how people differ. Every utterance is
played faster or slower, which changes pitch and formants together. Writes `others.npz` under
--work. Needs the programs `flite` and `espeak-ng`.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from . import texts
from .corpus import KEPT
from .speakers import PEAK, Samples
from .spec import FRAME, SAMPLE_RATE

FLITE = {"awb": 0.87, "rms": 0.85, "slt": 1.0, "kal16": 0.86}
"""flite's voices, made from recordings of people, and their sizes as `speakers.Speaker.low`."""
ESPEAK = (
    *(f"en-us+m{n}" for n in range(1, 9)),
    *(f"en-us+f{n}" for n in range(1, 6)),
    *(f"en-gb+{name}" for name in ("john", "michel", "paul", "david", "caleb", "ed")),
    *(f"en-gb+{name}" for name in ("linda", "steph", "anika", "shelby", "Alicia", "belinda")),
)
"""espeak-ng's voices, whose sizes are not known."""
LONGEST = 9.0
"""Seconds kept of an utterance."""
_RATE, _SIZE, _LOW, _HIGH = 8_000, 400, 20, 160
"""Of the autocorrelation: its rate, the samples compared, the shortest and the longest lag."""


def pitch(sound: Samples) -> npt.NDArray[np.float64]:
    """F0 in Hz of each codec frame (frames,) of audio at 24 kHz; 0 where no voice is found."""
    narrow = soxr.resample(sound, SAMPLE_RATE, _RATE).astype(np.float64)
    frames = len(sound) // FRAME
    step, loud = FRAME * _RATE // SAMPLE_RATE, 0.1 * float(np.sqrt((narrow**2).mean()))
    padded = np.pad(narrow, (_SIZE // 2, _SIZE + _HIGH))
    found = np.zeros(frames)
    for frame in range(frames):
        field = padded[frame * step + step // 2 :][: _SIZE + _HIGH]
        piece = field[:_SIZE]
        if np.sqrt((piece**2).mean()) < loud:
            continue
        energy = np.cumsum(np.concatenate(([0.0], field**2)))
        size = np.sqrt((energy[_SIZE:] - energy[:-_SIZE]) * (piece**2).sum() + 1e-12)
        score = (np.correlate(field, piece) / size)[_LOW:]
        if score.max() > 0.6:
            # Twice the period fits as well: the first lag that is nearly the best one is taken.
            near = int(np.argmax(score > 0.9 * score.max()))
            found[frame] = _RATE / (_LOW + near + int(np.argmax(score[near : near + 4])))
    middle = np.median(found[found > 0]) if (found > 0).any() else 0.0
    found[(found > 1.7 * middle) | (found < 0.6 * middle)] = 0.0
    return found


def speak(text: str, random_: random.Random, path: Path) -> tuple[Samples, int, float]:
    """Speech of a random voice, its rate in Hz, and its size (nan if it is not known)."""
    if random_.random() < 0.5:
        voice, size = random_.choice(sorted(FLITE.items()))
        command = ["flite", "-voice", voice, "-t", text, "-o", str(path)]
    else:
        voice, size = random_.choice(ESPEAK), float("nan")
        high, fast = str(random_.randint(10, 90)), str(random_.randint(140, 190))
        command = ["espeak-ng", "-v", voice, "-p", high, "-s", fast, "-w", str(path), text]
    subprocess.run(command, check=True, capture_output=True)
    sound, rate = soundfile.read(path, dtype="float32")
    return sound, rate, size


def made(text: str, random_: random.Random, path: Path) -> dict[str, Any] | None:
    """An utterance with audio (int16), F0 per frame and size; None if it is short or voiceless."""
    sound, rate, size = speak(text, random_, path)
    factor = 2 ** random_.uniform(-0.4, 0.4)
    sound = soxr.resample(sound, rate * factor, SAMPLE_RATE)[: int(LONGEST * SAMPLE_RATE)]
    sound = sound[: len(sound) // FRAME * FRAME]
    if len(sound) < SAMPLE_RATE:
        return None
    sound = PEAK * sound / max(float(np.abs(sound).max()), 1e-3)
    f0 = pitch(sound)
    if (f0 > 0).sum() < 6:
        return None
    return {"audio": (sound * 32767).astype(np.int16), "f0": f0, "size": size * factor}


def load(work: Path) -> list[dict[str, Any]]:
    """Utterances with audio (int16), periods of the voice per frame (interpolated) and size."""
    if not (work / "others.npz").exists():
        return []
    with np.load(work / "others.npz") as data:
        ends = np.cumsum(data["frames"])[:-1]
        parts = np.split(data["audio"], ends * FRAME), np.split(data["f0"], ends)
        sizes = data["size"].tolist()
    rows = []
    for audio, f0, size in zip(*parts, sizes, strict=True):
        places = np.flatnonzero(f0)
        hertz = np.exp(np.interp(np.arange(len(f0)), places, np.log(f0[places])))
        rows.append({"audio": audio, "periods": hertz * FRAME / SAMPLE_RATE, "size": size})
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--count", type=int, default=700, help="utterances, 2.4 s each")
    args = parser.parse_args()
    random_, rows = random.Random(1), list[dict[str, Any]]()
    free = texts.load(args.work)[KEPT:]
    with tempfile.TemporaryDirectory() as folder:
        while len(rows) < args.count:
            row = made(random_.choice(free), random_, Path(folder) / "spoken.wav")
            rows += [row] if row else []
    np.savez(
        args.work / "others.npz",
        audio=np.concatenate([row["audio"] for row in rows]),
        f0=np.concatenate([row["f0"] for row in rows]),
        frames=[len(row["f0"]) for row in rows],
        size=[row["size"] for row in rows],
    )


if __name__ == "__main__":
    main()
