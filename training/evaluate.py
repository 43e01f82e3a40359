"""Measure csm-tiny: what a recogniser understands, whether it stops, whether it keeps the voice.

Needs `faster-whisper` with the model of `make setup`, and jiwer and resemblyzer (for --voices),
which `python3 -m scripts.setup measuring` installs. Prints one table of figures; --out keeps the
sound.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from transformers import AutoProcessor, CsmForConditionalGeneration

from benchmarks.similarity import Ear, measuring

from . import corpus
from .sentences import held_out
from .spec import END, SAMPLE_RATE

_ROWS = 20


def plain(text: str) -> str:
    """Lower case, letters only: what word error rates are counted on."""
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower()).split())


class Listener:
    """Whisper base, and word error rates of what it heard."""

    def __init__(self, model: Path, threads: int) -> None:
        from faster_whisper import WhisperModel

        self.model = WhisperModel(
            str(model), device="cpu", compute_type="int8", cpu_threads=threads
        )

    def hear(self, samples: np.ndarray) -> str:
        """Transcript of 24 kHz samples."""
        audio = soxr.resample(samples, SAMPLE_RATE, 16_000).astype(np.float32)
        parts, _ = self.model.transcribe(
            audio, language="en", beam_size=5, condition_on_previous_text=False
        )
        return plain(" ".join(part.text for part in parts))

    def error_rate(self, texts: list[str], sounds: list[np.ndarray]) -> tuple[float, list[str]]:
        """Word error rate over all, and the transcripts."""
        measuring()
        import jiwer

        heard = [self.hear(sound) for sound in sounds]
        return jiwer.wer([plain(text) for text in texts], heard), heard


@torch.inference_mode()
def speak(
    model, processor, conversations: list[list[dict]], **options
) -> tuple[list[np.ndarray], float]:
    """Sound of each conversation's last turn, and the share that ended by itself."""
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


def main_voice(rows: list[dict], lists: bool) -> list[dict]:
    """The main voice's sentences of the grammar, which begin with a capital; or its word lists."""
    rows = [r for r in rows if (r["voice"], r["size"]) == corpus.MAIN]
    return [r for r in rows if r["text"][0].isupper() != lists]


def codec_gate(model, listener: Listener, rows: list[dict], kind: str) -> dict[str, float]:
    """Error rates on held-out recordings of the corpus and on their way through the codec."""
    texts = [row["text"] for row in rows]
    sounds = [row["audio"].astype(np.float32) / 32768 for row in rows]
    with torch.inference_mode():
        again = []
        for sound in sounds:
            codes = model.codec_model.encode(torch.from_numpy(sound)[None, None]).audio_codes
            again.append(model.codec_model.decode(codes).audio_values[0, 0].numpy())
    before, _ = listener.error_rate(texts, sounds)
    after, _ = listener.error_rate(texts, again)
    return {f"{kind}, original": before, f"{kind}, through the codec": after}


def voices_to_tell_apart(count: int, seed: int) -> list[tuple[str, float]]:
    """Different ones: beside itself a voice would pass for one of the others."""
    random_, drawn = random.Random(seed), {}
    while len(drawn) < count:
        drawn[corpus.draw_voice(random_)] = None
    return list(drawn)


def voice_gate(model, processor, count: int, seed: int) -> dict[str, float]:
    """Similarity of speech to its own reference, minus to the others', over `count` voices.

    `recordings` are the ends of that scale: what a second sentence of the same synthesiser has.
    """
    ear, texts = Ear(), held_out(200)
    text = "I would like to talk about the garden, and the weather in the morning."
    references, again, spoken = [], [], []
    for number, voice in enumerate(voices_to_tell_apart(count, seed)):
        said, sound = _synthetic(texts[100 + number :], voice)
        _, second = _synthetic(texts[150 + number :], voice)
        conversation = [turn(said, audio=sound), turn(text)]
        speech = speak(model, processor, [conversation])[0][0]
        references.append(ear.hear(sound, SAMPLE_RATE))
        again.append(ear.hear(second, SAMPLE_RATE))
        spoken.append(ear.hear(speech, SAMPLE_RATE))
        print(f"voice {number + 1}/{count}", flush=True)
    own, others = _own_and_others(spoken, references)
    bound = _own_and_others(again, references)
    return {
        "voice similarity, own": own,
        "voice similarity, others": others,
        "voice similarity, own minus others": own - others,
        "voice similarity, own minus others, of recordings": bound[0] - bound[1],
    }


def _synthetic(texts: list[str], voice: tuple[str, float]) -> tuple[str, np.ndarray]:
    """The first of these sentences that the synthesiser can say in this voice."""
    for text in texts:
        if (spoken := corpus.speak(text, *voice)) is not None:
            return text, spoken[1].astype(np.float32) / 32768
    raise SystemExit(f"flite's {voice[0]} says none of the sentences; check its installation.")


def _own_and_others(some: list[np.ndarray], references: list[np.ndarray]) -> tuple[float, float]:
    table = np.array(some) @ np.array(references).T
    others = (table.sum() - np.trace(table)) / (table.size - len(table))
    return float(np.diag(table).mean()), float(others)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("csm_tts_plugin/assets/tiny"))
    parser.add_argument("--whisper", type=Path, default=Path(".tools/models/whisper-base"))
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument(
        "--codec", type=int, default=0, help="held-out utterances of each kind for the codec gate"
    )
    parser.add_argument("--shard", type=int, default=0, help="of the corpus, held out (--codec)")
    parser.add_argument("--voices", type=int, default=0, help="voices for the similarity gate")
    parser.add_argument(
        "--reference", action="store_true", help="speak with the stock voice before"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--out", type=Path, help="folder for the sound and the transcripts")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    processor = AutoProcessor.from_pretrained(args.model)
    model = CsmForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    listener = Listener(args.whisper, args.threads)
    figures: dict[str, float] = {}
    if args.codec:
        rows = corpus.load(args.work, range(args.shard, args.shard + 1))
        for kind in ("sentences", "word lists"):
            part = main_voice(rows, kind != "sentences")[: args.codec]
            figures |= codec_gate(model, listener, part, kind)
    texts = held_out(args.sentences)
    before = []
    if args.reference:
        sound, _ = soundfile.read(args.model / "stock.wav", dtype="float32")
        record = json.loads((args.model / "stock.json").read_text())
        before = [turn(record["transcript"], audio=sound)]
    options = {"do_sample": False, "depth_decoder_do_sample": False} if args.greedy else {}
    if args.temperature:
        options = {"temperature": args.temperature, "depth_decoder_temperature": args.temperature}
    began = time.monotonic()
    sounds, figures["ended by itself"] = speak(
        model, processor, [[*before, turn(text)] for text in texts], **options
    )
    spent = time.monotonic() - began
    length = sum(map(len, sounds)) / SAMPLE_RATE
    figures["word error rate"], heard = listener.error_rate(texts, sounds)
    figures["seconds of speech"] = length
    figures["times real time, 20 at once"] = length / spent
    if args.voices:
        figures |= voice_gate(model, processor, args.voices, 5)
    for text, said in list(zip(texts, heard, strict=True))[:20]:
        print(f"{text}  ->  {said}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        for number, sound in enumerate(sounds):
            soundfile.write(args.out / f"{number:03d}.wav", sound, SAMPLE_RATE)
    print("| figure | value |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value:.3f} |")


if __name__ == "__main__":
    main()
