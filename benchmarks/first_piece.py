"""How beginning a reply with its first clause affects intelligibility: WER of whole and cut texts.

    python benchmarks/first_piece.py [--model tiny] [--seeds 3] [--out FILE]

Each sentence is spoken as one utterance, and as two, cut where `TTS(first_piece_s=...)` cuts. Both
are transcribed with Whisper base; if distillmos is installed, it rates the audio too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from common import finish, machine, table
from naturalness import ratings

from csm_tts_plugin import generate_streaming_audio, load_csm_1b
from csm_tts_plugin.config import SAMPLE_RATE
from csm_tts_plugin.offline.models import whisper_folder
from csm_tts_plugin.offline.whisper import Transcriber
from csm_tts_plugin.text.clauses import clause_end
from scripts.call_heard import RATE, word_errors

SENTENCES = (
    "I wonder where he went, and who will miss him.",
    "It seems that he was a good man, but nobody knew him.",
    "That is a lovely story, please read me some more.",
    "After so many years, she still did not know her own husband.",
    "I think she was right to leave, because he was unkind.",
    "He gave his last coin to the boy, and the boy was lucky.",
)
"""Sentences like those of the offline LLM."""


def speak(generator: Any, parts: list[str], seed: int, path: Path) -> np.ndarray:
    """Speak the parts one after the other: samples at 24 kHz, also written to the file `path`."""
    torch.manual_seed(seed)
    spoken = [
        generate_streaming_audio(
            generator, part.strip(), output_filename=str(path), play_audio=False
        )
        for part in parts
    ]
    sound = np.concatenate(spoken).astype(np.float32)
    soundfile.write(path, sound, 24_000)
    return sound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()
    generator, listener = load_csm_1b(args.model), Transcriber(whisper_folder(), 1)
    rates: dict[str, list[float]] = {"whole": [], "cut": []}
    scores: dict[str, list[float]] = {"whole": [], "cut": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoken.wav"
        for seed in range(args.seeds):
            for sentence in SENTENCES:
                end = clause_end(sentence) or len(sentence)
                for how, parts in (
                    ("whole", [sentence]),
                    ("cut", [sentence[:end], sentence[end:]]),
                ):
                    sound = speak(generator, parts, seed, path)
                    heard = listener.transcribe(soxr.resample(sound, 24_000, RATE))
                    rates[how].append(word_errors(heard, sentence))
                    scores[how] += ratings([sound], SAMPLE_RATE) or []
    wer = {how: round(statistics.mean(found), 3) for how, found in rates.items()}
    mos = {
        how: round(statistics.mean(found), 2) if found else None for how, found in scores.items()
    }
    table(
        "Word error rate and distillmos",
        ["spoken", "WER", "MOS"],
        [[h, wer[h], mos[h]] for h in wer],
    )
    finish({"what": "the first clause alone", **machine("cpu"), "wer": wer, "mos": mos}, args.out)


if __name__ == "__main__":
    main()
