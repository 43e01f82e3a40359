"""Speaker similarity of replies to the caller, to the stock voice and to other callers.

    python benchmarks/voice.py [--model tiny|ID] [--device cpu|cuda] [--callers DIR] [--band 8000]

Callers are recorded people: those of set-up, or one folder in DIR for each person, with WAV files
and their transcripts as .txt. The reference audio of a caller are their first recordings, of about
8 s; similarities are to all of their recordings. Printed are:

- controls: similarity between recordings of one person (the highest possible), and between those of
  different people (the value of an unrelated voice);
- replies in each caller's voice, how much closer to the caller they are than the stock voice, and
  whether their pitch follows the caller's; for each person at full bandwidth and in a telephone's;
- the bounds of these figures (those of word error rates: `understood.py`);
- drift of the voice in calls of 20 turns in which the caller's turns become context, for the two
  callers with the most recordings;
- reference audio of 3, 6, 10 and 15 s.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import soundfile
import soxr
from common import ROOT, finish, heard, machine, ready_engine, say, table
from similarity import SpeakerEncoder, alike, median_pitch

from csm_tts_plugin.config import SAMPLE_RATE, EngineConfig
from csm_tts_plugin.engine.api import Sampling, Turn, VoicePrompt
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.voices.stock import stock_voice, usable
from scripts import pins

REPLIES = (
    "Yes, the garden is beautiful.",
    "I would like to talk about the river.",
    "Where is the little church?",
    "We bought the old house in the city.",
    "No, I do not know the doctor.",
    "Thank you, that is a simple question.",
)
REFERENCE_S = 8.0
NARROW = " (narrow band)"
GATES = {
    "nearer to the caller than the stock voice, mean": 0.05,
    "own minus others, mean": 0.05,
    "correlation of median pitch": 0.8,
}
"""The lowest acceptable values."""
_FOLDERS = (
    pins.SPEECH_FOLDER, pins.SPEAKERS_FOLDER, pins.PROMPTS_FOLDER, pins.MORE_PROMPTS_FOLDER
)  # fmt: skip


@dataclass
class Recorded:
    words: str
    samples: np.ndarray
    """Mono float32 [n] at 24 kHz."""
    who: np.ndarray
    """The speaker's embedding."""

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


People = dict[str, list[Recorded]]


def people(folder: Path | None, encoder: SpeakerEncoder) -> People:
    """Recordings by person. Raises SystemExit if there are fewer than two people."""
    if folder is not None:
        files = {one.name: sorted(one.glob("*.wav")) for one in sorted(folder.iterdir())}
    else:
        places = {p.stem: p for f in _FOLDERS for p in (ROOT / ".tools" / f).glob("*.wav")}
        files = {
            person: [places[name] for name in names if name in places]
            for person, names in pins.PEOPLE.items()
        }
    found = {person: [recorded(file, encoder) for file in some] for person, some in files.items()}
    found = {person: some for person, some in found.items() if some}
    if len(found) < 2:
        raise SystemExit("There are no two people to compare: `make setup` brings recordings.")
    return found


def recorded(file: Path, encoder: SpeakerEncoder) -> Recorded:
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    words = file.with_suffix(".txt").read_text(encoding="utf-8").strip()
    return Recorded(words, soxr.resample(mono, rate, SAMPLE_RATE), encoder.embed(mono, rate))


def narrow(one: Recorded, encoder: SpeakerEncoder) -> Recorded:
    """The same recording in a telephone's band."""
    samples = soxr.resample(soxr.resample(one.samples, SAMPLE_RATE, 8_000), 8_000, SAMPLE_RATE)
    return Recorded(one.words, samples, encoder.embed(samples, SAMPLE_RATE))


class Speaker:
    """Speaks with the engine in the way a call does: one conversation, turns as context."""

    def __init__(self, engine: Engine, encoder: SpeakerEncoder) -> None:
        self._engine = engine
        self._encoder = encoder
        self._info = info = engine.info()
        self.stock = stock_voice(info.model) if info else None
        self.pitches: list[float] = []
        """Median F0 in Hz of each reply."""

    def replies(self, voice: VoicePrompt | None, texts: Iterator[str] | tuple[str, ...]) -> list:
        """The speaker embeddings of the replies of a new conversation."""
        self.pitches = []
        conversation = self._engine.open(usable(voice, self._info), Sampling(seed=1))
        heard = [self.say(conversation, text) for text in texts]
        self._engine.close(conversation)
        return heard

    def call(self, caller: list[Recorded], voice: VoicePrompt, turns: int) -> list:
        """The speaker embeddings of the replies of a call with the caller's turns in between."""
        limited = usable(voice, self._info)
        conversation, heard = self._engine.open(limited, Sampling(seed=1)), []
        for turn in range(turns):
            said = caller[turn % len(caller)]
            self._engine.add_turn(conversation, Turn(voice.speaker, said.words, said.samples))
            heard.append(self.say(conversation, REPLIES[turn % len(REPLIES)]))
        self._engine.close(conversation)
        return heard

    def say(self, conversation: str, text: str) -> np.ndarray:
        sound, _ = heard(say(self._engine, conversation, text))
        self.pitches.append(median_pitch(sound, SAMPLE_RATE))
        return self._encoder.embed(sound, SAMPLE_RATE)


def prompt(person: str, parts: list[Recorded]) -> VoicePrompt:
    """A voice with these recordings, concatenated, as reference audio."""
    sound = np.concatenate([part.samples for part in parts])
    words = ". ".join(part.words for part in parts)
    return VoicePrompt(f"{person}-{len(sound)}", person, (Turn(person, words, sound),))


def near(some: list[Recorded], seconds: float) -> list[Recorded]:
    """The recordings that together come closest to `seconds`."""
    ways = [list(way) for count in range(1, len(some) + 1) for way in combinations(some, count)]
    return min(ways, key=lambda way: abs(sum(part.seconds for part in way) - seconds))


def vectors(some: list[Recorded]) -> list[np.ndarray]:
    return [one.who for one in some]


def controls(found: People) -> dict:
    """The highest and the lowest similarity to expect, from the recordings alone."""
    same = [float(a.who @ b.who) for some in found.values() for a, b in combinations(some, 2)]
    pairs = combinations(found.values(), 2)
    different = [alike(vectors(one), vectors(other)) for one, other in pairs]
    return {
        "same person": round(np.mean(same), 3),
        "different people": round(np.mean(different), 3),
    }


def similarities(speaker: Speaker, found: People) -> list[dict]:
    """A row for each caller: replies in their voice, and in the stock voice for comparison."""
    stock_replies = speaker.replies(speaker.stock, REPLIES)
    rows = []
    for person, some in found.items():
        voice = prompt(person, near(some, REFERENCE_S))
        replies = speaker.replies(voice, REPLIES)
        others = [
            alike(replies, vectors(them))
            for name, them in found.items()
            if name.removesuffix(NARROW) != person.removesuffix(NARROW)
        ]
        said = np.concatenate([one.samples for one in some])
        own, before = alike(replies, vectors(some)), alike(stock_replies, vectors(some))
        rows.append(
            {
                "caller": person,
                "reference_s": round(len(voice.turns[0].audio) / SAMPLE_RATE, 1),
                "to the caller": round(own, 3),
                "to other callers": round(float(np.mean(others)), 3),
                "own minus others": round(own - float(np.mean(others)), 3),
                "to the stock voice": round(alike(replies, stock_replies), 3),
                "stock voice to the caller": round(before, 3),
                "pitch": round(float(np.nanmedian(speaker.pitches)), 1),
                "caller's pitch": round(median_pitch(said, SAMPLE_RATE), 1),
            }
        )
    return rows


def gates(callers: list[dict]) -> list[dict]:
    """A row for each bound with its figure."""

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in callers], float)

    pitch, wanted = np.log(column("pitch")), np.log(column("caller's pitch"))
    follows = float(np.corrcoef(pitch, wanted)[0, 1]) if pitch.std() > 0 else 0.0
    measured = (
        float((column("to the caller") - column("stock voice to the caller")).mean()),
        float(column("own minus others").mean()),
        follows,
    )
    return [
        {"gate": name, "measured": round(value, 3), "wanted": bound, "reached": value >= bound}
        for (name, bound), value in zip(GATES.items(), measured, strict=True)
    ]


def drift(speaker: Speaker, found: People, turns: int) -> list[dict]:
    """Similarity to the caller in each quarter of a call, and its slope per turn."""
    rows = []
    said = {person: sum(one.seconds for one in some) for person, some in found.items()}
    for person in sorted(said, key=said.__getitem__, reverse=True)[:2]:
        some = found[person]
        heard = speaker.call(some, prompt(person, near(some, REFERENCE_S)), turns)
        course = [alike([one], vectors(some)) for one in heard]
        quarters = [float(np.mean(part)) for part in np.array_split(course, 4)]
        rows.append(
            {
                "caller": person,
                **{f"quarter {n}": round(value, 3) for n, value in enumerate(quarters, 1)},
                "slope a turn": round(float(np.polyfit(np.arange(turns), course, 1)[0]), 4),
            }
        )
    return rows


def lengths(speaker: Speaker, found: People, wanted: list[float]) -> list[dict]:
    """Similarity by length of the reference audio, for callers with enough recordings."""
    rows = []
    for seconds in wanted:
        own, others, used = [], [], []
        for person, some in found.items():
            parts = near(some, seconds)
            if abs(sum(part.seconds for part in parts) - seconds) > 0.2 * seconds:
                continue
            replies = speaker.replies(prompt(person, parts), REPLIES)
            own.append(alike(replies, vectors(some)))
            them = [alike(replies, vectors(o)) for name, o in found.items() if name != person]
            others.append(float(np.mean(them)))
            used.append(person)
        row = {"seconds": seconds, "callers": len(used)}
        if used:
            row["to the caller"] = round(float(np.mean(own)), 3)
            row["own minus others"] = round(float(np.mean(own) - np.mean(others)), 3)
        rows.append(row)
    return rows


def show(title: str, rows: list[dict]) -> None:
    head = list(rows[0])
    table(title, head, [[row.get(name, "") for name in head] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="hub id, folder, or tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--whole-context", action="store_true", help="whatever its folder says")
    parser.add_argument("--callers", type=Path, default=None, help="a folder for each person")
    parser.add_argument("--band", type=int, default=16_000, help="Hz that all sound is cut to")
    parser.add_argument("--turns", type=int, default=20, help="of the call that may drift")
    parser.add_argument("--lengths", default="3,6,10,15", help="seconds of reference")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", default=None, help="also write the JSON here")
    args = parser.parse_args()
    encoder = SpeakerEncoder(args.band)
    found = people(args.callers, encoder)
    config = EngineConfig(
        model=args.model,
        device=args.device,
        threads=args.threads,
        whole_context=args.whole_context,
    )
    engine = ready_engine(config)
    speaker = Speaker(engine, encoder)
    bounds = controls(found)
    callers = similarities(
        speaker,
        found
        | {name + NARROW: [narrow(one, encoder) for one in some] for name, some in found.items()},
    )
    table("controls: recordings only", list(bounds), [list(bounds.values())])
    reached = gates(callers)
    show("gates", reached)
    show(f"replies of {args.model} in each caller's voice", callers)
    by_turn = drift(speaker, found, args.turns)
    show(f"similarity to the caller over {args.turns} turns", by_turn)
    by_length = lengths(speaker, found, [float(s) for s in args.lengths.split(",")])
    show("by length of the reference", by_length)
    engine.stop()
    if args.model == "tiny":
        print("\ntiny follows pitch and size and does not clone: CSM-1B was not measured.")
    result = {"benchmark": "voice", "model": args.model, "band_hz": args.band // 2}
    result |= {**machine(args.device), "controls": bounds, "callers": callers, "gates": reached}
    finish({**result, "drift": by_turn, "lengths": by_length}, args.out)


if __name__ == "__main__":
    main()
