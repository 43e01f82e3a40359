"""Write csm-tiny's folder: weights in half precision, configuration, tokenizer, template, voice.

Loads with `CsmForConditionalGeneration.from_pretrained` and `AutoProcessor.from_pretrained`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
from transformers import (
    CsmForConditionalGeneration,
    CsmProcessor,
    GenerationConfig,
)

from . import frontend, lm
from .common import codec_of, weights
from .corpus import STOCK_SPEAKER, speak
from .spec import (
    GENERATION,
    SAMPLE_RATE,
    csm_config,
    feature_extractor,
    processor_settings,
    tokenizer,
)
from .teacher import Teacher

STOCK = "The morning was bright and clear, and we walked along the river to the old market."
LARGEST = 40_000_000


def assemble(language: Path, codec: Path) -> CsmForConditionalGeneration:
    """The whole model in float32: language model and codec.

    language: a checkpoint of `lm.py`, or the folder of an exported model.
    """
    mimi = codec_of(codec)
    mimi.config._name_or_path = ""  # otherwise the trainer's local path
    model = CsmForConditionalGeneration(csm_config(mimi.config))
    if language.is_dir():
        model.load_state_dict(lm.started(language).state_dict())
    else:
        lm.Trainee(model).load_state_dict(weights(language))
    model.codec_model.load_state_dict(mimi.state_dict())
    prefix = "depth_decoder_"
    own = {k: v for k, v in GENERATION.items() if not k.startswith(prefix)}
    depth = {k.removeprefix(prefix): v for k, v in GENERATION.items() if k.startswith(prefix)}
    model.generation_config = GenerationConfig(**own)
    model.depth_decoder.generation_config = GenerationConfig(**depth)
    return model.eval()


def write_model(model: CsmForConditionalGeneration, folder: Path) -> None:
    """Writes weights as float16, which makes no audible difference; they load as float32."""
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    # Both follow from `tie_codebooks_embeddings`; transformers 5.17 refuses the value true here.
    config["tie_word_embeddings"] = config["codec_config"]["tie_word_embeddings"] = False
    for part in (config["codec_config"], config["depth_decoder_config"]):
        part.pop("dtype", None)
        part.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_processor(folder: Path) -> None:
    """Tokenizer, chat template and feature extractor."""
    processor = CsmProcessor(feature_extractor(), tokenizer(), chat_template=frontend.template())
    processor.save_pretrained(folder)
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **processor_settings()}, indent=2, sort_keys=True) + "\n")


def write_voice(folder: Path, work: Path) -> None:
    """The stock reference: the teacher's synthetic voice, lowered to a male one, on the grid."""
    spoken = speak(Teacher(work), STOCK, STOCK_SPEAKER, np.random.default_rng(0))
    if spoken is None:
        raise SystemExit("the teacher could not speak the stock sentence")
    soundfile.write(folder / "stock.wav", spoken.sound, SAMPLE_RATE, subtype="PCM_16")
    record = {"speaker": "agent", "transcript": STOCK}
    (folder / "stock.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--codec", type=Path, help="codec folder; default: WORK/codec")
    parser.add_argument(
        "--lm",
        type=Path,
        help="checkpoint of lm.py, or an exported folder; default: WORK/lm.safetensors",
    )
    parser.add_argument("--out", type=Path, default=Path("csm_tts_plugin/assets/tiny"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    language = args.lm or args.work / "lm.safetensors"
    model = assemble(language, args.codec or args.work / "codec")
    write_model(model, args.out)
    write_processor(args.out)
    write_voice(args.out, args.work)
    total = 0
    for path in sorted(args.out.iterdir()):
        path.chmod(0o644)
        total += path.stat().st_size
        print(f"| {path.name} | {path.stat().st_size:,} |")
    if (args.out / "model.safetensors").stat().st_size > LARGEST:
        raise SystemExit("the weights are larger than 40 MB")
    print(f"| all | {total:,} |")


if __name__ == "__main__":
    main()
