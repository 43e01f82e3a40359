"""The library's conversations, references, files and playback."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from csm_tts_plugin.audio.detection import detect
from csm_tts_plugin.errors import AudioError, RequestError, TextError, VoiceError
from csm_tts_plugin.library.generator import generate_streaming_audio, load_reference_audio
from tests.engine.tools import noise
from tests.library.speaking import FRAME, expected, inputs_of, reference, sound, speak, turn

# Conversations


def test_references_come_back_with_their_audio(wav, tmp_path):
    flac = tmp_path / "other.flac"
    soundfile.write(flac, noise(1.0, 6), 24_000)
    given = [reference(wav, note=1), reference(flac, speaker_id=1)]
    one, two = load_reference_audio(given)
    assert {key: one[key] for key in given[0]} == given[0]
    assert one["audio_array"].dtype == np.float32
    assert abs(len(one["audio_array"]) - 36_000) < 3, "1.5 s at 24 kHz"
    np.testing.assert_allclose(two["audio_array"], noise(1.0, 6), atol=1e-4)
    assert "audio_array" not in given[0], "what was passed in is left alone"


def _bad_references(folder) -> dict:
    (folder / "broken.wav").write_bytes(b"RIFF....WAVE no such thing")
    (folder / "song.mp3").write_bytes(b"\xff\xfb" * 400)
    soundfile.write(folder / "silent.wav", np.zeros(24_000), 24_000)
    soundfile.write(folder / "short.wav", noise(0.1), 24_000)
    return {
        "missing": (reference(folder / "no.wav"), AudioError, "no.wav: no such file"),
        "folder": (reference(folder), AudioError, "this is a folder"),
        "broken": (reference(folder / "broken.wav"), AudioError, "broken.wav: .* decoded"),
        "format": (reference(folder / "song.mp3"), AudioError, "song.mp3: .* not a WAV"),
        "silent": (reference(folder / "silent.wav"), AudioError, "silent.wav: .* silent"),
        "short": (reference(folder / "short.wav"), AudioError, "short.wav: .* 0.10 s"),
        "no path": ({"text": "a", "speaker_id": "0"}, RequestError, "Reference 1 lacks path"),
        "no keys": ({"path": "a.wav"}, RequestError, "lacks text, speaker_id"),
        "no words": (reference("a.wav", text=" "), VoiceError, "no transcript"),
        "a number": (3, RequestError, "Reference 1 must be a dictionary"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "missing",
        "folder",
        "broken",
        "format",
        "silent",
        "short",
        "no path",
        "no keys",
        "no words",
        "a number",
    ],
)
def test_a_bad_reference_is_an_error_that_names_it_and_the_cause(tmp_path, case):
    given, kind, told = _bad_references(tmp_path)[case]
    with pytest.raises(kind, match=told) as caught:
        load_reference_audio([given])
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_references_must_be_a_list():
    for given in ({"path": "a.wav"}, "a.wav", None):
        with pytest.raises(RequestError, match="list of dictionaries"):
            load_reference_audio(given)


def test_references_go_before_the_text_and_it_is_spoken_in_their_role(speaker, small, wav):
    heard = speak(speaker, "say this", reference_data=[reference(wav, speaker_id=7)])
    (loaded,) = load_reference_audio([reference(wav)])
    inputs = inputs_of(
        small, turn("some words", loaded["audio_array"], "7"), turn("say this", role="7")
    )
    theirs = expected(small.model, inputs, max_new_tokens=6, do_sample=False)
    np.testing.assert_allclose(heard, theirs.clamp(-1, 1), atol=1e-4)
    again = speak(speaker, "say this", reference_data=[{**loaded, "speaker_id": 7}])
    np.testing.assert_array_equal(again, heard)


def test_a_conversation_may_hold_samples_files_and_plain_text(speaker, wav):
    (loaded,) = load_reference_audio([reference(wav)])
    samples = [turn("some words", loaded["audio_array"]), turn("say this")]
    heard = speak(speaker, samples)
    by_path = [
        {
            "role": 0,
            "content": [{"type": "text", "text": "some words"}, {"type": "audio", "path": wav}],
        },
        {"role": "0", "content": "say this"},
    ]
    np.testing.assert_array_equal(speak(speaker, by_path), heard)
    plain = speak(speaker, "say this")
    assert not np.array_equal(plain, heard)
    np.testing.assert_array_equal(speak(speaker, [turn("say this")]), plain)


@pytest.mark.parametrize(
    ("conversation", "kind", "told"),
    [
        ("", TextError, "nothing to say"),
        ("  \n", TextError, "nothing to say"),
        ([turn("hello"), turn(" ")], TextError, "nothing to say"),
        ([], RequestError, "not empty"),
        (5, RequestError, "conversation must be"),
        (["secret words"], RequestError, "Turn 1 must be"),
        ([{"role": "0"}], RequestError, "Turn 1 must be"),
        ([{"role": "0", "content": 3}], RequestError, "content of turn 1"),
        ([{"role": "0", "content": [{"type": "picture"}]}], RequestError, "Turn 1 has a part"),
        ([turn("secret words", noise(1.0))], RequestError, "last turn"),
        ([turn("secret words", noise(0.1)), turn("x")], AudioError, "0.1 s"),
        ([turn("a", np.full(24_000, np.nan, np.float32)), turn("x")], AudioError, "NaN"),
        ([turn("a", "no.wav"), turn("x")], AudioError, "no.wav: no such file"),
        ("secret words <|AUDIO|>", TextError, "control tokens"),
        ("word " * 500, RequestError, "leaves no room"),
    ],
)
def test_conversations_that_cannot_be_spoken_are_refused(speaker, conversation, kind, told):
    with pytest.raises(kind, match=told) as caught:
        speak(speaker, conversation)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_fails_is_an_error_without_the_text(speaker, small, monkeypatch):
    monkeypatch.setattr(small.processor, "chat_template", "{{ raise_exception(messages) }}")
    with pytest.raises(RequestError, match="processor cannot read") as caught:
        speak(speaker, "secret words")
    assert "secret" not in str(caught.value)


# Files


@pytest.mark.parametrize("name", ["out.wav", "OUT.WAV", "out.flac", "out.ogg"])
def test_the_file_holds_what_is_returned(tiny_speaker, tmp_path, name):
    heard = speak(tiny_speaker, "Hello there.", tmp_path / name, max_new_tokens=8)
    samples, rate = soundfile.read(tmp_path / name, dtype="float32")
    assert (rate, samples.shape) == (24_000, heard.shape)
    tolerance = 0.1 if name.endswith("ogg") else 1e-4
    np.testing.assert_allclose(samples, heard, atol=tolerance)


def test_the_file_grows_with_every_chunk_and_is_whole_at_any_time(speaker, tmp_path):
    path, lengths = tmp_path / "out.wav", []

    def look(progress):
        lengths.append(soundfile.info(path).frames if progress.chunk > 1 else 0)

    speak(speaker, "say this", str(path), max_new_tokens=15, progress=look)
    assert lengths == [0, FRAME, 3 * FRAME, 7 * FRAME]
    assert soundfile.info(path).frames == 15 * FRAME


def test_an_interrupted_file_keeps_what_was_spoken(speaker, tmp_path):
    path = tmp_path / "out.wav"

    def interrupt(progress):
        if progress.chunk == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speak(speaker, "say this", path, max_new_tokens=15, progress=interrupt)
    assert soundfile.info(path).frames == 3 * FRAME
    assert len(speak(speaker, "say this", max_new_tokens=2)) == 2 * FRAME


@pytest.mark.parametrize(
    ("name", "told"),
    [("out.mp3", r"ends in \.wav"), ("out", r"ends in \.wav"), ("no/out.wav", "No such file")],
)
def test_a_file_that_cannot_be_written_is_an_error_at_once(speaker, tmp_path, name, told):
    with pytest.raises(AudioError, match=told) as caught:
        speak(speaker, "say this", tmp_path / name, progress=pytest.fail)
    assert str(tmp_path) not in str(caught.value)


def test_a_line_is_printed_for_each_chunk_and_one_for_all(speaker, capsys):
    generate_streaming_audio(
        speaker, "say this", play_audio=False, max_new_tokens=3, do_sample=False
    )
    one, two, last = capsys.readouterr().out.splitlines()
    assert one.startswith("chunk 1: 0.08 s of speech in ")
    assert two.startswith("chunk 2: 0.16 s of speech in ")
    assert last.startswith("0.24 s of speech in ")
    assert all("RTF" in line for line in (one, two, last))
    speak(speaker, "say this")
    assert not capsys.readouterr().out


# The watermark


@pytest.mark.parametrize("frames", [1, 3, 4, 6, 30])
def test_speech_is_marked_by_default_in_the_array_and_in_the_file(speaker, tmp_path, frames):
    plain = speak(speaker, "say this", max_new_tokens=frames)
    options = {"max_new_tokens": frames, "watermark": None}
    made = speak(speaker, "say this", tmp_path / "out.wav", **options)
    begin = min(4, frames) * FRAME
    assert len(made) == len(plain)
    np.testing.assert_allclose(made[:begin], plain[:begin], atol=1e-6)
    if frames > 5:
        assert np.abs(made[begin + FRAME :] - plain[begin + FRAME :]).max() > 1e-3
    on_disk, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    np.testing.assert_allclose(on_disk, made, atol=1e-4)


def test_the_environment_turns_it_off_and_a_stream_of_tensors_never_has_it(speaker, monkeypatch):
    plain = speak(speaker, "say this", max_new_tokens=8)
    monkeypatch.setenv("CSM_WATERMARK", "off")
    quiet = speak(speaker, "say this", max_new_tokens=8, watermark=None)
    np.testing.assert_array_equal(quiet, plain)
    asked = speak(speaker, "say this", max_new_tokens=8, watermark=True)
    assert np.abs(asked - plain).max() > 1e-3
    monkeypatch.delenv("CSM_WATERMARK")
    inputs = inputs_of(speaker, turn("say this"))
    stream = sound(speaker, inputs, max_new_tokens=8, do_sample=False)
    np.testing.assert_array_equal(np.clip(stream.numpy(), -1.0, 1.0), plain)


def test_marked_speech_of_tiny_is_detected(tiny_speaker):
    line = "The boat goes down to the river every day."
    made = speak(tiny_speaker, line, max_new_tokens=60, watermark=True)
    assert detect(made).whole > 0.8
