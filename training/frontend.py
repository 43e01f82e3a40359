"""Build the chat template: CSM's prompt format, with a pronouncing dictionary inside.

The template turns words into the symbols of `phones.py` and pads each turn's text to a fixed width,
so that nothing outside the model's own folder knows how csm-tiny reads: not the processor, not the
engine. Words come from a lexicon (flite's, for the words of `words.txt`), else from a known
word and an ending, else letter by letter. Numbers below 10,000 are read out.
"""

from __future__ import annotations

import argparse
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .phones import spell
from .sentences import words
from .spec import WIDTH

HERE = Path(__file__).parent
LEXICON = HERE / "lexicon.txt"
"""Lines of "word symbols"."""
TEMPLATE = HERE / "template.jinja"

# What letters sound like where the lexicon knows no better; the longest match counts, $ is the
# word's end.
# fmt: off
_LETTERS = {
    "tion": "Sxn", "sion": "Zxn", "ough": "O2", "augh": "O2", "eigh": "B6", "ture": "CR8",
    "ate$": "B6t", "ake$": "B6k", "ade$": "B6d", "ame$": "B6m", "ane$": "B6n", "ace$": "B6s",
    "ine$": "I3n", "ite$": "I3t", "ile$": "I3l", "ide$": "I3d", "ime$": "I3m", "ice$": "I3s",
    "one$": "Q7n", "ole$": "Q7l", "ose$": "Q7z", "oke$": "Q7k", "ope$": "Q7p", "use$": "yWz",
    "ous$": "xs", "igh": "I3", "tch": "C", "dge": "J", "le$": "xl", "es$": "z", "ed$": "d",
    "ph": "f", "sh": "S", "ch": "C", "th": "T", "wh": "w", "ck": "k", "ng": "N", "qu": "kw",
    "ee": "E", "ea": "E", "oo": "W", "ou": "V4", "ow": "Q7", "oa": "Q7", "oi": "Y5", "oy": "Y5",
    "ai": "B6", "ay": "B6", "au": "O2", "aw": "O2", "ar": "ar", "er": "R8", "ir": "R8",
    "ur": "R8", "or": "O2r", "ey": "E", "ie": "E", "ew": "W", "kn": "n", "wr": "r",
    "ce": "se", "ci": "si", "cy": "sE", "ge": "Je", "gi": "Ji", "e$": "", "y$": "E", "$": "",
    **{c + c: c for c in "bdfglmnprstz"},
    **dict(zip("abcdefghijklm", ("A1", *"bkdefghiJklm"), strict=True)),
    **dict(zip("nopqrstuvwxyz", ("n", "a", *"pkrstuvw", "ks", "E", "z"), strict=True)),
}
# fmt: on
_IN_SENTENCES = {"a": "x"}
"""Words that flite says otherwise alone than among others."""
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety"


def pronounce(word: str) -> str:
    """Symbols of one word as flite says it alone; empty if it uses a phone we do not know."""
    command = ["flite", "-voice", "rms", "-ps", "-t", word, "none"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    phones = printed.stdout.split()[1:-1]
    try:
        return "" if "pau" in phones else "".join(spell(["pau", *phones, "pau"])[1:-1])
    except KeyError:
        return ""


def lexicon() -> dict[str, str]:
    """Symbols of every word of the vocabulary."""
    lines = LEXICON.read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines) | _IN_SENTENCES


def template() -> str:
    """The chat template's text."""
    text = " " + " ".join(f"{word}={symbols}" for word, symbols in lexicon().items()) + " "
    fields = {
        "LEXICON": text, "LETTERS": repr(_LETTERS), "UNITS": _UNITS, "TENS": _TENS,
        "PAUSE": ",;", "STOP": ".:", "QUESTION": "?!", "WIDTH": str(WIDTH),
    }  # fmt: skip
    out = TEMPLATE.read_text()
    for name, value in fields.items():
        out = out.replace(f"@{name}@", value)
    return out


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(description="Write lexicon.txt from words.txt with flite.").parse_args()
    vocabulary = words()
    with ThreadPoolExecutor(2) as pool:
        symbols = list(pool.map(pronounce, vocabulary))
    lines = [f"{w} {s}" for w, s in zip(vocabulary, symbols, strict=True) if s]
    LEXICON.write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} of {len(vocabulary)} words")


if __name__ == "__main__":
    main()
