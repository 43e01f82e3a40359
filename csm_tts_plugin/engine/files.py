"""Checks of a checkpoint's folder before anything of it is loaded. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_POINTER = b"version https://git-lfs"
_INDEX = "model.safetensors.index.json"
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "chat_templates")
_SETTINGS = ("tokenizer_config.json", "processor_config.json")
_WHOLE = "download the checkpoint again"


def fault_of(folder: Path) -> str | None:
    """The fault of `folder` and its remedy, in one line; None if it looks like a complete CSM
    checkpoint. `folder` may be a file or not exist.
    """
    if folder.is_file():
        return f"model {folder} is a file; name its folder"
    if not folder.is_dir():
        return f"model folder {folder} does not exist; correct CSM_MODEL"
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return f"{folder} is an adapter: give it as CSM_ADAPTER, and its base as CSM_MODEL"
    config = _read(folder / "config.json")
    if _is_first_layout(folder, config):
        return (
            f"model folder {folder} has Sesame's first layout, which transformers does not read;"
            " take eustlb/csm-1b, the same weights in its layout"
        )
    if config is None:
        if (folder / "config.json").is_file():
            return f"config.json in {folder} cannot be read; {_WHOLE}"
        return _lacks(folder, "config.json")
    if (kind := config.get("model_type")) != "csm":
        return f"model folder {folder} holds a model of type {kind}, not csm; correct CSM_MODEL"
    return _weights_fault(folder) or _processor_fault(folder)


def _weights_fault(folder: Path) -> str | None:
    files = sorted(folder.glob("*.safetensors"))
    index = folder / _INDEX
    if index.is_file():
        parts = (_read(index) or {}).get("weight_map")
        if not isinstance(parts, dict):
            return _lacks(folder, _INDEX)
        files = [folder / str(part) for part in sorted(set(map(str, parts.values())))]
        if missing := [file.name for file in files if not file.is_file()]:
            return _lacks(folder, ", ".join(missing[:4]))
    if not files:
        others = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        why = " (other formats of weights are not read)" if others else ""
        return _lacks(folder, f"model.safetensors{why}")
    for file in files:
        with file.open("rb") as opened:
            if opened.read(len(_POINTER)) == _POINTER:
                return f"{file} is Git LFS's pointer, not the weights; run `git lfs pull` there"
    return None


def _processor_fault(folder: Path) -> str | None:
    if not (folder / "tokenizer.json").is_file():
        return _lacks(folder, "tokenizer.json")
    settings = [_read(folder / name) for name in _SETTINGS]
    if not any(settings) or any("chat_template" in (found or {}) for found in settings):
        return None
    if any((folder / name).exists() for name in _TEMPLATES):
        return None
    return _lacks(folder, "its chat template, chat_template.jinja")


def _lacks(folder: Path, what: str) -> str:
    return f"model folder {folder} lacks {what}; {_WHOLE}"


def _is_first_layout(folder: Path, config: Mapping[str, Any] | None) -> bool:
    if config is not None:
        return "model_type" not in config and "backbone_flavor" in config
    return (folder / "ckpt.pt").is_file() and not (folder / "config.json").is_file()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
