"""Mimi's decoder as a streaming decoder: codes of any number of frames in, their samples out.

transformers' decoder starts each call from silence, so that chunks of one utterance do not fit
together. Here each layer keeps the inputs it needs in a state with a row for each utterance, so
that any split of an utterance into chunks gives the samples of decoding it whole. A call works on
any rows; rows are independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codec_attention import WindowTransformer
from .codec_layers import Rows, convolutions, upsampling
from .codec_parts import decoder_parts

_TILE = 4
"""Frames per pass through the last layers on a CPU: these have few weights and large activations,
which then stay in the core's cache from layer to layer."""


class MimiDecoder(nn.Module):
    """Decodes codes of up to `rows` utterances; shares its weights with `codec`."""

    table: Tensor
    offsets: Tensor

    def __init__(self, codec: Any, rows: int, max_frames: int = 8) -> None:
        """
        `codec`: a MimiModel, in the dtype and on the device to decode with. `max_frames`: the
        longest chunk one call may decode.
        """
        super().__init__()
        parts = decoder_parts(codec)
        config = codec.config
        self.max_frames = max_frames
        self.codebooks = config.num_quantizers
        self.codebook_size = config.codebook_size
        self.device = codec.device
        self.register_buffer("table", _codebook_table(parts.quantizer), persistent=False)
        offsets = torch.arange(self.codebooks, device=codec.device) * self.codebook_size
        self.register_buffer("offsets", offsets, persistent=False)
        self.upsample = None if parts.upsample is None else upsampling(parts.upsample, rows)
        self.rate = 1 if self.upsample is None else parts.upsample.conv.stride[0]
        """Positions of the transformer per frame."""
        self.transformer = WindowTransformer(
            parts.transformer, config, rows, max_frames * self.rate
        )
        layers = convolutions(parts.seanet, rows)
        cut = _first_light(layers)
        self.head, self.tail = nn.ModuleList(layers[:cut]), nn.ModuleList(layers[cut:])
        self.samples_per_frame = self.rate * math.prod(config.upsampling_ratios)
        self.frames = [0] * rows
        """Number of frames each row has decoded."""
        kinds = {"past": "past", "keys": "ring", "values": "ring"}
        self._state = [
            (kinds[name], buffer)
            for path, buffer in self.named_buffers()
            if (name := path.rpartition(".")[2]) in kinds
        ]

    @torch.no_grad()
    def decode(self, codes: Tensor, rows: Sequence[int]) -> Tensor:
        """Codes [B, K, T], the next frames of `rows` -> samples [B, T * samples_per_frame], which
        may exceed [-1, 1] a little
        """
        begins = tuple(self.begin(row) for row in rows)
        starts = torch.tensor(begins, device=self.device)
        known = begins if self.device.type == "cpu" else None
        sound: Tensor = self(codes, Rows.of(rows, self.device), starts, known)
        self.count(rows, codes.shape[2])
        return sound

    def begin(self, row: int) -> int:
        """Number of transformer positions `row` has processed."""
        return self.frames[row] * self.rate

    def count(self, rows: Sequence[int], frames: int) -> None:
        """Note that `frames` more frames of each of `rows` were decoded."""
        for row in rows:
            self.frames[row] += frames

    def forward(
        self, codes: Tensor, rows: Rows, starts: Tensor, begins: tuple[int, ...] | None = None
    ) -> Tensor:
        """`decode` with the number of transformer positions each row has processed: `starts` [B] on
        the device; `begins`, on a CPU, the same on the host.
        """
        index = codes + self.offsets[: codes.shape[1], None]
        x = F.embedding(index, self.table).sum(dim=1)
        if self.upsample is not None:
            x = self.upsample(x, rows)
        x = self.transformer(x, rows, starts, begins)
        for layer in self.head:
            x = layer(x, rows)
        if begins is None:
            return self._finish(x, rows)
        return self._finish_in_tiles(x, rows, codes.shape[2])

    def _finish(self, x: Tensor, rows: Rows) -> Tensor:
        """The last layers: [B, t, C] -> samples [B, n]"""
        for layer in self.tail:
            x = layer(x, rows)
        return x[..., 0]

    def _finish_in_tiles(self, x: Tensor, rows: Rows, frames: int) -> Tensor:
        """`_finish` for a few rows and frames at a time; any split gives the same samples."""
        batch, length = x.shape[0], x.shape[1] // frames
        height, width = max(1, _TILE // frames), min(_TILE, frames)
        sound = x.new_empty(batch, frames * self.samples_per_frame)
        for top in range(0, batch, height):
            some = rows.part(top, top + height)
            for begin in range(0, frames, width):
                tile = x[top : top + height, begin * length : (begin + width) * length]
                at = begin * self.samples_per_frame
                done = self._finish(tile, some)
                sound[top : top + height, at : at + done.shape[1]] = done
        return sound

    @torch.no_grad()
    def reset(self, row: int) -> None:
        """Clear the state of `row`; the next utterance in it begins from silence."""
        used = min(self.frames[row] * self.rate, self.transformer.ring)
        for name, state in self._state:
            (state[row, :, :used] if name == "ring" else state[row]).zero_()
        self.frames[row] = 0


def _first_light(layers: list[nn.Module]) -> int:
    """Index of the first of the last layers, whose share of the weights is less than their share of
    the time.
    """
    weights = [sum(c.weight.numel() for c in _convs(layer)) for layer in layers]
    return next(i for i in range(len(layers)) if sum(weights[i:]) < 0.2 * sum(weights))


def _convs(layer: nn.Module) -> list[Any]:
    return [part for part in layer.modules() if hasattr(part, "offsets")]


@torch.no_grad()
def _codebook_table(quantizer: Any) -> Tensor:
    """[K * size, hidden]: each codebook entry after its output projection, so that one look-up and
    one sum replace K look-ups and two projections.
    """
    tables = []
    for group in (
        quantizer.semantic_residual_vector_quantizer,
        quantizer.acoustic_residual_vector_quantizer,
    ):
        for layer in group.layers:
            entries = layer.codebook.embed
            if group.output_proj is not None:
                entries = group.output_proj(entries.T[None])[0].T
            tables.append(entries)
    return torch.cat(tables).clone()
