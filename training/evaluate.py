"""Measure csm-tiny: word error rates of codec and replies, and the share of replies that end.

Needs `faster-whisper` with the model of `make setup`, and jiwer, which
`python3 -m scripts.setup measuring` installs. Prints one table of figures; --out keeps the audio.
`benchmarks/understood.py` and `benchmarks/voice.py` measure the effect of context and references.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from transformers import AutoProcessor, CsmForConditionalGeneration
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from benchmarks.naturalness import ratings
from benchmarks.similarity import measuring

from . import corpus
from .prosodic import codes_of
from .spec import END, SAMPLE_RATE
from .teacher import Teacher

REPLIES = Path(__file__).parent.parent / "benchmarks" / "replies.txt"
"""Written by SmolLM2. Training does not see them: `corpus.KEPT` sentences are held out."""
_ROWS = 20


def plain(text: str) -> str:
    """Normalised text for error rates: lower case and letters only, without digits."""
    text = text.lower().replace("-", " ").replace("’", "'").replace("'", "")
    return " ".join(re.sub(r"[^a-z ]", " ", re.sub(r"\d+", " ", text)).split())


@dataclass(frozen=True)
class Rates:
    """Word and character error rates, and the transcripts."""

    words: float
    characters: float
    written_out: float
    """Words again, by Whisper's own normaliser: "I'm" and "I am" are equal."""
    heard: list[str]


class Listener:
    """Whisper, with the error rates of its transcripts."""

    def __init__(self, model: Path, threads: int, beam: int = 1) -> None:
        from faster_whisper import WhisperModel

        self.beam = beam
        self.model = WhisperModel(
            str(model), device="cpu", compute_type="int8", cpu_threads=threads
        )

    def hear(self, samples: np.ndarray) -> str:
        """Normalised transcript of 24 kHz samples."""
        return plain(self._transcribe(samples))

    def _transcribe(self, samples: np.ndarray) -> str:
        audio = soxr.resample(samples, SAMPLE_RATE, 16_000).astype(np.float32)
        parts, _ = self.model.transcribe(
            audio,
            language="en",
            beam_size=self.beam,
            temperature=[0.0],
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(part.text for part in parts)

    def rates(self, texts: list[str], sounds: list[np.ndarray]) -> Rates:
        """Error rates over all recordings together."""
        measuring()
        import jiwer

        written_out = EnglishTextNormalizer({})
        transcripts = [self._transcribe(sound) for sound in sounds]
        heard, said = [plain(text) for text in transcripts], [plain(text) for text in texts]
        return Rates(
            words=jiwer.wer(said, heard),
            characters=jiwer.cer(said, heard),
            written_out=jiwer.wer(
                [written_out(text) for text in texts], [written_out(text) for text in transcripts]
            ),
            heard=heard,
        )


@torch.inference_mode()
def speak(
    model, processor, conversations: list[list[dict]], **options
) -> tuple[list[np.ndarray], float]:
    """Audio of the last turn of each conversation, and the share with an end frame."""
    sounds, ended = [], 0
    for start in range(0, len(conversations), _ROWS):
        part = conversations[start : start + _ROWS]
        inputs = processor.apply_chat_template(part, tokenize=True, return_dict=True)
        codes = model.generate(**inputs, **options)
        for row in codes:
            ends = (row[:, :-1] == END).all(-1).nonzero()
            length = int(ends[0]) if len(ends) else len(row)
            ended += bool(len(ends))
            audio = model.codec_model.decode(
                row[None, : max(length, 1)].transpose(1, 2)
            ).audio_values
            sounds.append(audio[0, 0].float().numpy())
    return sounds, ended / len(conversations)


def turn(text: str, speaker: str = "0", audio: np.ndarray | None = None) -> dict:
    """A message of the chat template."""
    content: list[dict] = [{"type": "text", "text": text}]
    if audio is not None:
        content.append({"type": "audio", "audio": audio})
    return {"role": speaker, "content": content}


def through_codec(codec: Any, sound: np.ndarray) -> np.ndarray:
    """24 kHz samples, encoded and decoded by the codec."""
    with torch.inference_mode():
        codes = codec.encode(torch.from_numpy(sound)[None, None]).audio_codes
        return np.asarray(codec.decode(codes).audio_values[0, 0].float())


def codec_gate(
    codec: Any, listener: Listener, recordings: dict[str, list[tuple[str, np.ndarray]]]
) -> dict[str, float]:
    """Error rates of recordings, by kind (words, 24 kHz samples), before and after the codec."""
    figures = {}
    for kind, some in recordings.items():
        words = [text for text, _ in some]
        before = listener.rates(words, [sound for _, sound in some])
        after = listener.rates(words, [through_codec(codec, sound) for _, sound in some])
        figures[f"codec, {kind}: originals, word error rate"] = before.words
        figures[f"codec, {kind}: word error rate"] = after.words
        figures[f"codec, {kind}: character error rate"] = after.characters
    return figures


def teacher_gate(
    codec: Any, listener: Listener, work: Path, replies: list[str]
) -> dict[str, float]:
    """Word error rates of replies as the teacher speaks them, through the codec: with the codes of
    the encoder, and with those in which the model speaks."""
    teacher = Teacher(work)
    originals, encoded, said = [], [], []
    for number, text in enumerate(replies):
        one = corpus.speak(teacher, text, corpus.STOCK_SPEAKER, np.random.default_rng(number))
        if one is None:
            raise SystemExit(f"the teacher could not speak: {text}")
        audio = np.round(one.sound * 32767).astype(np.int16)
        codes = codes_of(one.frames, one.periods, corpus.STOCK_SPEAKER.low, audio).astype(np.int64)
        encoded.append(through_codec(codec, one.sound))
        with torch.inference_mode():
            made = codec.decode(torch.from_numpy(codes.T)[None]).audio_values[0, 0]
        said.append(made.numpy())
        originals.append(one.sound)
    named = {"originals": originals, "the encoder's codes": encoded, "spoken codes": said}
    return {
        f"codec, the teacher's replies, {name}: word error rate": listener.rates(
            replies, sounds
        ).words
        for name, sounds in named.items()
    }


def held_recordings(work: Path, count: int) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Sentences of `texts.txt` in the held-out shards, and set-up's recordings of people."""
    kinds = {"stock voice": corpus.HELD, "made-up speakers": corpus.VOICES}
    out = {}
    for kind, number in kinds.items():
        rows = corpus.load(work, [number])
        rows = [r for r in rows if r["text"][0].isupper() and not re.search(r"\d", r["text"])]
        if rows:
            some = [(r["text"], r["audio"].astype(np.float32) / 32768) for r in rows[:count]]
            out[kind] = some
    people = []
    for path in sorted(Path(".tools/speech").rglob("*.wav")):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        sound = soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE).astype(np.float32)
        people.append((path.with_suffix(".txt").read_text(encoding="utf-8"), sound))
    return out | ({"recorded people": people[:count]} if people else {})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("csm_tts_plugin/assets/tiny"))
    parser.add_argument("--whisper", type=Path, default=Path(".tools/models/whisper-base"))
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--sentences", type=int, default=100, help="held-out replies to speak")
    parser.add_argument("--codec", type=int, default=0, help="recordings of each kind (gate a)")
    parser.add_argument("--teacher", type=int, default=0, help="replies of the teacher (gate a)")
    parser.add_argument("--reference", action="store_true", help="speak after the stock voice")
    parser.add_argument("--naturalness", action="store_true", help="rate the replies (gate g)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--out", type=Path, help="folder for the audio of the replies")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    processor = AutoProcessor.from_pretrained(args.model)
    model = CsmForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    listener = Listener(args.whisper, args.threads)
    figures: dict[str, float] = {}
    if args.codec:
        held = held_recordings(args.work, args.codec)
        figures |= codec_gate(model.codec_model, listener, held)
    if args.teacher:
        some = REPLIES.read_text(encoding="utf-8").splitlines()[: args.teacher]
        figures |= teacher_gate(model.codec_model, listener, args.work, some)
    before = []
    if args.reference:
        sound, _ = soundfile.read(args.model / "stock.wav", dtype="float32")
        record = json.loads((args.model / "stock.json").read_text())
        before = [turn(record["transcript"], audio=sound)]
    if replies := REPLIES.read_text(encoding="utf-8").splitlines()[: args.sentences]:
        figures |= reply_gate(model, processor, listener, before, replies, args)
    print("| figure | value |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value:.3f} |")


def reply_gate(
    model: Any,
    processor: Any,
    listener: Listener,
    before: list[dict],
    replies: list[str],
    args: argparse.Namespace,
) -> dict[str, float]:
    """Error rates of held-out replies (gate b), and the share with an end frame (gate f)."""
    options: dict[str, Any] = {}
    if args.greedy:
        options = {"do_sample": False, "depth_decoder_do_sample": False}
    if args.temperature:
        options = {"temperature": args.temperature, "depth_decoder_temperature": args.temperature}
    began = time.monotonic()
    sounds, ended = speak(model, processor, [[*before, turn(text)] for text in replies], **options)
    spent = time.monotonic() - began
    rates = listener.rates(replies, sounds)
    for number, (text, said) in enumerate(zip(replies, rates.heard, strict=True)):
        print(f"{text}  ->  {said}")
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            soundfile.write(args.out / f"{number:03d}.wav", sounds[number], SAMPLE_RATE)
    natural = ratings(sounds, SAMPLE_RATE) if args.naturalness else None
    return {
        **({"replies: naturalness by distillmos": float(np.mean(natural))} if natural else {}),
        "replies: word error rate": rates.words,
        "replies: character error rate": rates.characters,
        "replies: word error rate, contractions written out": rates.written_out,
        "ended by itself": ended,
        "times real time, 20 at once": sum(map(len, sounds)) / SAMPLE_RATE / spent,
    }


if __name__ == "__main__":
    main()
