"""Build the chat template: CSM's prompt format with a pronunciation lexicon.

The template converts words to the symbols of `phones.py` and pads each turn's text to a fixed
width. Processor and engine therefore need no code for csm-tiny. A word is looked up in the lexicon
(the teacher's pronunciation of the most frequent English words). If it is missing, the template
tries a known word with an ending, then letter-to-sound rules. Numbers below 10,000 become words.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from . import corpus, texts
from .phones import LEAD, PAUSE, QUESTION, STOP, spell
from .spec import WIDTH
from .teacher import Teacher

HERE = Path(__file__).parent
LEXICON = HERE / "lexicon.txt"
"""Lines of "word symbols"."""
TEMPLATE = HERE / "template.jinja"
_MARKS = (PAUSE, STOP, QUESTION)
_WORD = re.compile(r"[a-z]+'[a-z]+|[a-z]{2,}|[ai]")

# Letter-to-sound rules for words outside the lexicon. The longest match wins; $ is the word's end.
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
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety"


def alone(teacher: Teacher, word: str) -> str:
    """Symbols of a word as the teacher speaks it in isolation; empty if it cannot be spoken."""
    try:
        return "".join(p.symbols for p in spell(" ".join(teacher.phonemes(word))))
    except KeyError:
        return ""


def in_sentences(teacher: Teacher, sentences: Iterable[str]) -> dict[str, Counter[str]]:
    """Counts of each word's pronunciations in sentences, where function words lose their stress.

    Skips sentences whose words do not match their groups of phonemes, such as those with numbers.
    """
    said: dict[str, Counter[str]] = {}
    for sentence in sentences:
        written = sentence.lower().split()
        spoken = " ".join(teacher.phonemes(sentence)).split()
        if len(written) != len(spoken):
            continue
        for word, phonemes in zip(written, spoken, strict=True):
            try:
                symbols = "".join(p.symbols for p in spell(phonemes) if p.symbols not in _MARKS)
            except KeyError:
                continue
            said.setdefault(word.strip(".,;:!?"), Counter())[symbols] += 1
    return said


def lexicon() -> dict[str, str]:
    """Symbols of every word of the vocabulary."""
    lines = LEXICON.read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def template() -> str:
    """The chat template's text."""
    text = " " + " ".join(f"{word}={symbols}" for word, symbols in lexicon().items()) + " "
    fields = {
        "LEXICON": text, "LETTERS": repr(_LETTERS), "UNITS": _UNITS, "TENS": _TENS,
        "LEAD": LEAD, "PAUSE": PAUSE, "STOP": STOP, "QUESTION": QUESTION, "WIDTH": str(WIDTH),
    }  # fmt: skip
    out = TEMPLATE.read_text()
    for name, value in fields.items():
        out = out.replace(f"@{name}@", value)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write lexicon.txt: the teacher's pronunciations.")
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument(
        "--words", type=int, default=42_000, help="number of the most frequent English words"
    )
    args = parser.parse_args()
    from wordfreq import top_n_list

    teacher = Teacher(args.work)
    words = [w for w in top_n_list("en", args.words) if _WORD.fullmatch(w)]
    rows = corpus.load(args.work, corpus.present(args.work))
    whole = {row["text"] for row in rows if row["text"][0].isupper()}
    said = in_sentences(teacher, sorted(whole.union(texts.load(args.work))))
    lines = []
    for word in words:
        often = [way for way, count in said.get(word, Counter()).most_common(1) if count > 2]
        if symbols := (often[0] if often else alone(teacher, word)):
            lines.append(f"{word} {symbols}")
    LEXICON.write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} of {len(words)} words, {sum(w in said for w in words)} found in sentences")


if __name__ == "__main__":
    main()
