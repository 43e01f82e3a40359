"""Phones as symbols: one printable character for each codec frame of a phone.

Short phones last one frame, long vowels, diphthongs and pauses two, and an utterance begins with
one frame of silence. A text of symbols therefore has one symbol for each frame of its speech.
Stressed vowels have separate symbols, because pitch and loudness depend on stress.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .spec import FRAME
from .teacher import UNIT

LEAD = "_"
"""The silent frame before the first phone; without it an initial vowel is lost."""
# fmt: off
CONSONANTS = dict(zip("pbtdkfvszmnlwhɡɹjŋʃʒθðʤʧTʔɾ", "pbtdkfvszmnlwhgryNSZTDJCdtd", strict=True))
VOWELS = {
    "ɑ": "a", "ʌ": "u", "ə": "x", "ɐ": "x", "ᵊ": "x", "ɛ": "e", "ɪ": "i", "ᵻ": "i", "i": "E",
    "ʊ": "U", "u": "W", "æ": "A1", "ɔ": "O2", "I": "I3", "W": "V4", "Y": "Y5", "A": "B6", "O": "Q7",
}
R_VOWEL = "R8"
STRESSED = dict(zip("aueiEUWAOIVYBQR", "cjFHKLMGPX90q$&", strict=True))
"""The first symbol of a vowel, and its stressed form."""
# fmt: on
PAUSE, STOP, QUESTION = ",;", ".:", "?!"
PAUSES = {**dict.fromkeys(",;:—…", PAUSE), **dict.fromkeys(".!", STOP), "?": QUESTION}
_DROPPED = set('()"“”')


@dataclass(frozen=True)
class Phone:
    """Symbols of a phone, and the range of hibari's ids that it covers, without `last`."""

    symbols: str
    first: int
    last: int


def clean(phonemes: str) -> str:
    """Removes quotes and brackets, and leaves exactly one closing mark."""
    text = "".join(c for c in phonemes if c not in _DROPPED).strip()
    while len(text) > 1 and text[-1] in PAUSES and text[-2] in PAUSES:
        text = text[:-2] + (text[-1] if text[-1] in "?!." else text[-2])
    if text and text[-1] not in ".!?":
        text = text.rstrip("".join(PAUSES)) + "."
    return text


def _vowel(symbols: str, stressed: bool) -> str:
    return STRESSED.get(symbols[0], symbols[0]) + symbols[1:] if stressed else symbols


def spell(phonemes: str) -> list[Phone]:
    """Phones of misaki phonemes; ids count the leading pause as number 0.

    A space and a stress mark belong to the phone after them. Raises KeyError for a character that
    this table does not know.
    """
    out: list[Phone] = []
    first, stressed, i = 1, False, 0
    while i < len(phonemes):
        c, end, symbols = phonemes[i], i + 2, ""
        if c in "ˈˌ":
            stressed = True
        elif c in PAUSES:
            symbols = PAUSES[c]
        elif c in "ɜə" and (c == "ɜ" or phonemes[i + 1 : i + 2] == "ɹ"):
            end += phonemes[i + 1 : i + 2] == "ɹ"
            symbols = _vowel(R_VOWEL, stressed)
        elif c in VOWELS:
            symbols = _vowel(VOWELS[c], stressed)
        elif c != " ":
            symbols = CONSONANTS[c]
        if symbols:
            out.append(Phone(symbols, first, end))
            first = end
            stressed = stressed and symbols[0] not in STRESSED.values() and c not in PAUSES
        i = end - 1 if symbols else i + 1
    return out


def symbols_of(phones: list[Phone]) -> str:
    """The text of an utterance: a silent frame, then every phone's symbols."""
    return LEAD + "".join(phone.symbols for phone in phones)


def _share(total: int, natural: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Splits `total` units among the ids of one phone, in proportion to natural durations."""
    count = len(natural)
    if total <= count:  # the phone itself is the last id; spaces and stress marks come before it
        return np.array([0] * (count - total) + [1] * total)
    ideal = natural / natural.sum() * total
    out = np.maximum(np.floor(ideal), 1).astype(np.int64)
    while out.sum() > total:
        out[np.argmax(out - ideal - (out == 1) * 9)] -= 1
    while out.sum() < total:
        out[np.argmax(ideal - out)] += 1
    return out


def on_grid(phones: list[Phone], natural: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Durations in units that make every phone last as many frames as it has symbols.

    A frame is 3.2 units. The cumulative ends are rounded, so rounding errors do not add up.
    """
    lengths = [len(LEAD), *(len(phone.symbols) for phone in phones)]
    ends = np.round(np.cumsum(lengths) * FRAME / UNIT).astype(int)
    out = np.zeros(len(natural), np.int64)
    out[0] = ends[0]
    for phone, start, end in zip(phones, ends[:-1], ends[1:], strict=True):
        part = slice(phone.first, phone.last)
        out[part] = _share(end - start, np.maximum(natural[part], 1))
    return out


def spoken(phones: list[Phone], durations: npt.NDArray[np.float32], frames: int) -> str:
    """The symbol spoken at the middle of each frame, for any timing."""
    names, ends = [LEAD], [float(durations[: phones[0].first].sum())]
    for phone in phones:
        total = float(durations[phone.first : phone.last].sum())
        names += phone.symbols
        begin = ends[-1]
        ends += [begin + total * (k + 1) / len(phone.symbols) for k in range(len(phone.symbols))]
    middles = (np.arange(frames) + 0.5) * FRAME / UNIT
    return "".join(names[min(int(np.searchsorted(ends, m)), len(names) - 1)] for m in middles)
