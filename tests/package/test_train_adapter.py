"""The worked example of docs/voices.md: an adapter trained on `tiny`, and the engine with it."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from csm_tts_plugin.__main__ import main
from csm_tts_plugin.engine.adapters import is_adapter
from csm_tts_plugin.voices.measure import measure
from scripts.setup_tools import ROOT
from tests.support.recordings import RATE, READER, heard

pytestmark = pytest.mark.timeout(600)

TEXT = "The boat came home before the rain began."
EXAMPLE = [sys.executable, str(ROOT / "examples/train_adapter.py")]


def run(*arguments):
    return subprocess.run([*EXAMPLE, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The program's output, and the adapter's folder."""
    folder = tmp_path_factory.mktemp("adapters") / "anna"
    ended = run(folder, "--model", "tiny", "--steps", "24")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, folder


def test_the_loss_falls_and_a_peft_folder_is_left(trained):
    output, folder = trained
    losses = [float(found) for found in re.findall(r"step \d+: loss ([\d.]+)", output)]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    assert losses == sorted(losses, reverse=True)
    assert is_adapter(folder)


def test_the_engine_speaks_with_it(trained, tmp_path, monkeypatch):
    for name in ("CSM_ENGINE_URL", "CSM_ADAPTER", "CSM_MODEL"):
        monkeypatch.delenv(name, raising=False)
    spoken = []
    for name, adapter in (("plain", []), ("anna", ["--adapter", str(trained[1])])):
        file = tmp_path / f"{name}.wav"
        options = ["--model", "tiny", "--seed", "3", "-o", str(file), "--watermark", "off"]
        assert main(["say", TEXT, *options, *adapter]) == 0
        spoken.append(soundfile.read(file)[0])
    plain, anna = spoken
    assert np.abs(anna).max() > 0.05
    assert len(anna) > len(plain) // 2, "it speaks the whole sentence"
    low, high = (measure(some.astype(np.float32), 24_000)[0].pitch_hz for some in spoken)
    assert high > 1.08 * low, "it was trained on a voice seven semitones higher"


def test_recordings_are_encoded(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    soundfile.write(folder / "one.wav", heard(READER[1]).samples, RATE)
    (folder / "one.txt").write_text(heard(READER[1]).text)
    ended = run(tmp_path / "anna", "--recordings", folder, "--steps", "2")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("loss") == 2
    assert is_adapter(tmp_path / "anna")


def test_recordings_that_are_none_are_one_line(tmp_path):
    ended = run(tmp_path / "anna", "--recordings", tmp_path)
    assert ended.returncode == 1
    assert "holds no pair of name.wav and name.txt" in ended.stderr
    assert len([line for line in ended.stderr.splitlines() if "train_adapter" in line]) == 1
    assert not (tmp_path / "anna").exists()
