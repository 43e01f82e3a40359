"""A checkpoint's sampling defaults, its limits of context, and its description."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ..errors import ModelLoadError
from .api import EngineInfo
from .loading import Checkpoint
from .runner import Draw


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """Defaults from the generation configs of the backbone and of the depth decoder."""

    temperature: tuple[float, float] = (0.9, 0.9)
    top_k: tuple[int, int] = (50, 50)

    @classmethod
    def of(cls, model: Any) -> SamplingDefaults:
        configs = (model.generation_config, model.depth_decoder.generation_config)
        temperature, top_k = zip(*(_drawing(config) for config in configs), strict=True)
        return cls(temperature, top_k)

    def draw(self, temperature: float | None, top_k: int | None, seed: int) -> Draw:
        """The sampling of one utterance; `temperature` and `top_k`, if given, hold for all
        codebooks.
        """
        return Draw(
            self.temperature if temperature is None else (temperature, temperature),
            self.top_k if top_k is None else (top_k, top_k),
            seed,
        )


def _drawing(config: Any) -> tuple[float, int]:
    """(temperature, top_k) of a generation config, in which transformers omits its own defaults."""
    top_k = 50 if config.top_k is None else int(config.top_k)
    if not config.do_sample:
        return 0.0, top_k
    return 1.0 if config.temperature is None else float(config.temperature), top_k


_FOLLOWS_MOST = 40
"""The most characters of `follows`: it stands in lines of reports and in the page."""


@dataclass(frozen=True, slots=True)
class ContextBounds:
    """How much context a checkpoint should get before a reply; None: as much as fits.

    From `csm_context` in its generation_config.json, which CSM-1B does not have: a small model may
    be less intelligible after a long reference or after turns of a call than without them.
    """

    turns: int | None = None
    """The most turns of a call, the last ones."""
    reference_seconds: float | None = None
    """The longest reference audio in seconds; 0: only the stock voice."""
    follows: str | None = None
    """What the model takes from a reference, in words; None: it clones the whole voice. This is no
    limit, but a fact about the model.
    """

    @classmethod
    def of(cls, model: Any, *, whole: bool = False) -> ContextBounds:
        """The limits of a loaded model; `whole`: no limits, only the fact what it follows.

        Raises ModelLoadError where `csm_context` is malformed.
        """
        told: Any = getattr(model.generation_config, "csm_context", None) or {}
        known = isinstance(told, dict)
        if whole:
            told, known = {"follows": told.get("follows")} if known else {}, True
        follows = told.get("follows") if known else None
        turns, seconds = (told.get("turns"), told.get("reference_seconds")) if known else (-1, -1)
        any_turns = turns is None or (type(turns) is int and turns >= 0)
        any_seconds = seconds is None or (type(seconds) in (int, float) and seconds >= 0)
        if not (any_turns and any_seconds and (follows is None or _is_short_text(follows))):
            raise ModelLoadError(
                f"csm_context in the model's generation_config.json is {told!r}; it takes `turns` "
                "(a whole number) and `reference_seconds` (a number), both 0 or more. `follows`, "
                f"if given, is a text of 1 to {_FOLLOWS_MOST} printable characters."
            )
        return cls(turns, None if seconds is None else float(seconds), follows)


def _is_short_text(told: object) -> bool:
    if not isinstance(told, str):
        return False
    return len(told) <= _FOLLOWS_MOST and told.isprintable() and bool(told.strip())


def engine_info(
    checkpoint: Checkpoint, context: int, watermark: str, bounds: ContextBounds
) -> EngineInfo:
    model = checkpoint.model
    return EngineInfo(
        model=checkpoint.name,
        device=_device_name(checkpoint),
        dtype=str(model.lm_head.weight.dtype).removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        codebooks=model.config.num_codebooks,
        max_context=context,
        context_turns=bounds.turns,
        reference_seconds=bounds.reference_seconds,
        follows=None if bounds.reference_seconds == 0 else bounds.follows,
        versions={name: version(name) for name in ("torch", "transformers")},
        adapter=checkpoint.adapter,
        watermark=watermark,
    )


def _device_name(checkpoint: Checkpoint) -> str:
    if checkpoint.device.type != "cuda":
        return "cpu"
    import torch

    return f"cuda ({torch.cuda.get_device_name(checkpoint.device)})"
