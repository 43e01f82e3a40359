"""Merged adapters give the codes of PEFT's unmerged model; invalid ones are refused in one line."""

from __future__ import annotations

import json
import shutil
import sys

import huggingface_hub
import numpy as np
import peft
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from csm_tts_plugin.config import EngineConfig
from csm_tts_plugin.engine import adapters
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.engine.loading import load_checkpoint
from csm_tts_plugin.errors import ConfigError, CsmError, ModelLoadError
from csm_tts_plugin.library.generator import Generator
from tests.engine.tools import PATIENCE, noise, small_processor
from tests.support.models import small_model

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
BOTH_DECODERS = r"(backbone_model|depth_decoder)\..*\.(q|k|v|o|gate|up|down)_proj"
KINDS = {
    "attention and MLP of both decoders": {"target_modules": BOTH_DECODERS},
    "whatever is called so, the codec too": {"target_modules": ATTENTION},
    "rank-stabilised": {"target_modules": BOTH_DECODERS, "use_rslora": True, "r": 16},
    "weight-decomposed": {"target_modules": BOTH_DECODERS, "use_dora": True},
    "ranks of their own": {
        "target_modules": BOTH_DECODERS,
        "rank_pattern": {"gate_proj": 2},
        "alpha_pattern": {"gate_proj": 32},
    },
    "head and embeddings in full": {
        "target_modules": BOTH_DECODERS,
        "modules_to_save": ["lm_head", "embed_text_tokens", "codebooks_head"],
    },
}


def base():
    processor, model = small_processor(), small_model(3)
    model.config.audio_token_id = processor.audio_token_id
    model.config.audio_eos_token_id = processor.audio_eos_token_id
    return processor, model


def adapted(seed=0, **settings):
    """An unmerged PeftModel with a random adapter that changes the output."""
    torch.manual_seed(seed)
    _, model = base()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **settings}))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
            elif "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2 * parameter.std())
    return wrapped.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The base model's folder."""
    folder = tmp_path_factory.mktemp("base")
    processor, model = base()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "anna"
    adapted(target_modules=BOTH_DECODERS).save_pretrained(folder)
    return folder


@pytest.fixture
def broken(adapter, tmp_path):
    """A copy of the adapter, to be damaged."""
    return shutil.copytree(adapter, tmp_path / "anna")


def loaded(saved, adapter):
    return load_checkpoint(EngineConfig(model=str(saved), adapter=str(adapter), device="cpu"))


def refused(saved, adapter, kind=ModelLoadError):
    """The error of an engine that cannot load this: one line."""
    engine = Engine(EngineConfig(model=str(saved), adapter=str(adapter), threads=1))
    engine.start()
    with pytest.raises(CsmError) as refusal:
        engine.wait_ready(PATIENCE)
    engine.stop()
    assert type(refusal.value) is kind
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
    return str(refusal.value)


def prompt(processor):
    text = "[0] It speaks as it was taught."
    sound = noise(0.8)
    conversation = [
        {
            "role": "0",
            "content": [{"type": "text", "text": text}, {"type": "audio", "path": sound}],
        },
        {"role": "0", "content": [{"type": "text", "text": "Now."}]},
    ]
    return processor.apply_chat_template(conversation, tokenize=True, return_dict=True)


def greedy(model, inputs, frames=12):
    """Codes [frames, K] as transformers generates them."""
    options = {"do_sample": False, "depth_decoder_do_sample": False, "max_new_tokens": frames}
    with torch.no_grad():
        return model.generate(**inputs, **options)[0].numpy()


def spoken(checkpoint, inputs, frames=12):
    generator = Generator(checkpoint.model, checkpoint.processor)
    heard = []
    draw = generator._runner.draw

    def listening(*args, **kwargs):
        frame = draw(*args, **kwargs)
        heard.append(frame.codes[0].copy())
        return frame

    generator._runner.draw = listening
    for _ in generator.generate_stream(inputs, do_sample=False, max_new_tokens=frames):
        pass
    return np.stack(heard)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_codes_are_those_of_the_unmerged_model(saved, tmp_path, kind):
    wrapped = adapted(**KINDS[kind])
    wrapped.save_pretrained(tmp_path / "adapter")
    checkpoint = loaded(saved, tmp_path / "adapter")
    inputs = prompt(checkpoint.processor)
    wanted = greedy(wrapped, inputs)
    assert np.array_equal(spoken(checkpoint, inputs), wanted)
    with wrapped.disable_adapter():
        assert not np.array_equal(greedy(wrapped, inputs), wanted), "the adapter says nothing"


def test_its_name_is_told_and_not_its_path(saved, adapter):
    checkpoint = loaded(saved, adapter)
    assert checkpoint.adapter == "anna"
    engine = Engine(EngineConfig(model="base", slots=1, threads=1), checkpoint=checkpoint)
    engine.start()
    engine.wait_ready(PATIENCE)
    assert engine.info().adapter == "anna"
    engine.stop()


def test_without_peft_it_says_which_extra(saved, adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert '`pip install ".[adapters]"` in the checkout' in refused(saved, adapter, ConfigError)


def test_a_folder_that_is_not_there(saved, tmp_path):
    assert "There is no folder" in refused(saved, tmp_path / "nowhere")


def test_an_empty_folder(saved, tmp_path):
    assert "holds no adapter_config.json" in refused(saved, tmp_path)


def test_a_checkpoint_given_as_an_adapter(saved):
    assert "give it as CSM_MODEL" in refused(saved, saved)


def test_an_adapter_given_as_a_checkpoint(adapter):
    engine = Engine(EngineConfig(model=str(adapter), threads=1))
    engine.start()
    with pytest.raises(ModelLoadError, match="is an adapter: give it as CSM_ADAPTER"):
        engine.wait_ready(PATIENCE)
    engine.stop()


def test_pickled_weights_are_not_read(saved, broken):
    weights = broken / adapters.WEIGHTS
    torch.save(load_file(weights), broken / "adapter_model.bin")
    weights.unlink()
    assert "safe_serialization" in refused(saved, broken)


@pytest.mark.parametrize("damage", ["cut", "noise", "config", "half", "nan"])
def test_damage(saved, broken, damage):
    weights = broken / adapters.WEIGHTS
    data = weights.read_bytes()
    tensors = load_file(weights)
    if damage == "cut":
        weights.write_bytes(data[: len(data) // 2])
    elif damage == "noise":
        weights.write_bytes(bytes(1000))
    elif damage == "config":
        (broken / adapters.CONFIG).write_text("{")
    elif damage == "half":
        save_file(dict(list(tensors.items())[::2]), weights)
    else:
        save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, weights)
    said = refused(saved, broken)
    assert "NaN" in said if damage == "nan" else "damaged" in said


def test_one_for_another_model(saved, broken):
    """Its target modules have the names of Llama."""
    config = json.loads((broken / adapters.CONFIG).read_text())
    config["target_modules"] = ["wq", "wv"]
    (broken / adapters.CONFIG).write_text(json.dumps(config))
    assert "for another model" in refused(saved, broken)


def test_weights_without_a_place(saved, broken):
    tensors = load_file(broken / adapters.WEIGHTS)
    name, tensor = next(iter(tensors.items()))
    save_file(
        {**tensors, name.replace("layers.0", "layers.99"): tensor + 0}, broken / adapters.WEIGHTS
    )
    assert "for another model" in refused(saved, broken)


def test_one_for_a_larger_model(saved, broken):
    tensors = load_file(broken / adapters.WEIGHTS)
    wider = {name: torch.zeros(*(2 * size for size in t.shape)) for name, t in tensors.items()}
    save_file(wider, broken / adapters.WEIGHTS)
    assert "another size" in refused(saved, broken)


def test_another_kind_than_lora(saved, broken):
    config = json.loads((broken / adapters.CONFIG).read_text())
    (broken / adapters.CONFIG).write_text(json.dumps({**config, "peft_type": "IA3"}))
    assert "of type IA3" in refused(saved, broken)


def test_one_of_the_hub(saved, adapter, monkeypatch):
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(adapter)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    checkpoint = loaded(saved, "someone/anna")
    assert checkpoint.adapter == "someone/anna"
    assert asked[0][0] == "someone/anna"
    assert not [pattern for pattern in asked[0][1] if "bin" in pattern], (
        "nothing pickled is fetched"
    )


def test_a_hub_that_cannot_be_reached(saved, monkeypatch):
    def snapshot(name, allow_patterns):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert "the hub cannot be reached" in refused(saved, "someone/anna")
