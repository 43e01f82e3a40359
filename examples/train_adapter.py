"""Trains a LoRA adapter on recordings of one voice, and saves it as a PEFT folder.

python examples/train_adapter.py anna/ --model tiny --recordings recordings/
csm-tts say "Good morning." -o morning.wav --model tiny --adapter anna/

`recordings/` holds pairs of `name.wav` and `name.txt`, its words. Without `--recordings` the
training data is the model's own voice, raised in pitch. Needs the extra `adapters`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import peft
import torch
from torchaudio.functional import pitch_shift
from transformers import AutoProcessor, CsmForConditionalGeneration

from csm_tts_plugin import generate_streaming_audio, load_csm_1b
from csm_tts_plugin.audio.reference import load_reference
from csm_tts_plugin.engine.loading import TINY_FOLDER
from csm_tts_plugin.errors import ConfigError, CsmError

RATE = 24_000
SEMITONES = 4
LAYERS = r"(backbone_model|depth_decoder)\..*\.(q|k|v|o|gate|up|down)_proj"
SENTENCES = (
    "The boat came home before the rain began.",
    "Nobody had seen the old man for a week.",
    "She put the letter on the table and went out.",
    "There is a small house behind the church.",
    "We will talk about it in the morning.",
    "He asked for water, and they gave him some.",
)

Samples = npt.NDArray[np.float32]


def recordings(folder: Path) -> Iterator[tuple[str, Samples]]:
    """Words and sound of each pair of files. Raises AudioError."""
    for path in sorted(folder.glob("*.wav")):
        words = path.with_suffix(".txt")
        if words.is_file():
            yield " ".join(words.read_text(encoding="utf-8").split()), load_reference(path)


def made_up(model: str) -> Iterator[tuple[str, Samples]]:
    """The model's own voice, raised in pitch: a new voice that needs nobody's consent."""
    generator = load_csm_1b(model)
    for seed, text in enumerate(SENTENCES):
        spoken = generate_streaming_audio(
            generator, text, play_audio=False, progress=None, watermark=False, seed=seed
        )
        raised = pitch_shift(torch.from_numpy(spoken), RATE, SEMITONES)  # as long as before
        yield text, raised.numpy()


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    source = str(TINY_FOLDER) if args.model == "tiny" else args.model
    pairs = list(recordings(args.recordings) if args.recordings else made_up(args.model))
    if not pairs:
        raise ConfigError(f"{args.recordings} holds no pair of name.wav and name.txt.")
    processor = AutoProcessor.from_pretrained(source)
    examples = [labelled(processor, text, sound) for text, sound in pairs]
    model = CsmForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    settings = peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=LAYERS)
    model = peft.get_peft_model(model, settings)
    learn(model, examples, args.steps, args.rate)
    model.save_pretrained(args.adapter)
    print(f"{args.adapter}: an adapter of {args.model}", flush=True)


def labelled(processor: Any, text: str, sound: Samples) -> Any:
    """One utterance as the model is trained on it: words, sound, and the codes to be predicted."""
    content = [{"type": "text", "text": text}, {"type": "audio", "audio": sound}]
    return processor.apply_chat_template(
        [{"role": "0", "content": content}],
        tokenize=True,
        return_dict=True,
        processor_kwargs={"output_labels": True},
    )


def learn(model: Any, examples: list[Any], steps: int, rate: float) -> None:
    """Steps of one utterance each; prints the mean loss of each round over all of them."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate)
    losses: list[float] = []
    for step in range(steps):
        loss = model(**examples[step % len(examples)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % len(examples) == 0:
            mean = sum(losses[-len(examples) :]) / len(examples)
            print(f"step {step + 1}: loss {mean:.3f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a LoRA adapter on recordings of a voice.")
    parser.add_argument("adapter", type=Path, help="folder for the adapter")
    parser.add_argument("--model", default="tiny", help="hub id, folder, or tiny")
    parser.add_argument("--recordings", type=Path, help="pairs of name.wav and name.txt")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    try:
        train(parser.parse_args())
    except (CsmError, OSError) as error:
        print(f"train_adapter: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
