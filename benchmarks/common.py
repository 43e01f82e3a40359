"""Shared parts of the benchmarks: models with random weights, engines, tables, one line of JSON.

Needs torch and transformers only. Random weights take as much time as trained ones.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from csm_tts_plugin.config import EngineConfig
    from csm_tts_plugin.engine.api import Done, Event
    from csm_tts_plugin.engine.core import Engine
    from csm_tts_plugin.engine.loading import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "high_freq_factor": 0.5,
    "low_freq_factor": 0.125,
    "original_max_position_embeddings": 1024,
}

SIZES: dict[str, dict] = {
    "csm-1b": {},
    "137m": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "depth_decoder_config": {
            "backbone_hidden_size": 512,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    },
}


def random_model(size: str, device: str, dtype: torch.dtype, seed: int = 0):
    """A CsmForConditionalGeneration of `size` with random weights, which draws no end code."""
    from transformers import CsmConfig, CsmForConditionalGeneration

    depth = {"rope_parameters": LLAMA3_ROPE, **SIZES[size].get("depth_decoder_config", {})}
    sizes = {**SIZES[size], "rope_parameters": LLAMA3_ROPE, "depth_decoder_config": depth}
    config = CsmConfig(**sizes, codec_config={"model_type": "mimi", "num_quantizers": 32})
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            model = CsmForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(default)
    model.codec_model.float()
    with torch.no_grad():
        for codebook in _codebooks(model.codec_model.quantizer):
            codebook.embed_sum.normal_()
            codebook._embed = None
    return model


def _codebooks(quantizer) -> list:
    groups = (
        quantizer.semantic_residual_vector_quantizer,
        quantizer.acoustic_residual_vector_quantizer,
    )
    return [layer.codebook for group in groups for layer in group.layers]


def seconds(work: Callable[[], object], device: str, clock: str = "wall") -> float:
    """Seconds for `work`, including the device's queue. `clock` `cpu`: CPU time of this process,
    which with one thread is about the time on an idle core.
    """
    now = time.process_time if clock == "cpu" else time.perf_counter
    _wait(device)
    start = now()
    work()
    _wait(device)
    return now() - start


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def machine(device: str) -> dict:
    """Hardware, date and versions, for the results."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor()
    return {
        "device": name or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def ready_engine(config: EngineConfig, checkpoint: Checkpoint | None = None) -> Engine:
    """A started engine that is ready; the caller stops it."""
    from csm_tts_plugin.engine.core import Engine

    engine = Engine(config, checkpoint=checkpoint)
    engine.start()
    engine.wait_ready(600)
    return engine


def say(engine: Engine, conversation: str, text: str, **options: Any) -> SimpleQueue[Event]:
    """Let the engine say `text`; returns the queue of its events, for `heard`."""
    events: SimpleQueue[Event] = SimpleQueue()
    engine.say(conversation, text, events.put, live=False, **options)
    return events


def heard(events: SimpleQueue[Event]) -> tuple[np.ndarray, Done]:
    """Wait for an utterance: its samples [n] and its `Done`. Raises the CsmError it failed with."""
    from csm_tts_plugin.engine.api import Audio, Failed

    parts = [np.zeros(0, np.float32)]
    while isinstance(event := events.get(timeout=600), Audio):
        parts.append(event.samples)
    if isinstance(event, Failed):
        raise event.error
    return np.concatenate(parts), event


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
        if number == 0:
            print("  ".join("-" * width for width in widths))


def save(result: dict, out: str | None) -> None:
    """Write the results so far to the file `out`, so that an aborted run loses nothing."""
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        from csm_tts_plugin.audio.files import write_whole

        write_whole(out, json.dumps(result, indent=1) + "\n")


def finish(result: dict, out: str | None) -> None:
    """Print the results as the last line of a benchmark; also write them to the file `out`."""
    save(result, out)
    print(json.dumps(result), flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
