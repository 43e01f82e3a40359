"""The entries of the codes in which the model speaks: what each adds to the decoder's input.

Codebook 0 has an entry of its own for every code. In the other codebooks an entry is a sum of
parts (pitch and size, level, next phone and what follows it), so that a rare combination is learnt
from common ones.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import MimiModel

from . import phonetic
from .prosodic import LEVELS, PITCHES, SIZES
from .spec import CODEBOOKS, CODES, ENCODED

GAIN = 4.0
"""Factor on the parts, which begin at zero: entries are large, and Adam's steps small."""
PARTS = {
    "pitch": (1, PITCHES, lambda n: n // SIZES),
    "size": (1, SIZES, lambda n: n % SIZES),
    "level": (2, LEVELS, lambda n: n),
    "phone": (3, len(phonetic.SYMBOLS), lambda n: n // phonetic.KINDS),
    "kind": (3, phonetic.KINDS, lambda n: n % phonetic.KINDS),
}
"""The parts of entries: their codebook, how many there are, and which of them a code has."""


class Entries(nn.Module):
    """The entries from `ENCODED` on of all codebooks, to be trained."""

    base: torch.Tensor

    def __init__(self, codec: MimiModel) -> None:
        super().__init__()
        books = books_of(codec)
        size = books[0].embed.shape[1]
        self.first = nn.Parameter(books[0].embed[ENCODED:].clone())
        self.register_buffer("base", torch.stack([b.embed[ENCODED:].clone() for b in books[1:]]))
        self.parts = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(count, size)) for name, (_, count, _) in PARTS.items()}
        )
        for book in books:
            book._embed = None  # a checkpoint may be loaded over what the codebook has cached

    def tables(self) -> list[torch.Tensor]:
        """The entries (CODES - ENCODED, size) of each codebook."""
        numbers = torch.arange(CODES - ENCODED, device=self.base.device)
        tables = [self.first, *self.base]
        for name, (book, count, part) in PARTS.items():
            added = F.embedding(part(numbers).clamp(max=count - 1), self.parts[name])
            tables[book] = tables[book] + GAIN * added
        return tables

    def decoded(self, codec: MimiModel, codes: torch.Tensor) -> torch.Tensor:
        """The decoder's input (batch, hidden, frames) for codes (batch, CODEBOOKS, frames)."""
        quantizer = codec.quantizer
        whole = [
            torch.cat([book.embed[:ENCODED].detach(), table])
            for book, table in zip(books_of(codec), self.tables(), strict=True)
        ]
        vectors = [F.embedding(codes[:, k], whole[k]).transpose(1, 2) for k in range(CODEBOOKS)]
        first = quantizer.semantic_residual_vector_quantizer.output_proj(vectors[0])
        rest = quantizer.acoustic_residual_vector_quantizer.output_proj(sum(vectors[1:]))
        return first + rest

    @torch.no_grad()
    def keep(self, codec: MimiModel) -> None:
        """Write the entries into the codec."""
        for book, table in zip(books_of(codec), self.tables(), strict=True):
            phonetic.put(book, table.detach())


def books_of(model: MimiModel) -> list[nn.Module]:
    """The codebooks of a codec, in order."""
    parts = (
        model.quantizer.semantic_residual_vector_quantizer,
        model.quantizer.acoustic_residual_vector_quantizer,
    )
    return [layer.codebook for part in parts for layer in part.layers]
