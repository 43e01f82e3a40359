"""The examples of csm-streaming-tf's README, run with csm-tiny."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

import csm_tts_plugin


@pytest.fixture
def example(tmp_path, monkeypatch, tiny_speaker):
    """Names as in the README's examples, with csm-tiny and an existing recording."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    rng = np.random.default_rng(0)
    steps = np.arange(3 * 16_000) / 16_000
    voice = 0.2 * np.sin(2 * np.pi * 140 * steps) * (1 + rng.standard_normal(len(steps)) / 10)
    soundfile.write(tmp_path / "path" / "to" / "reference1.wav", voice, 16_000)
    torch.manual_seed(0)
    return tiny_speaker


REFERENCE_DATA = [
    {
        "path": "path/to/reference1.wav",
        "text": "This is a reference sample for voice cloning.",
        "speaker_id": "0",
    }
]
CLONED = "Generate this text with the voice from the reference audio."


def conversation_of(refs: list[dict]) -> list[dict]:
    conversation = []
    for ref in refs:
        conversation.append(
            {
                "role": ref["speaker_id"],
                "content": [
                    {"type": "text", "text": ref["text"]},
                    {"type": "audio", "audio": ref["audio_array"]},
                ],
            }
        )
    conversation.append(
        {"role": refs[0]["speaker_id"], "content": [{"type": "text", "text": CLONED}]}
    )
    return conversation


def test_readme_simple_text_to_speech(example, tmp_path):
    prompt = "The sunset painted the sky with hues of orange and purple."
    audio = csm_tts_plugin.generate_streaming_audio(
        example, prompt, output_filename="output.wav", play_audio=True
    )
    assert isinstance(audio, np.ndarray)
    assert audio.dtype == np.float32
    assert len(audio)
    assert soundfile.info("output.wav").frames == len(audio)


def test_readme_direct_streaming(example):
    refs = csm_tts_plugin.load_reference_audio(REFERENCE_DATA)
    inputs = example.processor.apply_chat_template(
        conversation_of(refs), tokenize=True, return_dict=True
    ).to(example.device)
    seconds = [
        len(chunk.cpu().numpy()) / 24000
        for chunk in example.generate_stream(inputs, chunk_token_size=20)
    ]
    assert seconds[0] == 0.08
    assert max(seconds) <= 20 * 0.08
    assert sum(seconds) == pytest.approx(example.metrics.audio_seconds)


def test_readme_reference_audio(example):
    refs = csm_tts_plugin.load_reference_audio(REFERENCE_DATA)
    audio = csm_tts_plugin.generate_streaming_audio(
        example, conversation_of(refs), output_filename="with_reference.wav", play_audio=True
    )
    assert soundfile.info("with_reference.wav").frames == len(audio) > 0
