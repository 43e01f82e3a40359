"""Small random models of the same classes as CSM-1B."""

from __future__ import annotations

import torch
from transformers import CsmConfig, CsmForConditionalGeneration, MimiConfig

from benchmarks.common import LLAMA3_ROPE


def small_mimi_config(codebooks: int = 4, codes: int = 64) -> MimiConfig:
    return MimiConfig(
        num_filters=4,
        hidden_size=32,
        codebook_dim=16,
        vector_quantization_hidden_dimension=16,
        num_quantizers=codebooks,
        num_semantic_quantizers=1,
        codebook_size=codes,
        upsample_groups=32,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=10,
    )


def small_config(
    codebooks: int = 4, codes: int = 64, context: int = 256, head_dim: int | None = None
) -> CsmConfig:
    """A tiny CSM with grouped-query attention and llama3 rope scaling. `head_dim`: of all heads;
    the C kernels need a multiple of 32.
    """
    dims = {} if head_dim is None else {"head_dim": head_dim}
    return CsmConfig(
        num_codebooks=codebooks,
        vocab_size=codes + 3,
        text_vocab_size=140,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        pad_token_id=130,
        codebook_pad_token_id=codes + 2,
        codebook_eos_token_id=0,
        bos_token_id=128,
        audio_token_id=130,
        audio_eos_token_id=131,
        rope_parameters=LLAMA3_ROPE | {"original_max_position_embeddings": 64},
        **dims,
        depth_decoder_config={
            **dims,
            "num_codebooks": codebooks,
            "backbone_hidden_size": 64,
            "vocab_size": codes + 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": codebooks + 1,
        },
        codec_config=small_mimi_config(codebooks, codes).to_dict(),
    )


def small_model(seed: int = 0, **sizes: int) -> CsmForConditionalGeneration:
    """Random weights widely spread: greedy choices are clear, codes are valid in the codec."""
    torch.manual_seed(seed)
    model = CsmForConditionalGeneration(small_config(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "codec" not in name:
                parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)
        codes = model.config.codec_config.codebook_size
        model.lm_head.weight[codes:] = 0.0
        model.depth_decoder.codebooks_head.weight[:, :, codes:] = 0.0
        for layer in _codebooks(model):
            layer.embed_sum.normal_()
            layer.cluster_usage.fill_(1.0)
            layer._embed = None
    return model


def _codebooks(model: CsmForConditionalGeneration) -> list:
    quantizer = model.codec_model.quantizer
    groups = (
        quantizer.semantic_residual_vector_quantizer,
        quantizer.acoustic_residual_vector_quantizer,
    )
    return [layer.codebook for group in groups for layer in group.layers]
