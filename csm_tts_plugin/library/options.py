"""Translates options of transformers' `generate` to the engine's.

Names, defaults and precedence are those of transformers: the checkpoint's generation config, then
a `generation_config`, then single options; `depth_decoder_*` goes to the depth decoder. Options
that this engine does not support are refused, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.runner import Draw
from ..errors import RequestError

Criterion = Callable[[Tensor, None], Any]
"""Codes so far [1, frames, K] -> whether to stop, as a bool or a tensor of them."""

_DEPTH = "depth_decoder_"
_DRAWING = frozenset({"do_sample", "temperature", "top_k"})
_SHARES = frozenset({"top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"})
_WARPERS = _SHARES | {"suppress_tokens", "renormalize_logits"}
_LENGTHS = frozenset({"max_new_tokens", "max_length", "max_time"})
_MOOT = frozenset(
    {"use_cache", "cache_implementation", "cache_config", "max_cache_len", "disable_compile"}
    | {"compile_config", "pad_token_id", "bos_token_id", "eos_token_id", "transformers_version"}
    | {"output_attentions", "output_hidden_states", "return_dict_in_generate", "output_audio"}
    | {"prefill_chunk_size", "_from_model_config"}
)
"""Options that affect how transformers works or answers, but not the speech."""

_NEUTRAL: tuple[Any, ...] = (None, False, 0, 1, (), [])
"""Values to which an unsupported option may be set, because it then has no effect."""

_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class Options:
    """How one stream is sampled and when it stops."""

    draw: Draw
    max_frames: int | None
    """The most frames; None: as many as fit into the context."""
    processors: Callable[[Tensor, Tensor], Tensor] | None
    """For codebook 0: (ids so far, scores [1, vocab]) -> scores; None: `draw` is sufficient."""
    criteria: tuple[Criterion, ...]


class LogitsShaper:
    """Applies transformers' logits processors to the engine's logits of codebook 0.

    They get the same arguments as in transformers: scores over the whole vocabulary, and as
    `history` the prompt's ids [1, n] before the first frame, then the codes [1, frames, K].
    """

    def __init__(
        self, processors: Callable[[Tensor, Tensor], Tensor], vocab: int, prompt: Tensor
    ) -> None:
        self.history = prompt
        self._processors, self._vocab = processors, vocab

    def __call__(self, logits: Tensor) -> Tensor:
        """[1, codes] -> [1, codes], float32"""
        codes = logits.shape[-1]
        # Ids that are no codes have no logits here and must not be chosen.
        scores = F.pad(logits.float(), (0, self._vocab - codes), value=-math.inf)
        return self._processors(self.history, scores)[:, :codes]


def read_options(
    model: Any,
    prompt_length: int,
    generation_config: Any = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    options: Mapping[str, Any] | None = None,
) -> Options:
    """`options`: generation options by name, and `seed`. Raises RequestError for options that are
    unknown, out of range or not supported.
    """
    given = {**_set_in(generation_config, model.generation_config), **(options or {})}
    seed = _seed(given.pop("seed", None))
    depth_given = {
        name.removeprefix(_DEPTH): given.pop(name)
        for name in list(given)
        if name.startswith(_DEPTH)
    }
    own, depth_own = (_all_of(one.generation_config) for one in (model, model.depth_decoder))
    steps = model.config.num_codebooks - 1
    fixed = {**depth_own, "min_new_tokens": steps, "max_new_tokens": steps}
    _check_names(given, _DRAWING | _WARPERS | _LENGTHS | _MOOT, "", own)
    _check_names(depth_given, _DRAWING | _MOOT, _DEPTH, fixed)
    if "do_sample" in given and not given["do_sample"]:
        # In transformers 31 of 32 codebooks would still be sampled, which callers do not expect.
        depth_given.setdefault("do_sample", False)
    first, rest = {**own, **given}, {**depth_own, **depth_given}
    parts = (_drawing(first, given, ""), _drawing(rest, depth_given, _DEPTH))
    processors = _processors(model, prompt_length, first, parts[0], logits_processor)
    if processors is not None:
        # The list contains temperature and top-k too, in transformers' order.
        parts = ((float(parts[0][0] > 0), 0), parts[1])
    criteria, custom = _criteria(stopping_criteria, first)
    return Options(
        draw=Draw((parts[0][0], parts[1][0]), (parts[0][1], parts[1][1]), seed),
        max_frames=_max_frames(first, given, prompt_length, custom),
        processors=processors,
        criteria=criteria,
    )


def _all_of(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if value is not None}


def _set_in(config: Any, own: Any) -> dict[str, Any]:
    """The values of a caller's generation config that differ from the checkpoint's `own`."""
    if config is None:
        return {}
    if not hasattr(config, "to_dict"):
        raise RequestError("generation_config must be a transformers GenerationConfig.")
    ours = own.to_dict()
    return {name: value for name, value in _all_of(config).items() if ours.get(name) != value}


def _check_names(
    given: Mapping[str, Any],
    known: frozenset[str],
    prefix: str,
    fixed: Mapping[str, Any],
) -> None:
    """Raises RequestError for unsupported options. `fixed`: options that must have this value."""
    from transformers import GenerationConfig

    plain = GenerationConfig()
    for name, value in given.items():
        if name in known or (name in fixed and fixed[name] == value):
            continue
        if not hasattr(plain, name):
            raise RequestError(f"There is no option {prefix}{name}: check its spelling.")
        if not any(value is neutral or value == neutral for neutral in _NEUTRAL):
            usable = ", ".join(sorted(prefix + one for one in known - _MOOT))
            raise RequestError(
                f"The option {prefix}{name} is not supported when streaming; usable are {usable}."
            )


def _drawing(values: Mapping[str, Any], given: Mapping[str, Any], prefix: str) -> tuple[float, int]:
    """(temperature, top_k) of one part; temperature 0 is greedy, top-k 0 the whole vocabulary."""
    if not values.get("do_sample"):
        return 0.0, 1
    # None given by a caller turns an option off; without it transformers' default holds.
    temperature = values.get("temperature", 1.0)
    top_k = values.get("top_k", 50)
    temperature = 1.0 if temperature is None else temperature
    top_k = (0 if "top_k" in given else 50) if top_k is None else top_k
    if not _is_number(temperature) or not 0 <= temperature < math.inf:
        raise RequestError(f"{prefix}temperature must be a number of at least 0.")
    if not is_whole(top_k, 0):
        raise RequestError(f"{prefix}top_k must be a whole number of at least 0.")
    return float(temperature), int(top_k)


def _processors(
    model: Any,
    prompt_length: int,
    values: Mapping[str, Any],
    drawing: tuple[float, int],
    custom: Any,
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """transformers' list of logits processors for codebook 0, None if it is temperature and top-k
    only.
    """
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
    )

    temperature, top_k = drawing
    chosen = {name: values[name] for name in _WARPERS if values.get(name) is not None}
    for name in _SHARES & chosen.keys():
        if not _is_number(chosen[name]) or not 0 <= chosen[name] <= 1:
            raise RequestError(f"{name} must be a number between 0 and 1.")
    codes = min(model.config.codec_config.codebook_size, model.config.vocab_size)
    if all(token >= codes for token in chosen.get("suppress_tokens", ())):
        chosen.pop("suppress_tokens", None)
    extra = _as_list(custom, "logits_processor")
    if not chosen and not extra:
        return None
    sampled = {"do_sample": True, "temperature": temperature, "top_k": top_k}
    try:
        config = GenerationConfig(**chosen, **(sampled if temperature > 0 else {}))
        config._eos_token_tensor = None
        made = model._get_logits_processor(
            config,
            input_ids_seq_length=prompt_length,
            logits_processor=LogitsProcessorList(extra),
            device=model.device,
        )
    except (TypeError, ValueError) as error:
        raise RequestError(_one_line(error)) from None
    plain = (TemperatureLogitsWarper, TopKLogitsWarper)
    if not extra and all(isinstance(one, plain) for one in made):
        return None
    processors: Callable[[Tensor, Tensor], Tensor] = made
    return processors


def _criteria(custom: Any, values: Mapping[str, Any]) -> tuple[tuple[Criterion, ...], Any]:
    """The stopping criteria, and the caller's MaxLengthCriteria if there is one."""
    from transformers import MaxLengthCriteria, MaxTimeCriteria

    asked = _as_list(custom, "stopping_criteria")
    longest = next((one for one in asked if isinstance(one, MaxLengthCriteria)), None)
    criteria = [one for one in asked if not isinstance(one, MaxLengthCriteria)]
    if (seconds := values.get("max_time")) is not None:
        if not _is_number(seconds) or not seconds > 0:
            raise RequestError("max_time must be a number of seconds above 0.")
        criteria.append(MaxTimeCriteria(float(seconds)))
    return tuple(criteria), longest


def stops(criterion: Criterion, history: Tensor) -> bool:
    return bool(torch.as_tensor(criterion(history, None)).all())


def _max_frames(
    values: Mapping[str, Any], given: Mapping[str, Any], prompt_length: int, custom: Any
) -> int | None:
    """The most frames. As in transformers, max_length includes the prompt and max_new_tokens has
    precedence; but a caller's max_length has precedence over the checkpoint's max_new_tokens.
    """
    frames, length = values.get("max_new_tokens"), values.get("max_length")
    if given.get("max_length") is not None and "max_new_tokens" not in given:
        frames = None
    if frames is not None and not is_whole(frames, 1):
        raise RequestError("max_new_tokens must be a whole number of at least 1.")
    if custom is not None:
        length, frames = custom.max_length, None
    if frames is not None:
        return int(frames)
    if length is None:
        return None
    if not is_whole(length, prompt_length + 1):
        raise RequestError(
            f"max_length counts the prompt, which has {prompt_length} positions: "
            "raise it, or use max_new_tokens."
        )
    return int(length) - prompt_length


def _seed(seed: Any) -> int:
    """The seed, by default a number from torch's generator, so that `torch.manual_seed` decides."""
    if seed is None:
        return int(torch.randint(_SEEDS - 1, ()))
    if not is_whole(seed, -_SEEDS) or seed >= _SEEDS:
        raise RequestError("seed must be a whole number of 64 bits.")
    return int(seed)


def _as_list(custom: Any, name: str) -> list[Any]:
    if custom is None:
        return []
    many = list(custom) if isinstance(custom, (list, tuple)) else [custom]
    if not all(callable(one) for one in many):
        raise RequestError(f"{name} must be a list of things to call, as in transformers.")
    return many


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any, low: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= low


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
