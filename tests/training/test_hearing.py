"""The encoder that hears pitch and size, and the other synthesizers it learns from."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_training_resume import run, write_shard
from training import corpus, encode, hearing, others, speakers
from training.common import Clock, codec_of
from training.prosodic import PITCHES, SIZES

NAME = "hearing.safetensors"


def pulses(hertz: float, seconds: float = 1.6) -> np.ndarray:
    """A harmonic sound."""
    time = np.arange(int(seconds * 24_000)) / 24_000
    sound = sum(np.cos(2 * np.pi * hertz * n * time) / n for n in range(1, 12))
    return (0.1 * np.asarray(sound)).astype(np.float32)


@pytest.fixture
def work(tmp_path, monkeypatch, small) -> Path:
    """A corpus of two shards of other speakers and, in `start`, a codec of random weights."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(Clock, "due", lambda *_: True)
    monkeypatch.setattr(hearing, "LENGTHS", (4,))
    # Channels need scipy, which only training installs.
    monkeypatch.setattr(speakers, "channel", lambda sound, _: sound)
    for number in (corpus.VOICES, corpus.VOICES + 1):
        write_shard(tmp_path, number, count=8)
    small.save_pretrained(tmp_path / "start")
    return tmp_path


def hear(monkeypatch, work: Path, *options: str) -> dict[str, torch.Tensor]:
    """Trains, and returns the checkpoint."""
    run(monkeypatch, hearing, work, "--start", str(work / "start"), *options)
    return load_file(work / NAME)


def test_a_trainer_goes_on_exactly_where_it_stopped(work, monkeypatch):
    first = hear(monkeypatch, work, "--until", "1")
    resumed = hear(monkeypatch, work)
    (work / NAME).unlink()
    at_once = hear(monkeypatch, work)
    assert any(not torch.equal(first[key], resumed[key]) for key in first)
    assert [key for key in at_once if not torch.equal(resumed[key], at_once[key])] == []


def test_codebook_1_tells_pitch_and_size_and_the_decoder_stays(work, monkeypatch):
    hear(monkeypatch, work)
    codec, before = codec_of(work / "heard").eval(), codec_of(work / "start")
    codes = encode.encode(codec, corpus.load(work, [corpus.VOICES]), "cpu")
    assert min(code[:, 1].min() for code in codes) >= 0
    assert max(code[:, 1].max() for code in codes) < hearing.HEARD_CODES
    assert len({code for row in codes for code in row[:, 2]}) > 4
    after = codec.decoder.state_dict()
    assert all(torch.equal(after[key], one) for key, one in before.decoder.state_dict().items())
    assert not torch.equal(
        codec.encoder.downsample.conv.weight, before.encoder.downsample.conv.weight
    )


def test_pitch_and_size_are_learnt_from_features_that_tell_them(small):
    random_ = np.random.default_rng(1)
    lines = random_.normal(size=(2, small.config.hidden_size))

    def row() -> hearing.Heard:
        high, size = random_.uniform(5, 30), random_.uniform(0.8, 1.2)
        told = np.outer(np.ones(32), (high / 10 - 2) * lines[0] + (size * 8 - 8) * lines[1])
        told = told + random_.normal(0, 0.1, told.shape)
        return hearing.Heard(told.astype(np.float16), np.full(16, high), size)

    model, rows = hearing.Trainee(small), [row() for _ in range(64)]
    held = [row() for _ in range(16)]
    optimizer = torch.optim.Adam(model.acoustic.parameters(), 0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hearing, "LENGTHS", (12,))
        for step in range(150):
            optimizer.zero_grad()
            model.losses(hearing.batch(rows, 1, step))["loss"].backward()
            optimizer.step()
    figures = hearing.evaluate(model, held)
    assert figures["pitch"] > 0.9
    assert figures["size"] > 0.8
    assert figures["moved"] == 0


def test_an_unknown_size_has_no_loss(small):
    model = hearing.Trainee(small)
    features, periods = torch.randn(2, 8, small.config.hidden_size), torch.full((2, 4), 9.0)
    unknown = model.losses((features, periods, torch.tensor([float("nan")] * 2)))
    assert unknown["size"] == 0
    assert unknown["loss"].isfinite()


def test_the_entry_of_a_code_is_nearest_to_itself_and_near_to_the_next_pitch(small):
    entries = hearing.Trainee(small).entries()
    assert entries.shape == (PITCHES * SIZES, small.config.codebook_dim)
    distances = torch.cdist(entries, entries)
    assert torch.equal(distances.argmin(1), torch.arange(len(entries)))
    low = 5 * SIZES
    assert distances[low, low + SIZES] < distances[low, low + 10 * SIZES]


@pytest.mark.parametrize("hertz", [80.0, 125.0, 240.0])
def test_f0_is_found_and_noise_has_none(hertz):
    found = others.pitch(pulses(hertz))
    assert len(found) == 20
    assert np.median(found[found > 0]) == pytest.approx(hertz, rel=0.03)
    noise = np.random.default_rng(1).normal(0, 0.1, 24_000).astype(np.float32)
    assert (others.pitch(noise) > 0).sum() <= 1


def test_utterances_of_other_synthesizers_have_a_pitch_in_every_frame(tmp_path):
    assert others.load(tmp_path) == []
    f0 = np.array([0.0, 100.0, 0.0, 200.0])
    audio = np.zeros(4 * 1920, np.int16)
    np.savez(tmp_path / "others.npz", audio=audio, f0=f0, frames=[4], size=[0.9])
    (row,) = others.load(tmp_path)
    assert row["periods"] == pytest.approx([8, 8, 8 * 2**0.5, 16])
    assert row["size"] == 0.9


def test_a_room_adds_an_echo_and_keeps_the_level():
    click = np.zeros(12_000, np.float32)
    click[1000] = 0.5
    rooms = [speakers.room(click, random.Random(seed)) for seed in range(12)]
    echoes = [room for room in rooms if (np.abs(room[1100:4000]) > 1e-4).mean() > 0.2]
    assert 1 <= len(echoes) < len(rooms)
    assert all(len(room) == len(click) for room in rooms)
    assert all(np.abs(room).max() == pytest.approx(speakers.PEAK, rel=1e-3) for room in echoes)
    assert all(not room[:990].any() or np.abs(room[:990]).max() < 1e-3 for room in rooms)
