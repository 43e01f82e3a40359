"""The codebooks of the codec while it is trained: running means, idle entries, usage counts."""

from __future__ import annotations

import torch
from torch import nn
from transformers import MimiModel

from . import crops, phonetic
from .entries import books_of
from .spec import ENCODED

DECAY = 0.99
"""Decay of the codebooks' running means."""
UNREACHABLE = 1e3
"""Entry 0 of codebook 0: code 0 means the end of speech and must never be chosen."""


def displace(codec: MimiModel) -> None:
    """Put the entries for speaking out of the encoder's reach, until `phonetic.place`."""
    for book in books_of(codec):
        phonetic.put(book, torch.full_like(book.embed_sum[ENCODED:], UNREACHABLE))


@torch.no_grad()
def lighten(codec: MimiModel) -> None:
    """Scale the usage counts of a trained codec's codebooks to our batch size.

    Counts from larger batches make the running means too slow for the encoder: the commitment loss
    grew from 0.1 to 1 within 100 steps.
    """
    for number, book in enumerate(books_of(codec)):
        used = slice(0 if number else 1, ENCODED)
        usage, embed = book.cluster_usage[used], book.embed[used].clone()
        wanted = (usage / usage.mean()).clamp(0.2, 5) * crops.BATCH * crops.FRAMES / ENCODED
        book.cluster_usage[used] = wanted
        book.embed_sum[used] = embed * wanted[:, None]
        book._embed = None


@torch.no_grad()
def follow(book: nn.Module, chosen: torch.Tensor, vectors: torch.Tensor) -> None:
    """Move codebook entries to the running mean of their vectors; replace idle entries."""
    barred = bool(book.embed[0].abs().max() > UNREACHABLE / 2)
    flat, chosen = vectors.reshape(-1, vectors.shape[-1]), chosen.reshape(-1)
    hits = torch.zeros_like(book.cluster_usage).index_add_(0, chosen, torch.ones_like(flat[:, 0]))
    sums = torch.zeros_like(book.embed_sum).index_add_(0, chosen, flat)
    for kept, new in ((book.cluster_usage, hits), (book.embed_sum, sums)):
        kept[:ENCODED].mul_(DECAY).add_(new[:ENCODED], alpha=1 - DECAY)
    share = len(flat) / ENCODED
    idle = (book.cluster_usage[:ENCODED] < 0.05 * share).nonzero()[:, 0]
    if len(idle):
        pick = torch.arange(len(idle), device=idle.device) * 7919 % len(flat)
        book.embed_sum[idle] = flat[pick] * share * 0.5
        book.cluster_usage[idle] = share * 0.5
    if barred:
        book.embed_sum[0], book.cluster_usage[0] = UNREACHABLE, 1.0
    book._embed = None
