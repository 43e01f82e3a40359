"""Converts the audio types of other libraries to samples: NumPy, torch, torchaudio, datasets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import SAMPLE_RATE
from ..errors import AudioError
from .bounds import MAX_CHANNELS

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

_WHAT = (
    "float32 in [-1, 1] or 16-bit whole numbers, [samples], [samples, channels] or [channels, n]"
)


def read_array(sound: Any) -> tuple[Samples, int | None]:
    """Samples as float32 [n, channels], and the rate in Hz if `sound` contains one.

    `sound`: an array, a tensor (on any device, of any float type, with a gradient or not), a list;
    [n], [1, n], [1, 1, n], [n, channels] or [channels, n]; a dictionary of `array` and
    `sampling_rate`, or a decoder with `get_all_samples`, as the package datasets gives them.
    Whole numbers are scaled by their type. Raises AudioError.
    """
    rate: Any = None
    if isinstance(sound, Mapping):
        if sound.get("array") is None:
            raise AudioError("A dictionary of audio needs `array` and `sampling_rate`.")
        sound, rate = sound["array"], sound.get("sampling_rate")
    elif hasattr(sound, "get_all_samples"):
        decoded = sound.get_all_samples()
        sound, rate = decoded.data, decoded.sample_rate
    if rate is not None and (isinstance(rate, bool) or int(rate) != rate or rate < 1):
        raise AudioError("The sampling_rate of audio must be a whole number of Hz.")
    return _columns(scaled(_as_numpy(sound))), None if rate is None else int(rate)


def samples_of(sound: Any) -> Samples:
    """Mono float32 [n] at 24 kHz; if `sound` contains another rate it is resampled, channels are
    mixed. Raises AudioError, also for samples out of [-1, 1].
    """
    from .reference import to_mono  # which reads arrays itself

    columns, rate = read_array(sound)
    return to_mono(columns, SAMPLE_RATE if rate is None else rate)


def scaled(array: npt.NDArray[Any]) -> Samples:
    """As float32: integers are scaled by the range of their type, floats are not scaled.

    Raises AudioError for types that cannot be samples.
    """
    if array.dtype == np.uint8:  # silence is 128, as in WAV files of 8 bits
        return (array.astype(np.float32) - 128.0) / 128.0
    if np.issubdtype(array.dtype, np.signedinteger) and array.dtype.itemsize <= 4:
        return array.astype(np.float32) / np.float32(-float(np.iinfo(array.dtype).min))
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"Audio of the type {array.dtype} cannot be scaled: give {_WHAT}.")
    return array.astype(np.float32)


def _as_numpy(sound: Any) -> npt.NDArray[Any]:
    if hasattr(sound, "detach"):  # a tensor of torch
        sound = sound.detach().cpu()
        if sound.is_floating_point():
            sound = sound.float()  # NumPy knows no bfloat16
        return np.asarray(sound.numpy())
    try:
        return np.asarray(sound)
    except (TypeError, ValueError):
        raise AudioError(f"Audio must be samples: {_WHAT}.") from None


def _columns(samples: Samples) -> Samples:
    """Brings one of the accepted shapes to [n, channels]. Raises AudioError."""
    shape = samples.shape
    while samples.ndim > 2 and samples.shape[0] == 1:
        samples = samples[0]
    if samples.ndim == 1:
        return samples[:, None]
    if samples.ndim != 2 or min(samples.shape) > MAX_CHANNELS:
        raise AudioError(f"Audio has the shape {list(shape)}: give {_WHAT}.")
    first, second = samples.shape
    channels_first = first <= MAX_CHANNELS and (second > MAX_CHANNELS or first == 1)
    return samples.T if channels_first else samples
