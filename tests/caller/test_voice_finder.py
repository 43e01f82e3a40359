"""The voice finder turns the call's audio stream into the caller's voice."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import soxr

from csm_tts_plugin.audio.resample import to_pcm16
from csm_tts_plugin.caller.consent import Grant, Path
from csm_tts_plugin.caller.turns import TurnRecorder
from csm_tts_plugin.caller.voice import CALLER, VoiceFinder
from csm_tts_plugin.config import SAMPLE_RATE
from csm_tts_plugin.voices.measure import measure
from tests.support.recordings import RATE, READER, heard, noise

GRANT = Grant(Path.SPOKEN, "They said yes.", "2026-01-01T00:00:00+00:00")


def overheard(name: str, rate: int, floor: float = 0.0005) -> tuple[str, np.ndarray, int]:
    """A recording in a quiet room, through the recorder, in frames of 10 ms."""
    turn = heard(name, rate)
    room = floor * np.random.default_rng(1).standard_normal(4 * rate + len(turn.samples))
    room[2 * rate : 2 * rate + len(turn.samples)] += turn.samples
    pcm, step = to_pcm16(room.astype(np.float32)), rate // 100 * 2
    recorder = TurnRecorder()
    for at in range(0, len(pcm), step):
        if at == 2 * (2 * rate + rate // 2):
            recorder.speech_began()
        recorder.push(pcm[at : at + step], rate)
    cut = recorder.cut()
    return turn.text, cut.samples, cut.rate


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
def test_what_the_recorder_cuts_makes_a_voice_with_a_consent_record(rate):
    voice = VoiceFinder("ada", GRANT).add(*overheard(READER[0], rate))
    assert voice is not None
    assert (voice.speaker, voice.transcript) == (CALLER, heard(READER[0]).text)
    assert (voice.consent.speaker, len(voice.sha256)) == ("ada", 64)
    assert (voice.consent.statement, voice.consent.date) == (GRANT.statement, GRANT.date)
    assert 6.0 < voice.seconds < 8.0
    figures, _ = measure(voice.audio, SAMPLE_RATE)
    assert abs(figures.level_db + 20) < 1.5


def test_short_turns_add_up_and_bad_ones_do_not_count():
    finder = VoiceFinder("ada", GRANT)
    text, samples, rate = overheard(READER[1], RATE)
    assert finder.add(text, samples + noise(samples, 5), rate) is None
    assert finder.add(text, np.clip(samples * 20, -1, 1), rate) is None
    assert finder.add("", samples, rate) is None
    assert finder.add(text, samples[:3_200], rate) is None
    assert finder.add(text, np.zeros_like(samples), rate) is None
    assert finder.add(text, samples, rate) is None
    voice = finder.add(*overheard(READER[4], RATE))
    assert voice.transcript.split(".")[0] == text
    assert voice.seconds > 5


def test_a_clearly_better_voice_replaces_the_first_and_no_other_does():
    finder = VoiceFinder("ada", GRANT)
    turns = [overheard(name, 24_000) for name in (READER[2], READER[1], READER[3], READER[0])]
    voices = [finder.add(*turn) for turn in turns]
    found = [voice for voice in voices if voice is not None]
    assert voices[0] is not None
    assert 1 < len(found) < len(turns)
    seconds = [voice.seconds for voice in found]
    assert seconds == sorted(seconds)


def test_the_log_holds_figures_and_reasons_and_no_words(caplog):
    caplog.set_level(logging.DEBUG)
    finder = VoiceFinder("a-person", GRANT)
    text, samples, rate = overheard(READER[0], RATE)
    finder.add(text, samples + noise(samples, 5), rate)
    voice = finder.add(text, samples, rate)
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first.startswith("turn 1 is no reference (noisy")
    assert second.startswith("the caller's reference is turn 2, score 0.")
    assert "dB above the noise" in first
    assert third == f"consent (spoken) of {GRANT.date} recorded for audio {voice.sha256}"
    for secret in ("a-person", "john", "dashwood", "leisure", "power"):
        assert secret not in caplog.text


def test_a_telephones_voice_is_taken_when_there_is_no_better():
    text, samples, _ = overheard(READER[3], 8_000)
    raised = soxr.resample(samples, 8_000, 24_000)
    finder = VoiceFinder("ada", GRANT)
    assert finder.add(text, raised, 24_000) is not None
    assert finder.add(*overheard(READER[0], 24_000)) is not None, "a wide band is clearly better"
