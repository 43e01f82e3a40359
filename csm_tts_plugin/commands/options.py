"""Options that several commands share. Defaults are the environment's, so that `.env` counts."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ..config import EngineConfig
from ..engine.api import SpeechEngine
from ..errors import ConfigError


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """What decides which engine runs; `engine_config` reads them back."""
    parser.add_argument("--model", help="hub id, folder, or tiny (default: CSM_MODEL)")
    parser.add_argument("--revision", help="of the model on the hub")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", help="auto, float32 or bfloat16")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads of torch")
    parser.add_argument("--max-context", type=positive, metavar="N", help="positions of one call")
    parser.add_argument("--no-cuda-graphs", action="store_true", help="run kernels one by one")
    parser.add_argument(
        "--eight-bit-depth",
        action="store_true",
        help="depth decoder in 8 bits: less to read for each frame, slightly other codes",
    )


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The environment's settings, and over them what the command line says."""
    names = ("model", "revision", "device", "dtype", "threads", "max_context")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.no_cuda_graphs:
        given["cuda_graphs"] = False
    if args.eight_bit_depth:
        given["eight_bit_depth"] = True
    return replace(EngineConfig.from_env(), **given)


def load_engine(config: EngineConfig) -> SpeechEngine:
    """The engine, not started. Raises ConfigError where torch or transformers are missing."""
    try:
        from ..engine.core import Engine
    except ImportError as error:
        raise ConfigError(
            f"The engine needs {error.name}, which is not installed here; "
            "`pip install -r requirements.txt` brings it."
        ) from None
    return Engine(config)


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def whole(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return value
