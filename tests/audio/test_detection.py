"""Watermark detection: by speaker and by second, over a telephone, in pieces, and in silence."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from csm_tts_plugin.audio import detection
from csm_tts_plugin.audio.detection import Detection, detect
from csm_tts_plugin.audio.watermark import marked
from tests.support import mulaw
from tests.support.recordings import PEOPLE, READER, heard

RATE = 24_000


def person(name):
    return heard(name, RATE).samples


def over_a_telephone(samples):
    pcm = np.clip(np.rint(samples * 32_767), -32_768, 32_767).astype(np.int16)
    narrow = mulaw.line(pcm, RATE).astype(np.float32) / 32_768
    return soxr.resample(narrow, mulaw.RATE, RATE)


@pytest.mark.parametrize("name", PEOPLE)
def test_people_are_not_marked_until_they_are(name):
    plain = person(name)
    assert detect(plain).whole < 0.3
    found = detect(marked(plain))
    assert found.marked
    assert found.whole > 0.97
    assert min(found.seconds) > 0.6


@pytest.mark.parametrize("name", PEOPLE)
def test_a_telephone_line_leaves_the_mark(name):
    plain = person(name)
    assert not detect(over_a_telephone(plain)).marked
    assert detect(over_a_telephone(marked(plain))).whole > 0.9


def test_one_second_out_of_it_is_enough():
    assert detect(marked(person(READER[0]))[2 * RATE : 3 * RATE]).whole > 0.9


def test_each_second_is_told():
    plain, made = person(READER[0])[: 3 * RATE], marked(person(READER[2]))[: 4 * RATE]
    found = detect(np.concatenate([plain, made, plain]))
    assert max(found.seconds[:2] + found.seconds[8:]) < 0.3
    assert min(found.seconds[4:7]) > 0.9
    assert found.whole < 0.5
    assert found.marked, "one reply in a call of somebody else's is enough"


def test_a_single_second_that_looks_marked_is_not_enough():
    assert not Detection(0.1, (0.0, 0.97, 0.0, 0.1)).marked
    assert not Detection(0.45, (0.45, 0.45)).marked, "made speech played faster, without a mark"
    assert Detection(0.55, (0.55, 0.55)).marked, "a short reply after Opus at 16 kbit/s"
    assert not Detection(0.62, (0.62,)).marked, "one second of a person's speech"
    assert not Detection(0.62, (None, 0.62)).marked, "the same after silence"
    assert Detection(0.1, (0.0, 0.9, None, 0.9, 0.9, 0.0)).marked


def test_long_sound_is_looked_at_in_pieces_with_the_same_result(monkeypatch):
    sound = np.concatenate([person(READER[0]), marked(person(READER[3]))])
    at_once = detect(sound)
    monkeypatch.setattr(detection, "_PIECE", 200)
    in_pieces = detect(sound)
    assert len(in_pieces.seconds) == len(at_once.seconds) == 14
    assert in_pieces.whole == pytest.approx(at_once.whole, abs=0.02)
    assert np.abs(np.subtract(in_pieces.seconds, at_once.seconds)).max() < 0.1


def test_digital_silence_says_nothing_and_takes_nothing_away():
    made = marked(person(READER[1]))
    silence = np.zeros(3 * RATE, np.float32)
    found = detect(np.concatenate([silence, made, silence]))
    assert found.seconds[0] is None
    assert found.seconds[-1] is None
    assert found.whole > 0.97
    assert detect(silence) == Detection(0.0, (None, None, None))
