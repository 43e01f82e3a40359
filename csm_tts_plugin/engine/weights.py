"""CSM's weights in the layout of the frame step.

Packed once at load time from a `CsmForConditionalGeneration`: fused projections, rotary tables, the
depth decoder's embeddings after their projection, and heads restricted to the codes of the codec,
so that no other id can be drawn.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelLoadError
from .layers import PackedLayer, RmsNorm, matrix, rope_tables, rotation_matrices


class PackedCsm:
    """Sizes and packed weights. The caller keeps `model`, which stays usable; its weights must not
    change any more, because some of them are copied here.
    """

    def __init__(self, model: Any, *, eight_bit_depth: bool = False) -> None:
        """`eight_bit_depth`: quantise the depth decoder's layers to 8 bits, but not its heads."""
        config = model.config
        depth_config = config.depth_decoder_config
        backbone, depth = model.backbone_model, model.depth_decoder
        self.codebooks: int = config.num_codebooks
        self.vocab: int = config.vocab_size
        self.codes: int = min(config.codec_config.codebook_size, self.vocab)
        self.max_context: int = config.max_position_embeddings
        self.eos_code: int = config.codebook_eos_token_id
        self.text_vocab: int = config.text_vocab_size
        self.audio_token: int = config.audio_token_id
        self.audio_eos_token: int = config.audio_eos_token_id
        self.dtype: torch.dtype = model.lm_head.weight.dtype
        _check(config, self.codes)

        self.text_embedding = model.embed_text_tokens.weight.data
        self.audio_embedding = backbone.embed_tokens.embed_audio_tokens.weight.data
        self.lm_head = matrix(model.lm_head.weight.data)[:, : self.codes]
        self.layers = [PackedLayer(layer) for layer in backbone.layers]
        self.norm = RmsNorm(backbone.norm.weight.data, config.rms_norm_eps)
        cos, sin = rope_tables(backbone.rotary_emb, self.max_context + 1, self.dtype)
        self.cos, self.sin = cos, sin

        decoder = depth.model
        self.depth_layers = [
            PackedLayer(layer, eight_bits=eight_bit_depth) for layer in decoder.layers
        ]
        self.depth_norm = RmsNorm(decoder.norm.weight.data, depth_config.rms_norm_eps)
        self.depth_projector = matrix(decoder.inputs_embeds_projector.weight.data)
        self.depth_heads = _depth_heads(depth.codebooks_head, self.codes)
        self.depth_embeddings = self._project_depth(decoder.embed_tokens.weight.data)
        self.depth_embedding = self.depth_embeddings[0]
        self.depth_cos, self.depth_sin = rope_tables(decoder.rotary_emb, self.codebooks, self.dtype)
        self.depth_rotations = list(rotation_matrices(self.depth_cos, self.depth_sin).unbind(0))
        offsets = torch.arange(self.codebooks, device=self.lm_head.device) * self.vocab
        self.offsets = offsets

    @torch.no_grad()
    def _project_depth(self, embedding: Tensor) -> list[Tensor]:
        """One [codes, depth hidden] per codebook but the last, which is never an input."""
        used = embedding.view(self.codebooks, self.vocab, -1)[: self.codebooks - 1, : self.codes]
        return list((used @ self.depth_projector).unbind(0))

    def embed_frames(self, codes: Tensor) -> Tensor:
        """Codes [..., K] -> [..., hidden]: the sum of the codebooks' embeddings"""
        return F.embedding(codes + self.offsets, self.audio_embedding).sum(dim=-2)

    def embed_positions(self, positions: Tensor) -> Tensor:
        """Positions [n, K + 1] (codes, then a text token or -1) -> [n, hidden]"""
        text = positions[:, -1]
        words = F.embedding(text.clamp(min=0), self.text_embedding)
        frames = self.embed_frames(positions[:, :-1])
        return torch.where((text >= 0)[:, None], words, frames)


def _depth_heads(source: Any, codes: int) -> list[Tensor]:
    """One [width, codes] for each codebook but the first.

    transformers stores them as [K - 1, width, vocab], whose rows of 2,051 numbers are not aligned,
    so that CUDA loads single numbers. On CUDA they are stored transposed, and the module's own
    weight becomes a view of that.
    """
    weight = source.weight.data
    if weight.device.type == "cuda":
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
        source.weight.data = weight
    return list(weight[:, :, :codes].unbind(0))


def _check(config: Any, codes: int) -> None:
    eos = config.codebook_eos_token_id
    if not isinstance(eos, int) or not 0 <= eos < codes:
        raise ModelLoadError(
            f"The end-of-speech code {eos} is not one of the codec's {codes} codes."
        )
    if config.num_codebooks > config.codec_config.num_quantizers:
        raise ModelLoadError(
            f"The model writes {config.num_codebooks} codebooks, its codec reads "
            f"{config.codec_config.num_quantizers}: these weights do not belong together."
        )
