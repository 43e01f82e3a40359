"""What all benchmarks share: models of a given size with random weights, tables, one line of JSON.

Needs torch and transformers only. Random weights take exactly the time that trained ones take.
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

import torch

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
    """A CsmForConditionalGeneration of `size` with random weights that never say the end code."""
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


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of `work`, the device's queue included."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def machine(device: str) -> dict:
    """What the figures belong to."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor()
    return {
        "device": name or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
        if number == 0:
            print("  ".join("-" * width for width in widths))


def finish(result: dict, out: str | None) -> None:
    """The last line of every benchmark; also into the file `out`."""
    line = json.dumps(result)
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(result, indent=1) + "\n")
    print(line, flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
