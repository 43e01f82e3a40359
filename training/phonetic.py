"""Phonetic codes: the part of codebook 0 that is chosen by the text instead of the encoder.

Codes from `ENCODED` on stand for a phone and the kind of sound that follows it. The language model
speaks in them. It knows from the text which phone every frame has, and a code says so without loss;
codes of the encoder say it for two thirds of the frames, and those the language model samples for
fewer. The other codebooks hold what the text does not tell: pitch, level, colour.

The codec's encoder never chooses phonetic codes: their entries are moved far away along a direction
that the entries of the encoder do not use and that the output projection discards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import MimiModel

from .phones import CONSONANTS, LEAD, PAUSES, R_VOWEL, STRESSED, VOWELS
from .spec import CODES, ENCODED, END

_KINDS = (
    LEAD + ",;.:?!",  # silence
    "pbmfvw",  # lips
    "tdnszlTD",  # teeth and the ridge behind them
    "kgNSZCJyh",  # palate and further back
    "rR&",
    "ieEHFKAGBqX",  # vowels that begin in front, or open
)
_OTHER = len(_KINDS)
"""All other vowels."""
KINDS = _OTHER + 1
"""How many kinds of sounds there are."""
SYMBOLS = "".join(
    sorted(
        {*"".join((LEAD, R_VOWEL, *PAUSES.values(), *CONSONANTS.values(), *VOWELS.values()))}
        | {*STRESSED.values()}
    )
)
FAR = 100.0
"""Distance of unreachable entries; those of the encoder have norms of about 18."""


def kind(symbol: str) -> int:
    """The kind of sound that a symbol begins."""
    return next((n for n, some in enumerate(_KINDS) if symbol in some), _OTHER)


def codes_of(symbols: str) -> npt.NDArray[np.int16]:
    """The phonetic code (frames,) of each frame, whose symbols are given."""
    after = symbols[1:] + LEAD
    return np.array(
        [
            ENCODED + SYMBOLS.index(here) * KINDS + kind(next_)
            for here, next_ in zip(symbols, after, strict=True)
        ],
        np.int16,
    )


def unused_direction(entries: torch.Tensor) -> torch.Tensor:
    """The unit vector (size,) along which entries (count, size) vary least."""
    return torch.linalg.svd(entries - entries.mean(0)).Vh[-1]


@torch.no_grad()
def place(codec: MimiModel, start: torch.Tensor) -> None:
    """Move the entries from `ENCODED` on, of all codebooks, out of the encoder's reach.

    start: (CODES - ENCODED, size), what the phonetic entries of codebook 0 decode to at first. The
    entries of the other codebooks are never used and decode to nothing.
    """
    quantizer = codec.quantizer
    for part, first, at in (
        (quantizer.semantic_residual_vector_quantizer, END + 1, start),
        (quantizer.acoustic_residual_vector_quantizer, 0, torch.zeros_like(start)),
    ):
        books = [layer.codebook for layer in part.layers]
        used = torch.cat([book.embed[first:ENCODED] for book in books])
        away = unused_direction(used)
        weight = part.output_proj.weight[..., 0]
        weight -= torch.outer(weight @ away, away)
        for book in books:
            put(book, at - torch.outer(at @ away, away) + FAR * away)


def placed(codec: MimiModel) -> bool:
    """Whether the phonetic entries have been placed."""
    first = codec.quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    return bool(FAR / 2 < first.embed[ENCODED].norm() < 2 * FAR)


@torch.no_grad()
def put(book: nn.Module, entries: torch.Tensor) -> None:
    """Set the entries from `ENCODED` on of a codebook."""
    book.embed_sum[ENCODED:] = entries
    book.cluster_usage[ENCODED:] = 1.0
    book._embed = None


def means(
    table: torch.Tensor, coded: Sequence[tuple[npt.NDArray[np.int16], str]], fallback: torch.Tensor
) -> torch.Tensor:
    """Mean of the rows of `table` that the encoder chose where a phonetic code stands.

    table: (codes, size); coded: codes (frames,) of the encoder and symbols of utterances. Phonetic
    codes that do not occur get `fallback` (size,).
    """
    sums = torch.zeros(CODES - ENCODED, table.shape[1])
    counts = torch.zeros(CODES - ENCODED)
    for chosen, symbols in coded:
        to = torch.from_numpy(codes_of(symbols).astype(np.int64)) - ENCODED
        sums.index_add_(0, to, table[torch.from_numpy(chosen.astype(np.int64))])
        counts.index_add_(0, to, torch.ones(len(to)))
    return torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], fallback)
