"""`voices` stores only with consent, and its checks say what to record again."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from csm_tts_plugin.__main__ import main
from csm_tts_plugin.commands import voice_check
from csm_tts_plugin.voices.choose import LEVEL_DB
from csm_tts_plugin.voices.measure import measure
from csm_tts_plugin.voices.store import VoiceStore
from tests.support.recordings import RATE, READER, heard, noise, path_of, whispered, words_of

CONSENT = ["--speaker", "Ada", "--statement", "My voice may speak here."]
LONG = READER[0]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    for name in [name for name in os.environ if name.startswith("CSM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSM_VOICES_DIR", str(tmp_path / "voices"))
    return tmp_path / "voices"


def write(samples, name="r.wav", rate=RATE) -> Path:
    soundfile.write(name, samples, rate)
    Path(name).with_suffix(".txt").write_text(words_of(LONG))
    return Path(name)


def voices(*words) -> int:
    return main(["voices", *map(str, words)])


def refused(capsys, *words) -> str:
    assert voices(*words) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("csm_tts_plugin: ")
    assert errors.count("\n") == 1
    return errors


def test_a_voice_is_kept_listed_and_removed(folder, capsys):
    assert voices("add", "ada", path_of(LONG), *CONSENT, "--date", "2025-01-31") == 0
    voice = VoiceStore(folder).load("ada")
    assert (voice.consent.speaker, voice.consent.date) == ("Ada", "2025-01-31")
    assert voice.transcript == words_of(LONG), "the words lie beside the recording"
    assert abs(measure(voice.audio, 24_000)[0].level_db - LEVEL_DB) < 1.0
    assert json.loads((folder / "ada.json").read_text())["sha256"] == voice.sha256

    assert voices("list") == 0
    assert "ada" in capsys.readouterr().out
    assert voices("remove", "ada") == 0
    assert list(folder.iterdir()) == []
    assert voices("list") == 0
    assert "no voices in" in capsys.readouterr().out


@pytest.mark.parametrize(("rate", "band"), [(16_000, "wide"), (8_000, "narrow")])
def test_the_record_and_the_list_say_a_telephones_band(rate, band, folder, capsys):
    """Measured in the audio: the file has 24 kHz, as all audio from LiveKit."""
    raised = soxr.resample(heard(LONG, rate).samples, rate, 24_000)
    file = write(raised, rate=24_000)
    assert voices("add", "ada", file, *CONSENT, "--transcript", words_of(LONG)) == 0
    assert json.loads((folder / "ada.json").read_text())["band"] == band
    assert voices("list") == 0
    assert ("telephone bandwidth" in capsys.readouterr().out) == (band == "narrow")


@pytest.mark.parametrize("missing", [CONSENT[:2], CONSENT[2:], [], ["--speaker", "", *CONSENT[2:]]])
def test_without_consent_nothing_is_kept(missing, folder, capsys):
    assert "only with consent" in refused(capsys, "add", "ada", path_of(LONG), *missing)
    assert not folder.exists()


def test_a_consent_needs_a_date(folder, capsys):
    errors = refused(capsys, "add", "ada", path_of(LONG), *CONSENT, "--date", "yesterday")
    assert "2025-01-31" in errors
    assert not folder.exists()


@pytest.mark.parametrize("id", ["../x", "A", "", "x/y", "x" * 65])
def test_an_id_is_no_path(id, folder, capsys):
    assert "id has" in refused(capsys, "add", id, path_of(LONG), *CONSENT)
    assert "id has" in refused(capsys, "remove", id)
    assert not folder.exists()


def test_a_poor_recording_is_kept_only_by_force(folder, capsys):
    samples = heard(LONG).samples
    poor = write(samples + noise(samples, 8))
    assert "above the noise" in refused(capsys, "add", "ada", poor, *CONSENT)
    assert not folder.exists()
    assert voices("add", "ada", poor, *CONSENT, "--force") == 0
    assert voices("list") == 0


def test_a_voice_is_replaced_only_when_asked(folder, capsys):
    assert voices("add", "ada", path_of(LONG), *CONSENT) == 0
    assert "already" in refused(capsys, "add", "ada", path_of(READER[2]), *CONSENT)
    assert voices("add", "ada", path_of(READER[2]), *CONSENT, "--replace") == 0
    assert VoiceStore(folder).load("ada").transcript == words_of(READER[2])


def test_a_tampered_voice_is_listed_as_bad(folder, capsys):
    assert voices("add", "ada", path_of(LONG), *CONSENT) == 0
    (folder / "ada.wav").write_bytes(path_of(READER[2]).read_bytes())
    capsys.readouterr()
    assert voices("list") == 1
    assert "BAD  ada" in capsys.readouterr().out
    assert "SHA-256" in refused(capsys, "check", "ada")


def test_without_a_folder_the_variable_is_named(monkeypatch, capsys):
    monkeypatch.delenv("CSM_VOICES_DIR")
    for words in (["list"], ["remove", "ada"], ["check", "ada"]):
        assert "CSM_VOICES_DIR" in refused(capsys, *words)


# Files of users


@pytest.mark.parametrize(
    ("name", "seconds", "cause"),
    [("short.wav", 0.2, "less than"), ("long.flac", 1_200.0, "more than")],
)
def test_too_short_and_too_long_files_are_refused(name, seconds, cause, capsys):
    write(np.resize(heard(LONG).samples, int(seconds * RATE)), name)
    assert cause in refused(capsys, "check", name, "--no-stt")
    assert cause in refused(capsys, "add", "ada", name, *CONSENT)


def test_missing_silent_and_lying_files_are_refused(capsys):
    write(np.zeros(5 * RATE), "silent.wav")
    Path("lying.wav").write_bytes(b"not a sound at all" * 99)
    for name, cause in (
        ("missing.wav", "no such file"),
        ("silent.wav", "is silent"),
        ("lying.wav", "not a WAV"),
    ):
        assert cause in refused(capsys, "check", name)
        assert cause in refused(capsys, "add", "ada", name, *CONSENT)


@pytest.mark.parametrize(
    ("rate", "channels", "form"),
    [
        (RATE, 1, {"subtype": "PCM_U8"}),
        (96_000, 1, {"subtype": "PCM_24"}),
        (RATE, 2, {"subtype": "PCM_16"}),
        (RATE, 1, {"format": "FLAC"}),
    ],
    ids=["8-bit", "96 kHz", "stereo", "FLAC that is named .wav"],
)
def test_odd_but_honest_files_are_taken(rate, channels, form, folder):
    sound = np.stack([heard(LONG, rate).samples] * channels, axis=1)
    soundfile.write("r.wav", sound, rate, **form)
    # 8 bits add quantization noise 24 dB below this speech: audible, but good enough.
    assert voices("add", "ada", "r.wav", "--transcript", words_of(LONG), *CONSENT) == 0
    assert 6.0 < VoiceStore(folder).load("ada").seconds < 8.0


def test_a_recording_without_words_is_not_kept(capsys):
    soundfile.write("r.wav", heard(LONG).samples, RATE)
    assert "--transcript" in refused(capsys, "add", "ada", "r.wav", *CONSENT)
    Path("r.txt").write_bytes(b"\xff\xfe\xff")
    assert "UTF-8" in refused(capsys, "add", "ada", "r.wav", *CONSENT)
    assert "--transcript" in refused(capsys, "add", "ada", "r.wav", "--transcript", " ", *CONSENT)


# What is checked


def test_a_good_recording_passes(capsys):
    assert voices("check", path_of(LONG), "--no-stt") == 0
    printed = capsys.readouterr().out
    assert "BAD" not in printed
    for subject in ("duration", "level", "noise", "clipping", "speaker", "edges", "bandwidth"):
        assert f"ok   {subject}: " in printed
    assert "dashwood" not in printed


@pytest.mark.parametrize(
    ("subject", "change"),
    [
        ("duration", lambda x: x[: 2 * RATE]),
        ("duration", lambda x: np.resize(x, 20 * RATE)),
        ("level", lambda x: 0.02 * x),
        ("noise", lambda x: x + noise(x, 8)),
        ("clipping", lambda x: np.clip(20 * x, -0.99, 0.99)),
        ("speaker", whispered),
        ("edges", lambda x: x[3 * RATE // 2 :]),
    ],
)
def test_each_fault_is_found_with_its_cure(subject, change, capsys):
    assert voices("check", write(change(heard(LONG).samples)), "--no-stt") == 1
    line = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith(f"BAD  {subject}")
    )
    assert ";" in line


def test_a_telephones_band_is_a_note_and_no_fault(capsys):
    assert voices("check", write(heard(LONG, 8_000).samples, rate=8_000), "--no-stt") == 0
    assert "note bandwidth: to 4000 Hz, that of a telephone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "code"), [("And Mister John Dashwood had then", 1), (words_of(LONG).title(), 0)]
)
def test_the_transcript_is_held_against_what_is_heard(said, code, monkeypatch, capsys):
    monkeypatch.setattr(voice_check, "_hear", lambda samples, language: said)
    assert voices("check", path_of(LONG)) == code
    assert "agree with Whisper's transcript" in capsys.readouterr().out


def test_words_in_another_language_than_the_recordings_do_not_match(capsys):
    pytest.importorskip("faster_whisper", reason="Whisper hears the words: run `make setup`")
    words = ("--transcript", words_of("allison_busy"))
    assert voices("check", path_of("june_nogo"), *words) == 1
    assert "BAD  transcript: " in capsys.readouterr().out
    assert voices("check", path_of("june_nogo"), "--language", "fr") == 0


def test_without_offline_models_the_transcript_is_not_compared(monkeypatch, capsys):
    monkeypatch.setattr("csm_tts_plugin.offline.models._PLACES", ())
    assert voices("check", path_of(LONG)) == 0
    assert "not compared" in capsys.readouterr().out


def test_a_picture_is_drawn(capsys):
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib draws the picture and is not installed: `make setup`")
    assert voices("check", path_of(LONG), "--no-stt", "-o", "check.png") == 0
    assert Path("check.png").read_bytes().startswith(b"\x89PNG")
    assert "name a .png" in refused(capsys, "check", path_of(LONG), "--no-stt", "-o", "no/x.png")
    assert "name a .png" in refused(capsys, "check", path_of(LONG), "--no-stt", "-o", "x.words")
