"""Options that several commands share. Defaults come from the environment, including `.env`."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ..config import WATERMARKS, EngineConfig
from ..engine.api import SpeechEngine, require_packages


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Adds the engine's options; `engine_config` reads them."""
    parser.add_argument("--model", help="hub id, folder, or tiny (default: CSM_MODEL)")
    parser.add_argument("--revision", help="revision of the model on the hub")
    parser.add_argument("--adapter", help="LoRA adapter of the model: folder or hub id")
    parser.add_argument("--watermark", choices=WATERMARKS, help="watermark the speech, or not")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", help="auto, float32 or bfloat16")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads of torch")
    parser.add_argument(
        "--max-context", type=positive, metavar="N", help="positions of the KV cache for one call"
    )
    parser.add_argument("--no-cuda-graphs", action="store_true", help="do not capture CUDA graphs")
    parser.add_argument("--no-kernels", action="store_true", help="use PyTorch's kernels only")
    parser.add_argument(
        "--eight-bit-depth",
        action="store_true",
        help="depth decoder in 8 bits: fewer bytes a frame, slightly different codes",
    )
    parser.add_argument(
        "--whole-context",
        action="store_true",
        help="use reference audio and turns even if the model's folder excludes them",
    )


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The settings of the environment; options of the command line have precedence."""
    names = (
        "model",
        "revision",
        "adapter",
        "watermark",
        "device",
        "dtype",
        "threads",
        "max_context",
    )
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.no_cuda_graphs:
        given["cuda_graphs"] = False
    if args.no_kernels:
        given["kernels"] = False
    if args.eight_bit_depth:
        given["eight_bit_depth"] = True
    if args.whole_context:
        given["whole_context"] = True
    return replace(EngineConfig.from_env(), **given)


def load_engine(config: EngineConfig) -> SpeechEngine:
    """An engine that is not started. Raises ConfigError if torch or transformers are missing."""
    require_packages()
    from ..engine.core import Engine

    return Engine(config)


def positive(text: str) -> int:
    """Type for argparse: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def whole(text: str) -> int:
    """Type for argparse: an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return value
