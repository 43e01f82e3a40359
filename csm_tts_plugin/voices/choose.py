"""Chooses the reference audio from the caller's turns in a call.

A turn is used whole. With word times from speech-to-text it may also be cut in a pause between two
words. Audio and transcript of a reference must match, otherwise the model stammers. Turns that are
too short are joined. `measure` says what the figures do not cover.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from .faults import BEST_S, LONGEST_S, SHORTEST_S, Fault, faults_of, unusable
from .measure import HOP_S, Figures, Track, loudness_gain, measure

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

LEVEL_DB = -20.0
"""RMS of a reference's speech after normalisation, without its pauses."""
PEAK_DB = -1.0
MARGIN = 0.08
"""Score by which a new reference must exceed the current one."""

_PART_S = 0.8
"""Duration of the shortest turn that may be part of a reference."""
_AROUND_S = 0.12
"""Silence kept before and after a part."""
_FADE_S = 0.01
_KEPT_S = 60.0
"""Duration of usable turns that are kept; the worst are dropped first."""
_ALIKE_SEMITONES, _ALIKE_DB = 5.0, 10.0
"""Most that joined parts may differ by: beyond this, person, mood or microphone has changed."""
_NEARLY_AS_GOOD = 0.8


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word with its times in seconds from the beginning of the turn."""

    text: str = field(repr=False)
    begin: float
    end: float


@dataclass(frozen=True, slots=True, eq=False)
class HeardTurn:
    """One turn of the caller; `samples`: float32 in [-1, 1], [n] or [n, channels]."""

    text: str = field(repr=False)
    samples: Samples = field(repr=False)
    rate: int
    words: tuple[SpokenWord, ...] = ()
    """The words of `text` with times, if speech-to-text gives them; needed to cut the turn."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result for one turn. `faults`: why it was refused; `figures` None: not measurable."""

    turn: int
    figures: Figures | None
    faults: tuple[Fault, ...]

    @property
    def taken(self) -> bool:
        return not self.faults


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A reference of 3 to 15 s: transcript, mono samples with normalised loudness, score."""

    text: str = field(repr=False)
    samples: Samples = field(repr=False)
    rate: int
    turns: tuple[int, ...]
    """The turns it is made of, counted from 1."""
    figures: Figures
    """Before the loudness was normalised."""
    score: float
    """0 to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    turn: int
    text: str = field(repr=False)
    samples: Samples = field(repr=False)
    rate: int
    figures: Figures
    quality: float

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


class Chooser:
    """Takes turns in order; `better` returns each new best reference."""

    def __init__(self) -> None:
        self._heard = 0
        self._parts: list[_Part] = []
        self._given = 0.0

    def add(self, turn: HeardTurn) -> Verdict:
        """Measures a turn and keeps its audio if it is usable."""
        self._heard += 1
        parts, verdict = _parts(self._heard, turn)
        self._parts += parts
        while sum(part.seconds for part in self._parts) > _KEPT_S:
            self._parts.remove(min(self._parts, key=lambda part: part.quality))
        return verdict

    def best(self) -> Choice | None:
        """The best reference of all turns so far; None: they make none."""
        return self._best(above=0.0)

    def better(self) -> Choice | None:
        """`best`, if it is the first or exceeds the last one returned by `MARGIN`; else None."""
        wanted = self._given + MARGIN if self._given else 0.0
        choice = self._best(above=wanted)
        if choice is None or choice.score < wanted:
            return None
        self._given = choice.score
        return choice

    def _best(self, above: float) -> Choice | None:
        """Joins and measures candidates only if their estimate reaches `above`: joining is slow."""
        candidates = sorted(_candidates(self._parts), key=_estimate, reverse=True)
        worthwhile = (joined for joined in candidates if _estimate(joined) >= above)
        return next((choice for joined in worthwhile if (choice := _join(joined))), None)


def choose(turns: Iterable[HeardTurn]) -> tuple[Choice | None, list[Verdict]]:
    """Returns the best reference of these turns, and the verdict on each turn."""
    chooser = Chooser()
    verdicts = [chooser.add(turn) for turn in turns]
    return chooser.best(), verdicts


def normalised(samples: Samples, figures: Figures) -> Samples:
    """Scales `samples` to the loudness of a reference, without compression."""
    return samples * np.float32(loudness_gain(figures, LEVEL_DB, PEAK_DB))


def quality(figures: Figures) -> float:
    """Quality of the audio, 0 to 1, from noise, bandwidth and regularity; not from length."""
    snr = np.clip((figures.snr_db - 10.0) / 25.0, 0.0, 1.0)
    band = np.clip((figures.bandwidth_hz - 2_000.0) / 5_000.0, 0.0, 1.0)
    regular = np.clip((figures.harmonicity - 0.6) / 0.25, 0.0, 1.0)
    leaps = np.clip((figures.pitch_flips - 0.08) / 0.1, 0.0, 1.0)
    return max(0.0, float(0.45 * snr + 0.30 * band + 0.25 * regular - 0.2 * leaps))


def score(figures: Figures) -> float:
    """Quality times a weight for the length: full from 10 s on, about 0.6 at 3 s."""
    return quality(figures) * _enough(figures.seconds)


def _enough(seconds: float) -> float:
    return float(0.55 + 0.45 * np.clip((seconds - 2.0) / (BEST_S - 2.0), 0.0, 1.0))


def _parts(number: int, turn: HeardTurn) -> tuple[list[_Part], Verdict]:
    if fault := unusable(turn.samples, turn.rate, shortest_s=_PART_S):
        return [], Verdict(number, None, (fault,))
    mono = turn.samples if turn.samples.ndim == 1 else turn.samples.mean(axis=1)
    figures, track = measure(mono, turn.rate)
    faults = _faults(figures, turn.text)
    parts = []
    if not faults:
        parts = [_part(number, turn.text, mono, turn.rate, figures, track)]
    elif all(fault.name == "long" for fault in faults):
        parts = list(_cut(number, turn, mono, track))
    return parts, Verdict(number, figures, () if parts else faults)


def _cut(number: int, turn: HeardTurn, mono: Samples, track: Track) -> Iterator[_Part]:
    for text, samples in _pieces(turn, mono, track):
        figures, mine = measure(samples, turn.rate)
        if not _faults(figures, text):
            yield _part(number, text, samples, turn.rate, figures, mine)


def _faults(figures: Figures, text: str) -> tuple[Fault, ...]:
    """The faults of a part. Being short is none, because parts can be joined."""
    return tuple(fault for fault in faults_of(figures, text) if fault.name != "short")


def _part(
    number: int, text: str, samples: Samples, rate: int, figures: Figures, track: Track
) -> _Part:
    """A part without the silence before and after it."""
    spoken = np.flatnonzero(track.active)
    around = round(_AROUND_S * rate)
    begin = max(0, round(spoken[0] * HOP_S * rate) - around)
    end = round((spoken[-1] + 2) * HOP_S * rate) + around
    return _Part(number, text.strip(), samples[begin:end].copy(), rate, figures, quality(figures))


def _pieces(turn: HeardTurn, mono: Samples, track: Track) -> list[tuple[str, Samples]]:
    """Cuts a long turn in pauses between words, into pieces of at most `BEST_S` if possible."""
    cuts = [0.0, *_gaps(turn.words, track), len(mono) / turn.rate]
    pieces, begin = [], 0.0
    for at, following in pairwise([*cuts[1:], np.inf]):
        if following - begin <= BEST_S or at == begin:
            continue
        inside = [w for w in turn.words if begin <= (w.begin + w.end) / 2 < at]
        words = [word.text.strip() for word in inside]
        if words and at - begin <= LONGEST_S:
            pieces.append((" ".join(words), mono[int(begin * turn.rate) : int(at * turn.rate)]))
        begin = at
    return pieces


def _gaps(words: Sequence[SpokenWord], track: Track) -> list[float]:
    """The middle of each pause between two words, in seconds."""
    middles = [(a + b + 1) / 2 * HOP_S for a, b in track.pauses()]
    ends = [(one.end, other.begin) for one, other in pairwise(words)]
    near = 0.1  # accuracy of word times from speech-to-text
    return [at for at in middles if any(a - near <= at <= b + near for a, b in ends)]


def _estimate(parts: Sequence[_Part]) -> float:
    """Estimated score of joined parts."""
    seconds = sum(part.seconds for part in parts)
    return sum(part.quality * part.seconds for part in parts) / seconds * _enough(seconds)


def _candidates(parts: Sequence[_Part]) -> Iterable[list[_Part]]:
    """For each part: that part joined with the best similar ones, up to a sufficient length."""
    ranked = sorted(parts, key=lambda part: part.quality, reverse=True)
    for seed in ranked:
        joined, seconds = [seed], seed.seconds
        for part in ranked:
            good = part.quality >= _NEARLY_AS_GOOD * seed.quality
            fits = seconds < BEST_S and seconds + part.seconds <= LONGEST_S
            if part is not seed and good and fits and _alike(seed, part):
                joined.append(part)
                seconds += part.seconds
        if seconds >= SHORTEST_S:
            yield [part for part in parts if part in joined]


def _alike(one: _Part, other: _Part) -> bool:
    a, b = one.figures, other.figures
    return (
        one.rate == other.rate
        and a.narrow == b.narrow
        and abs(12.0 * np.log2(a.pitch_hz / b.pitch_hz)) <= _ALIKE_SEMITONES
        and abs(a.level_db - b.level_db) <= _ALIKE_DB
    )


def _join(parts: Sequence[_Part]) -> Choice | None:
    """Joins parts in the order of the call, each at the same loudness, faded at its ends."""
    rate = parts[0].rate
    ramp = np.linspace(0.0, 1.0, round(_FADE_S * rate), dtype=np.float32)
    sounds = []
    for part in parts:
        sound = normalised(part.samples, part.figures)
        sound[: len(ramp)] *= ramp
        sound[-len(ramp) :] *= ramp[::-1]
        sounds.append(sound)
    text = " ".join(_ended(part.text) for part in parts) if len(parts) > 1 else parts[0].text
    figures, _ = measure(np.concatenate([part.samples for part in parts]), rate)
    if faults_of(figures, text):
        return None
    turns = tuple(dict.fromkeys(part.turn for part in parts))
    return Choice(text, np.concatenate(sounds), rate, turns, figures, round(score(figures), 3))


def _ended(text: str) -> str:
    """Ends the transcript of a part with a full stop if speech-to-text gave none."""
    return f"{text}." if text[-1].isalnum() else text
