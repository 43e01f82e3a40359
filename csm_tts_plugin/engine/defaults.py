"""How a checkpoint wants its codes drawn, and what it is."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from .api import EngineInfo
from .loading import Checkpoint
from .runner import Draw


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """From the generation configs of the backbone and of the depth decoder."""

    temperature: tuple[float, float] = (0.9, 0.9)
    top_k: tuple[int, int] = (50, 50)

    @classmethod
    def of(cls, model: Any) -> SamplingDefaults:
        configs = (model.generation_config, model.depth_decoder.generation_config)
        temperature, top_k = zip(*(_drawing(config) for config in configs), strict=True)
        return cls(temperature, top_k)

    def draw(self, temperature: float | None, top_k: int | None, seed: int) -> Draw:
        """`temperature` and `top_k` hold for all codebooks where they are given."""
        return Draw(
            self.temperature if temperature is None else (temperature, temperature),
            self.top_k if top_k is None else (top_k, top_k),
            seed,
        )


def _drawing(config: Any) -> tuple[float, int]:
    """(temperature, top_k); transformers leaves what is at its own default out."""
    top_k = 50 if config.top_k is None else int(config.top_k)
    if not config.do_sample:
        return 0.0, top_k
    return 1.0 if config.temperature is None else float(config.temperature), top_k


def engine_info(checkpoint: Checkpoint, context: int) -> EngineInfo:
    model = checkpoint.model
    return EngineInfo(
        model=checkpoint.name,
        device=_device_name(checkpoint),
        dtype=str(model.lm_head.weight.dtype).removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        codebooks=model.config.num_codebooks,
        max_context=context,
        versions={name: version(name) for name in ("torch", "transformers")},
    )


def _device_name(checkpoint: Checkpoint) -> str:
    if checkpoint.device.type != "cuda":
        return "cpu"
    import torch

    return f"cuda ({torch.cuda.get_device_name(checkpoint.device)})"
