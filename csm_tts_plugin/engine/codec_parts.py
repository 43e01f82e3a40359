"""Where Mimi keeps its parts, which differs between versions of transformers.

Up to 5.17 the decoder's pieces hang on `MimiModel` itself; later they moved into
`MimiModel.decoder`. This is the only place that knows.
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
    """The pieces of `codec` (a MimiModel), in the order sound passes through them."""
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
