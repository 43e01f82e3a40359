"""`detect`: its output and its exit codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from csm_tts_plugin.__main__ import main
from csm_tts_plugin.audio.watermark import marked
from tests.support.recordings import READER, heard


@pytest.fixture
def files(tmp_path, monkeypatch):
    """`plain.wav`, `made.flac`, `not.wav`, `call.ogg` (left a person, right generated speech)."""
    monkeypatch.chdir(tmp_path)
    plain = heard(READER[0], 24_000).samples[: 4 * 24_000]
    made = marked(plain)
    soundfile.write("plain.wav", plain, 24_000)
    soundfile.write("made.flac", made, 24_000)
    silence = np.zeros_like(plain)
    left, right = np.concatenate([plain, silence]), np.concatenate([silence, made])
    soundfile.write("call.ogg", np.stack([left, right], axis=1), 24_000)
    (tmp_path / "not.wav").write_text("no sound")


def test_marked_speech_is_told_with_its_seconds(files, capsys):
    assert main(["detect", "made.flac"]) == 0
    first, second = capsys.readouterr().out.strip().split("\n")
    assert first.startswith("made.flac: marked, confidence ")
    assert len(second.split("s", 1)[1].split()) == 4


def test_unmarked_speech_is_3(files, capsys):
    assert main(["detect", "plain.wav"]) == 3
    assert "plain.wav: not marked, confidence 0.0" in capsys.readouterr().out


def test_one_unmarked_file_of_several_is_3_and_all_are_looked_at(files, capsys):
    assert main(["detect", "plain.wav", "made.flac"]) == 3
    assert capsys.readouterr().out.count("confidence") == 2


def test_a_marked_reply_is_found_in_a_call(files, capsys):
    assert main(["detect", "--json", "call.ogg"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == "call.ogg"
    assert found["length"] == 8.0
    assert max(found["seconds"][:3]) < 0.3
    assert min(found["seconds"][5:]) > 0.7


def test_what_is_no_sound_is_one_line_and_the_others_are_still_told(files, capsys):
    assert main(["detect", "not.wav", "missing.wav", "made.flac"]) == 2
    printed = capsys.readouterr()
    assert "made.flac: marked" in printed.out
    lines = printed.err.strip().split("\n")
    assert lines[0].startswith("csm_tts_plugin: not.wav: The recording is not a WAV")
    assert lines[1].startswith("csm_tts_plugin: missing.wav: no such file")
    assert len(lines) == 2
