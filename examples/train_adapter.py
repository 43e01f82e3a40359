"""Trains a LoRA adapter on recordings of one voice, and saves it as a PEFT folder.

python examples/train_adapter.py anna/ --model tiny
csm-tts say "Good morning." -o morning.wav --model tiny --adapter anna/

`--recordings` takes a folder with pairs of `name.wav` and `name.txt`, its words. Without it the
training data is what the model says after a reference: its own voice, raised in pitch. The adapter
then speaks so without a reference. Needs the extra `adapters`.
"""

import argparse
import math
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

from csm_tts_plugin.audio.reference import load_reference
from csm_tts_plugin.engine.loading import TINY_FOLDER
from csm_tts_plugin.errors import ConfigError, CsmError

RATE = 24_000
FIFTH = 12 * math.log2(3 / 2) + 1e-9
"""Semitones; as a ratio of whole numbers. For most others torchaudio resamples with a filter of
hundreds of megabytes."""
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


def turn(text: str, sound: Samples | None = None) -> dict[str, Any]:
    """A turn of a conversation in the format of transformers."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if sound is not None:
        content.append({"type": "audio", "audio": sound})
    return {"role": "0", "content": content}


def prompt(processor: Any, *turns: dict[str, Any]) -> Any:
    """The inputs of the model for these turns."""
    return processor.apply_chat_template([list(turns)], tokenize=True, return_dict=True)


def recordings(model: Any, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Words and codes (frames, codebooks) of each pair of files. Raises AudioError."""
    for path in sorted(folder.glob("*.wav")):
        words = path.with_suffix(".txt")
        if words.is_file():
            sound = torch.from_numpy(load_reference(path))[None, None]
            with torch.inference_mode():
                codes = model.codec_model.encode(sound, num_quantizers=model.config.num_codebooks)
            yield " ".join(words.read_text(encoding="utf-8").split()), codes.audio_codes[0].T


def made_up(model: Any, processor: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Sentences and their codes after a reference, the model's own voice raised in pitch: a new
    voice that needs nobody's consent."""
    first, *others = SENTENCES
    with torch.no_grad():
        (spoken,) = model.generate(**prompt(processor, turn(first)), output_audio=True)
        raised = pitch_shift(spoken.float(), RATE, FIFTH)  # as long as before
        reference = turn(first, raised.numpy())
        for text in others:
            (codes,) = model.generate(**prompt(processor, reference, turn(text)))
            ends = (codes == model.config.codebook_eos_token_id).all(dim=-1).nonzero()
            yield text, codes[: int(ends[0])] if len(ends) else codes


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    source = str(TINY_FOLDER) if args.model == "tiny" else args.model
    processor = AutoProcessor.from_pretrained(source)
    model = CsmForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    folder = args.recordings
    pairs = list(recordings(model, folder) if folder else made_up(model, processor))
    if not pairs:
        raise ConfigError(f"{folder} holds no pair of name.wav and name.txt.")
    examples = [labelled(model, processor, text, codes) for text, codes in pairs]
    settings = peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=LAYERS)
    adapted = peft.get_peft_model(model, settings)
    learn(adapted, examples, args.steps, args.rate)
    adapted.save_pretrained(args.adapter)
    print(f"{args.adapter}: an adapter of {args.model}", flush=True)


@torch.no_grad()
def labelled(model: Any, processor: Any, text: str, codes: torch.Tensor) -> dict[str, torch.Tensor]:
    """One utterance as the model is trained on it: words and frames as embeddings, and the codes to
    be predicted, with the frame that ends them."""
    ids = prompt(processor, turn(text))["input_ids"]
    end = torch.full_like(codes[:1], model.config.codebook_eos_token_id)
    frames = torch.cat([codes, end])[None]
    words = model.embed_text_tokens(ids)
    embedded = torch.cat([words, model.backbone_model.embed_tokens(frames)], dim=1)
    silent = torch.full((1, ids.shape[1], frames.shape[2]), -100)
    return {"inputs_embeds": embedded, "labels": torch.cat([silent, frames], dim=1)}


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
