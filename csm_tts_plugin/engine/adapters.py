"""LoRA adapters, merged into the weights when the model is loaded.

An adapter is a folder as PEFT writes it, or such a repository on the hub: `adapter_config.json` and
`adapter_model.safetensors`. PEFT reads and merges it, so ranks, rslora, dora and `modules_to_save`
have PEFT's meaning; merged weights cost no time per frame. Needs the extra `adapters`.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import ConfigError, ModelLoadError, install

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_CHECKPOINT = "config.json"


def adapter_folder(name: str) -> Path:
    """The local folder of an adapter that is named by a folder or a
    hub id. Raises ModelLoadError.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ModelLoadError(
                f"There is no folder {name!r}: an adapter is a folder or a hub id such as"
                " owner/name."
            )
        return _from_hub(name)
    if not (path / CONFIG).is_file():
        if (path / _CHECKPOINT).is_file():
            raise ModelLoadError(
                f"{name} is a checkpoint of its own and no adapter: give it as CSM_MODEL."
            )
        raise ModelLoadError(f"The folder {name!r} holds no {CONFIG}: it is not an adapter.")
    if not (path / WEIGHTS).is_file():
        raise ModelLoadError(
            f"The adapter {name} has no {WEIGHTS}, and other formats are not read: save it again "
            "with safe_serialization=True."
        )
    return path


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not (folder / _CHECKPOINT).is_file()


def adapter_name(name: str) -> str:
    """The adapter's name in metrics and logs: a hub id unchanged, of a folder its last part."""
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() else name


def merge(model: Any, name: str) -> Any:
    """Returns `model` with the adapter `name` merged into its weights; the dtype is kept.

    Raises ModelLoadError for a folder that is no adapter, is made for another model or is damaged,
    ConfigError when PEFT is not installed.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError(
            f"An adapter needs PEFT: {install('adapters')}, or leave CSM_ADAPTER out."
        ) from None
    folder = adapter_folder(name)
    _check_kind(name, folder)
    try:
        weights = load_file(folder / WEIGHTS)
        with warnings.catch_warnings():
            # Missing weights are checked below; PEFT's other warnings concern training.
            warnings.simplefilter("ignore")
            config = peft.PeftConfig.from_pretrained(folder)
            config.inference_mode = True
            wrapped = peft.PeftModel(model, config)
            wanted = set(peft.get_peft_model_state_dict(wrapped))
            _check_names(name, set(weights), wanted)
            peft.set_peft_model_state_dict(wrapped, weights)
            return wrapped.merge_and_unload(safe_merge=False)
    except (SafetensorError, EOFError, OSError) as error:
        raise ModelLoadError(
            f"The adapter {name} is damaged ({_first_line(error)}): fetch it again."
        ) from None
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise _explained(name, error) from None


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, _CHECKPOINT])
    except LocalEntryNotFoundError:
        cure = "the hub cannot be reached: check the network, or name a local folder"
    except (HfHubHTTPError, OSError, ValueError) as error:
        gated = any(mark in str(error).lower() for mark in ("gated", "401", "403"))
        cure = (
            "the hub refuses it: accept its terms there and set HF_TOKEN, or check the spelling"
            if gated
            else "there is no such folder or hub id, or the hub cannot be reached: check both"
        )
    else:
        return adapter_folder(os.fspath(found))
    raise ModelLoadError(f"Cannot load the adapter {name}: {cure}.")


def _check_kind(name: str, folder: Path) -> None:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelLoadError(
            f"The adapter {name} is damaged ({CONFIG} cannot be read): fetch it again."
        ) from None
    if kind != "LORA":
        raise ModelLoadError(f"The adapter {name} is of type {kind}; LORA alone is merged.")


def _check_names(name: str, given: set[str], wanted: set[str]) -> None:
    """Raises ModelLoadError unless each adapter weight has a parameter in the model and each
    parameter a weight. PEFT ignores such mismatches.
    """
    if extra := given - wanted:
        raise ModelLoadError(
            f"The adapter {name} is for another model: {len(extra)} of its {len(given)} weights"
            f" have no place in this one, {min(extra)} for one. Give its base as CSM_MODEL."
        )
    if missing := wanted - given:
        raise ModelLoadError(
            f"The adapter {name} is damaged: {len(missing)} of its {len(wanted)} weights are"
            f" missing, {min(missing)} for one. Fetch it again."
        )


def _explained(name: str, error: Exception) -> ModelLoadError:
    text = str(error)
    if "size mismatch" in text:
        return ModelLoadError(
            f"The adapter {name} is for a model of another size: its shapes are not those of this"
            " one. Give its base as CSM_MODEL."
        )
    if "not found in the base model" in text or "target_modules" in text.lower():
        return ModelLoadError(
            f"The adapter {name} is for another model: it changes modules that this one has not."
            " Give its base as CSM_MODEL."
        )
    return ModelLoadError(f"Cannot merge the adapter {name}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
