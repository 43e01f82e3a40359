"""A model that cannot be loaded gives one line: which model, why, and the remedy."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from csm_tts_plugin.config import EngineConfig
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.engine.loading import TINY_FOLDER, load_checkpoint
from csm_tts_plugin.errors import ConfigError, CsmError, ModelLoadError
from tests.engine.tools import PATIENCE, noise, say, small_processor, started, voice
from tests.support.models import small_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small checkpoint as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    processor, model = small_processor(), small_model(3)
    model.config.audio_token_id = processor.audio_token_id
    model.config.audio_eos_token_id = processor.audio_eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def broken(saved, tmp_path):
    """A copy of the checkpoint, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def refused(model: object, caplog, **settings) -> CsmError:
    """The error of an engine that cannot load this; no traceback is logged."""
    engine = Engine(EngineConfig(model=str(model), threads=1, **settings))
    with caplog.at_level(logging.DEBUG, "csm_tts_plugin"):
        engine.start()
        with pytest.raises(CsmError) as refusal:
            engine.wait_ready(PATIENCE)
    engine.stop()
    error = refusal.value
    assert "\n" not in str(error)
    assert len(str(error)) < 400
    assert not [record for record in caplog.records if record.exc_info]
    assert engine.status().failure is error
    assert engine.status().detail == str(error)
    return error


def edited(folder: Path, **changes) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))
    return folder


def test_a_saved_checkpoint_loads_and_speaks(saved):
    checkpoint = load_checkpoint(EngineConfig(model=str(saved), device="cpu"))
    assert checkpoint.device.type == "cpu"
    engine = started(checkpoint, slots=1, queue=1)
    heard = say(engine, engine.open(), max_seconds=0.4).wait()
    engine.stop()
    assert heard.frames() == 5


def test_a_folder_that_is_not_there(tmp_path, caplog):
    error = refused(tmp_path / "nowhere", caplog)
    assert isinstance(error, ModelLoadError)
    assert "no folder" in str(error)
    assert "nowhere" in str(error)


def test_a_folder_without_config(broken, caplog):
    (broken / "config.json").unlink()
    assert "config.json" in str(refused(broken, caplog))


def test_a_folder_without_weights(broken, caplog):
    (broken / "model.safetensors").unlink()
    assert "safetensors" in str(refused(broken, caplog))


def test_weights_that_would_run_code_are_not_read(broken, caplog):
    weights = broken / "model.safetensors"
    torch.save(load_file(weights), broken / "pytorch_model.bin")
    weights.unlink()
    assert "safetensors" in str(refused(broken, caplog))


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_damaged_weights(broken, damage, caplog):
    weights = broken / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(
        {"cut": whole[: len(whole) // 2], "noise": b"\xff" * 4096, "empty": b""}[damage]
    )
    error = refused(broken, caplog)
    assert isinstance(error, ModelLoadError)
    assert "damaged" in str(error)


def test_weights_of_which_some_are_missing(broken, caplog):
    """transformers would fill them with random numbers and only warn."""
    weights = broken / "model.safetensors"
    tensors = load_file(weights)
    gone = next(name for name in tensors if "backbone_model.layers.1" in name)
    del tensors[gone]
    save_file(tensors, weights, metadata={"format": "pt"})
    error = refused(broken, caplog)
    assert isinstance(error, ModelLoadError)
    assert "missing" in str(error)


def test_weights_that_hold_nan(broken, caplog):
    weights = broken / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "codebooks_head" in name)
    tensors[name].view(-1)[7] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    error = refused(broken, caplog)
    assert isinstance(error, ModelLoadError)
    assert "NaN" in str(error)


def test_weights_of_another_size(broken, caplog):
    error = refused(edited(broken, hidden_size=128), caplog)
    assert isinstance(error, ModelLoadError)
    assert "do not fit" in str(error)


def test_a_checkpoint_of_another_kind(broken, caplog):
    (broken / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    error = refused(broken, caplog)
    assert isinstance(error, ModelLoadError)
    assert "llama" in str(error)
    assert "csm" in str(error)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "never heard of"}'])
def test_a_config_that_says_nothing(broken, content, caplog):
    (broken / "config.json").write_text(content)
    assert isinstance(refused(broken, caplog), ModelLoadError)


def test_a_folder_without_its_tokenizer(broken, caplog):
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (broken / name).unlink(missing_ok=True)
    assert isinstance(refused(broken, caplog), ModelLoadError)


def test_a_template_that_looks_at_its_neighbours(broken, caplog):
    template = broken / "chat_template.jinja"
    template.write_text("{{ messages|length }}" + template.read_text())
    error = refused(broken, caplog)
    assert isinstance(error, ModelLoadError)
    assert "template" in str(error)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"device": "abacus"}, "abacus"),
        ({"device": "meta"}, "meta"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"dtype": "float8"}, "float8"),
    ],
)
def test_devices_and_dtypes_that_do_not_exist(settings, named, caplog):
    error = refused("tiny", caplog, **settings)
    assert isinstance(error, ConfigError)
    assert named in str(error)


OFFLINE = """
import sys
from csm_tts_plugin.config import EngineConfig
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.errors import ModelLoadError

for revision in (None, "no-such-revision"):
    engine = Engine(EngineConfig(model=sys.argv[1], revision=revision, threads=1))
    engine.start()
    try:
        engine.wait_ready(100)
    except ModelLoadError as error:
        print(error)
    engine.stop()
"""


def test_a_hub_id_without_network(tmp_path):
    """In a process of its own: the hub's library reads that setting when it is imported."""
    model = "nobody-we-know/no-such-model"
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, model],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert "Traceback" not in done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert model in line
        assert "network" in line


def test_bfloat16_keeps_the_codec_in_float32_and_speaks():
    checkpoint = load_checkpoint(EngineConfig(model="tiny", device="cpu", dtype="bfloat16"))
    model = checkpoint.model
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    codec = {dtype for name, dtype in kinds.items() if name.startswith("codec_model")}
    others = {dtype for name, dtype in kinds.items() if not name.startswith("codec_model")}
    assert codec == {torch.float32}
    assert others == {torch.bfloat16}
    engine = started(checkpoint, slots=1, queue=1)
    info = engine.info()
    heard = say(engine, engine.open(voice("v", 0.6)), max_seconds=0.4).wait()
    engine.stop()
    assert info is not None
    assert info.dtype == "bfloat16"
    assert heard.frames() >= 1
    assert np.isfinite(np.concatenate([audio.samples for audio in heard.audio])).all()


def test_a_reference_has_the_same_codes_whatever_the_dtype():
    """Rounding the codec would change them."""
    codes = []
    for dtype in ("float32", "bfloat16"):
        checkpoint = load_checkpoint(EngineConfig(model="tiny", device="cpu", dtype=dtype))
        rotary = checkpoint.model.backbone_model.rotary_emb
        assert rotary.inv_freq.dtype is torch.float32
        with torch.no_grad():
            sound = torch.from_numpy(noise(1.0))[None, None]
            codes.append(checkpoint.model.codec_model.encode(sound).audio_codes)
    assert torch.equal(*codes)


def test_tiny_is_where_it_should_be():
    assert (TINY_FOLDER / "model.safetensors").is_file()
    assert load_checkpoint(EngineConfig(model="tiny", device="cpu")).name == "tiny"
