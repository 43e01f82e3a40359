"""Phones as symbols: one printable character for each codec frame a phone lasts.

Short phones take one frame, long vowels and diphthongs two, a pause two. A text of symbols is
therefore exactly as long as its speech.
"""

from __future__ import annotations

from collections.abc import Sequence

# fmt: off
SYMBOLS_OF = {
    **{phone: phone for phone in "pbtdkgfvszmnlrwy"},
    "hh": "h", "ch": "C", "jh": "J", "sh": "S", "zh": "Z", "th": "T", "dh": "D", "ng": "N",
    "aa": "a", "ah": "u", "ax": "x", "eh": "e", "ih": "i", "iy": "E", "uh": "U", "uw": "W",
    "ae": "A1", "ao": "O2", "ay": "I3", "aw": "V4", "oy": "Y5", "ey": "B6", "ow": "Q7",
    "er": "R8",
}
# fmt: on
PAUSE = ",;"
STOP = ".:"
QUESTION = "?!"


def spell(phones: Sequence[str], question: bool = False) -> list[str]:
    """Symbols of each phone of a whole utterance as flite prints it; "pau" is a pause.

    The leading pause gets none, so that speech begins with the first frame; the last one says
    whether it was a question. Raises KeyError for a phone this table does not know.
    """
    last = len(phones) - 1
    ends = {0: "", last: QUESTION if question else STOP}
    return [
        ends.get(i, PAUSE) if phone == "pau" else SYMBOLS_OF[phone]
        for i, phone in enumerate(phones)
    ]
