"""The architecture of csm-tiny: sizes, symbols and settings. Knows nothing of training.

Holds all values that training, export and inference share.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # set before torch loads: spinning threads
os.environ.setdefault("GOMP_SPINCOUNT", "0")  # of two jobs on shared cores starve each other

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    CsmConfig,
    CsmDepthDecoderConfig,
    EncodecFeatureExtractor,
    MimiConfig,
    PreTrainedTokenizerFast,
)

SAMPLE_RATE = 24_000
FRAME = 1920
"""Samples in a frame: 80 ms."""
CODEBOOKS = 4
CODES = 1024
ENCODED = 512
"""The encoder chooses codes below this one; the others are for speaking: see `prosodic.py`."""
VOCAB = CODES + 3
"""Codec codes, two spare ids, and the padding id."""
END = 0
"""The end frame is this code in every codebook; the codec never chooses it in codebook 0."""
WIDTH = 128
"""The text of every turn is padded to a multiple of this number of symbols."""

SPECIAL = (
    "<|pad|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|AUDIO|>",
    "<|audio_eos|>",
    "<|unk|>",
)
PAD, BOS, EOS, AUDIO, AUDIO_END, UNK = range(len(SPECIAL))
SYMBOLS = "".join(map(chr, range(0x20, 0x7F)))
TEXT_VOCAB = 128
"""Special tokens and printable ASCII, rounded up."""

MIMI = {
    "num_filters": 24,
    "hidden_size": 256,
    "codebook_dim": 128,
    "vector_quantization_hidden_dimension": 128,
    "num_quantizers": CODEBOOKS,
    "num_semantic_quantizers": 1,
    "codebook_size": CODES,
    "upsample_groups": 256,
    "num_hidden_layers": 2,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "layer_scale_initial_scale": 0.1,
}

ROPE = {"rope_type": "default", "rope_theta": 1000.0}
"""A low base, so that the rotary pairs cover the distances that occur, which are below 2048."""

# Mimi's convolutions in order. The processor needs them to count frames without running the codec.
ENCODED_LENGTH = {
    "kernel_sizes": [7, 3, 1, 8, 3, 1, 10, 3, 1, 12, 3, 1, 16, 3, 4],
    "strides": [1, 1, 1, 4, 1, 1, 5, 1, 1, 6, 1, 1, 8, 1, 2],
    "dilations": [1] * 15,
    "use_causal_conv": True,
}

GENERATION = {
    "do_sample": True,
    "temperature": 0.2,
    "top_k": 20,
    "max_new_tokens": 160,
    # The context that the engine gives the model (`ContextBounds`): a reference, of which it takes
    # pitch and size, and no turns of a call, on which it was not trained.
    "csm_context": {"turns": 0, "reference_seconds": 16, "follows": "pitch and size"},
    "depth_decoder_do_sample": True,
    "depth_decoder_temperature": 0.3,
    "depth_decoder_top_k": 20,
    # Ids that are not codec codes. Training has none of them; this excludes them for certain.
    "suppress_tokens": [CODES, CODES + 1, CODES + 2],
    "depth_decoder_suppress_tokens": [CODES, CODES + 1, CODES + 2],
    "depth_decoder_min_new_tokens": CODEBOOKS - 1,
    "depth_decoder_max_new_tokens": CODEBOOKS - 1,
}


def mimi_config() -> MimiConfig:
    """The codec: 24 kHz, 12.5 frames a second, 4 codebooks of 1,024."""
    return MimiConfig(**MIMI)


def csm_config(codec: MimiConfig | None = None) -> CsmConfig:
    """The model: backbone 5 x 256, depth decoder 2 x 256, everything else as in CSM-1B."""
    depth = CsmDepthDecoderConfig(
        num_codebooks=CODEBOOKS,
        backbone_hidden_size=256,
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CODEBOOKS + 1,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    return CsmConfig(
        num_codebooks=CODEBOOKS,
        vocab_size=VOCAB,
        text_vocab_size=TEXT_VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rope_parameters=ROPE,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=None,
        audio_token_id=AUDIO,
        audio_eos_token_id=AUDIO_END,
        codebook_pad_token_id=VOCAB - 1,
        codebook_eos_token_id=END,
        depth_decoder_config=depth.to_dict(),
        codec_config=(codec or mimi_config()).to_dict(),
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character; characters outside printable ASCII become `<|unk|>`."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *SYMBOLS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[UNK]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        unk_token=SPECIAL[UNK],
        additional_special_tokens=[SPECIAL[AUDIO], SPECIAL[AUDIO_END]],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=4096,
    )


def feature_extractor() -> EncodecFeatureExtractor:
    """Mono, 24 kHz, no chunking, as in CSM-1B."""
    return EncodecFeatureExtractor(feature_size=1, sampling_rate=SAMPLE_RATE, padding_value=0.0)


def processor_settings() -> dict[str, Any]:
    """Settings of the processor beyond those of its tokenizer and feature extractor."""
    return {"audio_kwargs": {"encoded_length_kwargs": ENCODED_LENGTH, "sampling_rate": SAMPLE_RATE}}
