"""Resumed training equals uninterrupted training: two steps at once, or one step twice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import SMALL
from training import batches, codec, common, crops, ear, lm
from training.corpus import STOCK
from training.spec import CODEBOOKS, ENCODED, FRAME

START = "start"
"""Placeholder for the folder of a codec."""
LENGTH = 6
"""Frames of an utterance."""


def write_shard(work: Path, number: int, count: int = 4) -> None:
    """Noise on the grid, with random codes."""
    random_ = np.random.default_rng(number)
    columns = {"text": ["Noise."] * count, "symbols": ["ptkxA1"] * count,
               "frames": ["ptkxA1"] * count, "voice": [STOCK] * count,
               "group": list(range(count))}  # fmt: skip
    audio = random_.integers(-9000, 9000, count * LENGTH * FRAME).astype(np.int16)
    codes = random_.integers(1, ENCODED, (count * LENGTH, CODEBOOKS)).astype(np.int16)
    periods = random_.integers(6, 20, count * LENGTH)
    kinds = (
        ("corpus", {"audio": audio, "periods": periods, "size": [1.0] * count}),
        ("codes", {"codes": codes, "said": codes + ENCODED - 1}),
    )
    for kind, values in kinds:
        (work / kind).mkdir(exist_ok=True)
        np.savez(work / kind / f"shard-{number:05d}.npz", **columns, **values)


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """A corpus of two shards, small batches, and a checkpoint after every step."""
    for number in range(2):
        write_shard(tmp_path, number)
    monkeypatch.setattr("training.spec.MIMI", SMALL)
    monkeypatch.setattr(crops, "BATCH", 1)
    monkeypatch.setattr(crops, "FRAMES", 4)
    monkeypatch.setattr(batches, "ROWS", 2)
    monkeypatch.setattr(common.Clock, "due", lambda *_: True)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


def run(monkeypatch, trainer, work: Path, *options: str) -> None:
    command = [trainer.__name__, "--work", str(work), "--device", "cpu", "--steps", "2", *options]
    monkeypatch.setattr("sys.argv", command)
    trainer.main()


@pytest.mark.parametrize(
    ("trainer", "name", "options"),
    [
        (ear, "ear.safetensors", []),
        (codec, "codec.safetensors", []),
        (codec, "codec.safetensors", ["--start", START, "--encoder-from", "7"]),
        (codec, "decoder.safetensors", ["--freeze", "--name", "decoder.safetensors"]),
        (lm, "lm.safetensors", []),
    ],
    ids=["ear", "codec", "from another codec", "decoder", "lm"],
)
def test_a_trainer_goes_on_exactly_where_it_stopped(tmp_path, monkeypatch, trainer, name, options):
    if START in options:
        run(monkeypatch, codec, tmp_path, "--until", "0")
        (tmp_path / name).unlink()
        (tmp_path / "codec").rename(tmp_path / START)
        options = [str(tmp_path / START) if one == START else one for one in options]
    run(monkeypatch, trainer, tmp_path, *options, "--until", "1")
    first = load_file(tmp_path / name)
    run(monkeypatch, trainer, tmp_path, *options)
    resumed = load_file(tmp_path / name)
    (tmp_path / name).unlink()
    run(monkeypatch, trainer, tmp_path, *options)
    at_once = load_file(tmp_path / name)
    assert any(not torch.equal(first[key], resumed[key]) for key in first)
    assert [key for key in at_once if not torch.equal(resumed[key], at_once[key])] == []


def test_the_decoder_alone_leaves_encoder_and_codebooks_as_they_were(tmp_path, monkeypatch):
    run(monkeypatch, ear, tmp_path)
    run(monkeypatch, codec, tmp_path, "--until", "0")
    before = load_file(tmp_path / "codec" / "model.safetensors")
    start, pleased = str(tmp_path / "codec"), str(tmp_path / "ear.safetensors")
    run(monkeypatch, codec, tmp_path, "--freeze", "--name", "decoder.safetensors",
        "--start", start, "--ear", pleased)  # fmt: skip
    after = load_file(tmp_path / "codec" / "model.safetensors")
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    decoder = ("upsample", "decoder_transformer", "decoder")
    assert {key.split(".")[0] for key in changed} == {*decoder, "quantizer"}
    for key in (key for key in changed if key.startswith("quantizer")):
        # the spoken entries, and the output projections that discard what sets them apart
        if "codebook" in key:
            assert torch.equal(before[key][:ENCODED], after[key][:ENCODED])
        else:
            assert "output_proj" in key


def test_a_phone_classifier_measures_no_difference_where_there_is_none():
    hearing = ear.Ear()
    sound = torch.randn(1, 1, 4 * FRAME, generator=torch.Generator().manual_seed(1)) * 0.1
    symbols = torch.tensor([[1, 2, 3, 4]])
    assert hearing.compare(sound, sound, symbols)[0] == 0
    assert hearing.compare(torch.zeros_like(sound), sound, symbols)[0] > 0.2


def test_a_classifier_that_hears_the_phones_finds_no_fault_in_them():
    hearing = ear.Ear()
    sound = torch.randn(1, 1, 4 * FRAME, generator=torch.Generator().manual_seed(1)) * 0.1
    heard = hearing(sound)[0].argmax(1)
    assert hearing.compare(sound, sound, heard)[1] < hearing.compare(sound, sound, heard + 1)[1]
