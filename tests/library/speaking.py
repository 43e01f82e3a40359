"""Shared helpers of the library's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from csm_tts_plugin.library.generator import Generator, generate_streaming_audio

GREEDY = {"do_sample": False, "depth_decoder_do_sample": False}
FRAME = 1920


def turn(text: str, audio: Any = None, role: str = "0") -> dict:
    content = [{"type": "text", "text": text}]
    if audio is not None:
        content.append({"type": "audio", "audio": audio})
    return {"role": role, "content": content}


def inputs_of(checkpoint: Any, *turns: dict) -> Any:
    """`checkpoint`: anything with a processor."""
    return checkpoint.processor.apply_chat_template(list(turns), tokenize=True, return_dict=True)


def sound(generator: Generator, inputs: Any, chunk_token_size: int = 20, **options) -> torch.Tensor:
    return torch.cat(list(generator.generate_stream(inputs, chunk_token_size, **options)))


def speak(generator: Generator, conversation: Any, *arguments, **options) -> np.ndarray:
    """By default without playback, short, greedy and unmarked."""
    options = {"play_audio": False, "progress": None, "watermark": False, **GREEDY, **options}
    options.setdefault("max_new_tokens", 6)
    return generate_streaming_audio(generator, conversation, *arguments, **options)


def expected(model: Any, inputs: Any, **options) -> torch.Tensor:
    """The audio that transformers generates and decodes."""
    return model.generate(**inputs, output_audio=True, depth_decoder_do_sample=False, **options)[0]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4


def reference(path: Any, **changes) -> dict:
    return {"path": str(path), "text": "some words", "speaker_id": "0", **changes}
