"""Finds Mimi's parts, whose place differs between versions of transformers.

Up to 5.17 the decoder's parts are attributes of `MimiModel`; later versions have them in
`MimiModel.decoder`. Only this module depends on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class DecoderParts:
    quantizer: Any
    upsample: Any
    """MimiConvTranspose1d from the frame rate to the transformer's rate; None where they agree."""
    transformer: Any
    seanet: nn.ModuleList


def decoder_parts(codec: Any) -> DecoderParts:
    """The decoder's parts of `codec`, a MimiModel, in the order in which they are applied."""
    decoder = codec.decoder
    if hasattr(decoder, "decoder_transformer"):
        return DecoderParts(
            codec.quantizer,
            decoder.upsample,
            decoder.decoder_transformer,
            decoder.decoder_seanet.layers,
        )
    upsample = getattr(codec, "upsample", None)
    return DecoderParts(codec.quantizer, upsample, codec.decoder_transformer, decoder.layers)
