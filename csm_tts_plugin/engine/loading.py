"""Loads a checkpoint from a hub id, a folder or the name `tiny`, with errors that say what to do.

Weights are read from safetensors only; nothing is unpickled.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..config import SAMPLE_RATE, EngineConfig
from ..errors import ConfigError, ModelLoadError
from .adapters import adapter_name, merge
from .files import fault_of

TINY = "tiny"
TINY_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "tiny"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model: `model` is a CsmForConditionalGeneration in eval mode, `processor` its
    CsmProcessor.
    """

    name: str
    model: Any
    processor: Any
    device: torch.device
    adapter: str | None = None
    """The name of the LoRA adapter merged into it."""


def pick_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises ConfigError if it does not exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"There is no device {name!r}: use auto, cpu, cuda or cuda:N.") from None
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"The device {name!r} is not supported: use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(
                f"{name} was asked for, but torch sees {count} CUDA devices here: name another."
            )
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"The dtype {name!r} is not supported: use auto, float32 or bfloat16.")
    return _DTYPES[name]


def load_checkpoint(config: EngineConfig) -> Checkpoint:
    """Load the model of `config` to its device. Raises ModelLoadError or ConfigError, each with one
    sentence that says what to do.
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    source = _source(config.model)
    try:
        model = _load_model(source, config, dtype)
        processor = _load_processor(source, config.revision)
        model = model.to(device)
    except torch.OutOfMemoryError:
        raise ModelLoadError(
            f"{config.model} does not fit into the memory of {device}: free some or use another."
        ) from None
    except MemoryError:
        raise ModelLoadError(f"{config.model} does not fit into this machine's memory.") from None
    except (*_LOAD_FAILURES, SafetensorError) as error:
        raise _explained(config, error) from None
    _check_sound(config, model)
    adapter = adapter_name(config.adapter) if config.adapter else None
    return Checkpoint(config.model, model.eval(), processor, device, adapter)


def _source(model: str) -> str:
    """The folder or hub id of a model's name; `tiny` is the packaged one."""
    if model == TINY:
        if not (TINY_FOLDER / "config.json").is_file():
            raise ModelLoadError(
                f"The model tiny is missing from the installation ({TINY_FOLDER.name})."
            )
        return str(TINY_FOLDER)
    path = Path(model).expanduser()
    if not (model.startswith((".", "/", "~")) or os.sep * 2 in model or path.exists()):
        return model
    if not path.exists():
        raise ModelLoadError(f"There is no folder {model!r}: name a folder, a hub id or tiny.")
    if fault := fault_of(path):
        raise ModelLoadError(f"{fault[0].upper()}{fault[1:]}.")
    return str(path)


def _load_model(source: str, config: EngineConfig, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, CsmForConditionalGeneration

    kind = AutoConfig.from_pretrained(source, revision=config.revision).model_type
    if kind != "csm":
        raise ModelLoadError(
            f"The checkpoint is of type {kind!r}; this engine speaks with csm only."
        )
    model, report = CsmForConditionalGeneration.from_pretrained(
        source,
        revision=config.revision,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
    )
    # transformers fills missing weights with random numbers and only warns.
    if missing := set(report["missing_keys"]) & {name for name, _ in model.named_parameters()}:
        raise ModelLoadError(
            f"{len(missing)} weights are missing from the checkpoint, {min(missing)} for one: "
            "fetch it again."
        )
    if config.adapter:
        model = merge(model, config.adapter)
    _cast(model, dtype)
    return model


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Convert all parameters but the codec's to `dtype`: rounding those would change the codes of
    reference audio. Buffers stay float32: rotary frequencies in bfloat16 would be wrong by whole
    radians at far positions.
    """
    for name, parameter in model.named_parameters():
        if not name.startswith("codec_model."):
            parameter.data = parameter.data.to(dtype)


def _load_processor(source: str, revision: str | None) -> Any:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(source, revision=revision)
    if not getattr(processor, "chat_template", None):
        raise ModelLoadError(
            "The checkpoint has no chat template: fetch its chat_template.jinja too."
        )
    return processor


def _check_sound(config: EngineConfig, model: Any) -> None:
    name = config.model
    rate = model.config.codec_config.sampling_rate
    if rate != SAMPLE_RATE:
        raise ModelLoadError(f"The codec of {name} works at {rate} Hz; CSM's is {SAMPLE_RATE} Hz.")
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        whose = f"{name} with the adapter {config.adapter}" if config.adapter else name
        raise ModelLoadError(f"The weights of {whose} hold NaN or Inf: fetch them again.")


_LOAD_FAILURES = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError)
"""What transformers raises for files, configs and installations that it cannot work with."""

_CAUSES = (
    (
        ("does not appear to have a file named config.json",),
        "it has no config.json, so it is no checkpoint; an adapter is given as CSM_ADAPTER",
    ),
    (
        ("gated repo", "401", "403", "awaiting a review"),
        "the repository is gated: accept its terms on the hub and set HF_TOKEN",
    ),
    (
        ("not a valid model identifier", "404", "repository not found", "repo id must"),
        "there is no such folder or hub id: check the spelling",
    ),
    (
        ("revision", "is not a valid git identifier"),
        "there is no such revision: check CSM_REVISION",
    ),
    (
        (
            "couldn't connect",
            "offline",
            "connection",
            "timed out",
            "resolve",
            "cannot find the requested",
        ),
        "the hub cannot be reached: check the network, or name a local folder",
    ),
    (("safetensor", "header"), "a weight file is damaged or of another format: fetch it again"),
    (
        ("size mismatch", "mismatched_sizes", "shape"),
        "the weights do not fit config.json: fetch the checkpoint again",
    ),
)


def _explained(config: EngineConfig, error: Exception) -> ModelLoadError:
    text = str(error).lower()
    for marks, cure in _CAUSES:
        if any(mark in text for mark in marks):
            return ModelLoadError(f"Cannot load {config.model}: {cure}.")
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return ModelLoadError(f"Cannot load {config.model}: {first}")
