"""A voice without a recording, its transcript and consent is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from csm_tts_plugin.audio.reference import encode_wav
from csm_tts_plugin.engine.api import EngineInfo, Turn, VoicePrompt
from csm_tts_plugin.errors import AudioError, ConsentError, TextError, VoiceError
from csm_tts_plugin.voices import stock
from csm_tts_plugin.voices.store import VoiceStore
from csm_tts_plugin.voices.voice import Consent, Voice
from csm_tts_plugin.wire.protocol import InlineVoice

CANARY = "canary words that must not leak"
CONSENT = Consent(speaker="Ada", statement="My voice may be used in this test.", date="2025-01-31")


def sound(seconds: float = 1.0, pitch: float = 200.0) -> np.ndarray:
    times = np.arange(int(24_000 * seconds)) / 24_000
    return (0.4 * np.sin(2 * np.pi * pitch * times)).astype(np.float32)


def voice(**changes) -> Voice:
    arguments = {"transcript": CANARY, "consent": CONSENT, **changes}
    return Voice.from_audio(sound(), 24_000, **arguments)


@pytest.fixture
def store(tmp_path) -> VoiceStore:
    return VoiceStore(tmp_path / "voices")


def test_a_file_becomes_a_voice_that_the_engine_can_take(tmp_path):
    path = tmp_path / "ref.wav"
    path.write_bytes(encode_wav(sound()))
    made = Voice.from_file(path, transcript=f"  {CANARY}\n", consent=CONSENT)
    prompt = made.prompt()
    assert prompt.speaker == "Ada"
    assert [turn.text for turn in prompt.turns] == [CANARY]
    assert np.array_equal(prompt.turns[0].audio, made.audio)
    assert made.seconds == 1.0
    assert prompt.key == made.key == voice().key


def test_the_key_follows_audio_words_and_speaker_and_nothing_else():
    later = Consent(speaker="Ada", statement="Renewed.", date="2026-01-31")
    assert voice().key == voice(consent=later).key == voice(id="ada").key
    other = Voice.from_audio(sound(pitch=201), 24_000, transcript=CANARY, consent=CONSENT)
    keys = {voice().key, other.key, voice(transcript="x").key, voice(speaker="caller").key}
    assert len(keys) == 4


def test_the_wire_changes_nothing_of_a_voice():
    for rate in (8_000, 24_000, 44_100):
        samples = sound()[:: 24_000 // rate] if rate < 24_000 else sound(rate / 24_000)
        sent = Voice.from_audio(samples, rate, transcript=CANARY, consent=CONSENT, speaker="caller")
        got = Voice.from_inline(sent.inline())
        assert got.key == sent.key
        assert got.sha256 == sent.sha256
        assert got.consent == CONSENT


@pytest.mark.parametrize("transcript", ["", "  \n", None, "x" * 2_001])
def test_a_voice_without_usable_words_is_refused(transcript):
    with pytest.raises(TextError, match="transcript"):
        voice(transcript=transcript)


@pytest.mark.parametrize("consent", [None, {"speaker": "Ada"}, "yes"])
def test_a_voice_without_consent_is_refused_before_its_file_is_read(consent, tmp_path):
    with pytest.raises(ConsentError, match="needs the speaker's consent"):
        Voice.from_file(tmp_path / "missing.wav", transcript=CANARY, consent=consent)


def test_missing_and_broken_files_are_named(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF" + bytes(99))
    for name, cause in (("missing.wav", "no such file"), ("broken.wav", "cannot be decoded")):
        with pytest.raises(AudioError, match=f"^{name}: .*{cause}"):
            Voice.from_file(tmp_path / name, transcript=CANARY, consent=CONSENT)


@pytest.mark.parametrize(
    "changes",
    [
        {"speaker": " "},
        {"speaker": "a\nb"},
        {"speaker": "x" * 65},
        {"statement": ""},
        {"date": "yesterday"},
        {"date": ""},
        {"date": 20250131},
    ],
)
def test_a_consent_must_say_who_what_and_when(changes):
    with pytest.raises(ConsentError, match=next(iter(changes))):
        replace(CONSENT, **changes)


def test_an_inline_voice_without_its_consent_is_refused():
    sent = voice().inline()
    with pytest.raises(ConsentError, match="lacks statement, date"):
        Voice.from_inline(InlineVoice(sent.audio, sent.transcript, {"speaker": "Ada"}))


@pytest.mark.parametrize("speaker", ["", " ", "a\tb", "x" * 65])
def test_a_speaker_has_a_printable_name(speaker):
    with pytest.raises(VoiceError, match="name"):
        voice(speaker=speaker)


def test_representations_hold_neither_words_nor_sound():
    assert CANARY not in repr(voice()) + repr(voice().inline()) + repr(voice().prompt())
    assert CONSENT.statement not in repr(voice())


def test_a_stored_voice_comes_back_the_same(store):
    kept = voice(speaker="caller")
    assert store.add(kept, id="ada") == "ada"
    got = store.load("ada")
    assert (got.id, got.key, got.consent) == ("ada", kept.key, CONSENT)
    assert [(entry.id, entry.speaker, entry.problem) for entry in store.list()] == [
        ("ada", "Ada", None)
    ]


def test_the_record_beside_the_audio_is_the_consent(store):
    store.add(voice(), id="ada")
    record = json.loads((store.folder / "ada.json").read_text())
    assert {"speaker": "Ada", "date": "2025-01-31", "transcript": CANARY}.items() <= record.items()
    assert record["sha256"] == voice().sha256
    for path in store.folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_audio_that_was_changed_is_refused(store):
    store.add(voice(), id="ada")
    (store.folder / "ada.wav").write_bytes(encode_wav(sound(pitch=201)))
    with pytest.raises(VoiceError, match="not the one consented to"):
        store.load("ada")
    assert "SHA-256" in store.list()[0].problem


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (None, "no consent record"),
        ("not json", "not JSON"),
        ("[]", "not JSON"),
        ("[" * 50_000, "not JSON"),
        ("{}", "lacks speaker, statement, date"),
        ('{"speaker": "Ada", "statement": "", "date": "2025-01-31"}', "statement"),
    ],
)
def test_a_recording_without_a_valid_record_is_no_voice(store, record, error):
    store.add(voice(), id="ada")
    path = store.folder / "ada.json"
    path.unlink() if record is None else path.write_text(record)
    with pytest.raises(ConsentError, match=error):
        store.load("ada")


def test_a_record_without_a_hash_is_no_consent_to_this_audio(store):
    store.add(voice(), id="ada")
    path = store.folder / "ada.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps(record))
    with pytest.raises(VoiceError, match="SHA-256"):
        store.load("ada")


def test_an_id_that_is_taken_is_kept_unless_replaced(store):
    store.add(voice(), id="ada")
    with pytest.raises(VoiceError, match="already"):
        store.add(voice(transcript="other"), id="ada")
    store.add(voice(transcript="other"), id="ada", replace=True)
    assert store.load("ada").transcript == "other"


def test_removing_a_voice_deletes_audio_and_record(store):
    store.add(voice(), id="ada")
    store.remove("ada")
    assert list(store.folder.iterdir()) == []
    for action in (store.remove, store.load):
        with pytest.raises(VoiceError, match="no voice ada"):
            action("ada")
    assert store.list() == []


@pytest.mark.parametrize("id", ["../ada", "a/b", "Ada", "", "x" * 65, "a\0", "ada\n", ".", None])
def test_an_id_is_never_a_path(store, id):
    for action in (store.load, store.remove):
        with pytest.raises(VoiceError, match="id has 1 to 64"):
            action(id)
    with pytest.raises(VoiceError, match="id has 1 to 64"):
        store.add(voice(), id=id or "")


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VoiceError, match="cannot be stored"):
        VoiceStore(tmp_path / "file").add(voice())


def test_stray_files_in_the_folder_are_listed_with_their_problem(store):
    store.add(voice(), id="ada")
    (store.folder / "My Voice.wav").write_bytes(b"")
    (store.folder / "lone.json").write_text("{}")
    problems = {entry.id: entry.problem for entry in store.list()}
    assert problems["ada"] is None
    assert "id has" in problems["My Voice"]
    assert "no voice lone" in problems["lone"]


def test_only_tiny_has_a_stock_recording():
    assert stock.stock_voice("eustlb/csm-1b") is None
    assert stock.stock_voice("../tiny") is None


def test_the_stock_recording_is_read_with_its_words(tmp_path, monkeypatch):
    monkeypatch.setattr(stock, "_FOLDER", tmp_path)
    assert stock.stock_voice("tiny") is None
    stock._read.cache_clear()
    (tmp_path / "stock.wav").write_bytes(encode_wav(sound()))
    with pytest.raises(VoiceError, match="no transcript"):
        stock.stock_voice("tiny")
    (tmp_path / "stock.json").write_text('{"transcript": "Nobody says this."}')
    prompt = stock.stock_voice("tiny")
    assert prompt.speaker == "stock"
    assert prompt.turns[0].text == "Nobody says this."
    assert len(prompt.turns[0].audio) == 24_000


def told(seconds: float | None) -> EngineInfo:
    return EngineInfo("tiny", "cpu", "float32", 0, 8, 4096, {}, reference_seconds=seconds)


@pytest.mark.parametrize(("seconds", "kept"), [(None, 3), (9.0, 3), (2.5, 2), (1.0, 1)])
def test_a_reference_is_cut_to_whole_turns_within_the_models_limit(seconds, kept):
    turns = tuple(Turn("caller", f"part {n}", sound(1.0)) for n in range(3))
    prompt = VoicePrompt("caller-1", "caller", turns, private=True)
    limited = stock.usable(prompt, told(seconds))
    assert limited == replace(prompt, turns=turns[:kept])


@pytest.mark.parametrize("seconds", [0.0, 0.9])
def test_where_no_turn_is_short_enough_the_stock_voice_speaks(seconds):
    prompt = VoicePrompt("caller-1", "caller", (Turn("caller", "words", sound(1.0)),))
    own = stock.stock_voice("tiny")
    assert stock.usable(prompt, told(seconds)) == own
    assert stock.usable(own, told(seconds)) == own
    assert stock.usable(None, told(seconds)) is None
