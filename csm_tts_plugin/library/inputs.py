"""Converts a processor's output to positions in the same way as `CsmForConditionalGeneration`.

Audio is given as concatenated samples with cutoffs; each piece is encoded separately, and its
frames replace the audio tokens of the text in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..audio.arrays import scaled
from ..engine.api import Codes, Samples
from ..engine.context import Positions, text_positions
from ..engine.weights import PackedCsm
from ..errors import RequestError

_FULL_SCALE = 4.0
"""Floats may exceed 1.0 a little; above this they are not scaled to [-1, 1]."""

Encode = Callable[[Samples], Codes]
"""Samples [n] at 24 kHz -> codes [frames, K]"""


def read_ids(weights: PackedCsm, input_ids: Any, attention_mask: Any = None) -> Tensor:
    """The prompt's token ids [1, n] on the CPU, without left padding. Raises RequestError."""
    if input_ids is None:
        raise RequestError("input_ids are missing: pass what the processor returned.")
    ids = _row(input_ids, "input_ids").to(torch.int64)
    if attention_mask is not None:
        ids = _without_padding(ids, _row(attention_mask, "attention_mask").bool())
    if not ids.numel():
        raise RequestError("There is nothing to say: input_ids are empty.")
    if int(ids.min()) < 0 or int(ids.max()) >= weights.text_vocab:
        raise RequestError(
            f"input_ids must lie in 0 to {weights.text_vocab - 1}: "
            "use the processor that belongs to the model."
        )
    return ids[None]


def read_positions(
    weights: PackedCsm, encode: Encode, ids: Tensor, input_values: Any, cutoffs: Any
) -> Positions:
    """Ids [1, n] and their audio -> positions [n, K + 1]"""
    tokens = ids[0].numpy()
    positions = text_positions(tokens.tolist(), weights.codebooks)
    spoken = tokens == weights.audio_token
    if input_values is None:
        if spoken.any():
            raise RequestError("The prompt has audio tokens but no input_values: pass both.")
        return positions
    pieces = _pieces(_row(input_values, "input_values", trailing=True), cutoffs)
    codes = [encode(piece) for piece in pieces]
    frames = np.concatenate(codes) if codes else np.empty((0, weights.codebooks), np.int64)
    if len(frames) != spoken.sum():
        raise RequestError(
            f"The prompt has {spoken.sum()} audio tokens for {len(frames)} frames of audio: "
            "pass input_ids, input_values and input_values_cutoffs of one processor call."
        )
    positions[spoken, :-1], positions[spoken, -1] = frames, -1
    ends = tokens == weights.audio_eos_token
    positions[ends, :-1], positions[ends, -1] = weights.eos_code, -1
    return positions


def _row(value: Any, name: str, *, trailing: bool = False) -> Tensor:
    """The only row of [1, n] or [n] as [n]; `trailing`: [1, 1, n] is accepted too."""
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise RequestError(f"{name} must be a tensor: pass what the processor returned.") from None
    if trailing and tensor.ndim == 3 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim == 2 and tensor.shape[0] > 1:
        raise RequestError(
            f"{name} holds {tensor.shape[0]} prompts: a stream speaks one, start one for each."
        )
    if tensor.ndim not in (1, 2) or (tensor.ndim == 2 and not tensor.shape[0]):
        raise RequestError(f"{name} has shape {tuple(tensor.shape)}: [1, length] is needed.")
    return tensor if tensor.ndim == 1 else tensor[0]


def _without_padding(ids: Tensor, kept: Tensor) -> Tensor:
    if kept.shape != ids.shape:
        raise RequestError("attention_mask and input_ids differ in length.")
    padding = int((~kept).sum())
    if not kept[padding:].all():
        raise RequestError("attention_mask may only hide padding on the left of the prompt.")
    return ids[padding:]


def _pieces(samples: Tensor, cutoffs: Any) -> list[Samples]:
    """Samples [n], split at the cutoffs; -1 in these is padding."""
    floating = samples.float() if samples.is_floating_point() else samples
    sound: npt.NDArray[np.float32] = scaled(floating.numpy())
    if not np.isfinite(sound).all():
        raise RequestError("input_values hold NaN or Inf: record or decode the audio again.")
    if float(np.max(np.abs(sound), initial=0.0)) > _FULL_SCALE:
        raise RequestError("input_values are not scaled to [-1, 1]: divide them by their range.")
    if cutoffs is None:
        return [sound] if len(sound) else []
    ends = [int(end) for end in _row(cutoffs, "input_values_cutoffs") if end >= 0]
    starts = [0, *ends[:-1]] if ends else []
    if any(end <= start for start, end in zip(starts, ends, strict=True)) or (
        ends and ends[-1] > len(sound)
    ):
        raise RequestError(
            f"input_values_cutoffs must rise and end within the {len(sound)} input_values."
        )
    return [sound[start:end] for start, end in zip(starts, ends, strict=True)]
