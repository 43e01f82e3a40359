"""From codes to audio: the same samples for any chunks, and exact ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from csm_tts_plugin.config import FRAME_SAMPLES
from csm_tts_plugin.engine.api import Audio, Reason
from csm_tts_plugin.engine.sound import Codec
from tests.engine.tools import ByHand, Heard, alone, say

TOLERANCE = 1e-4


@pytest.fixture
def hand(small):
    return ByHand(small, slots=4, queue=8)


def offline(hand: ByHand, codes: np.ndarray) -> np.ndarray:
    """transformers' own decode of codes [n, K]"""
    codec = hand.engine._checkpoint.model.codec_model
    with torch.no_grad():
        return codec.decode(torch.from_numpy(codes.T[None])).audio_values[0, 0].numpy()


def assert_sounds(hand: ByHand, heard: Heard) -> None:
    sound = np.concatenate([audio.samples for audio in heard.audio])
    expected = offline(hand, heard.codes)
    assert np.abs(sound - expected).max() <= TOLERANCE * np.abs(expected).max()


def rows_free(codec: Codec) -> bool:
    return codec._free == set(range(codec._rows))


def test_streams_that_join_at_any_moment_sound_as_one_decode_of_each(hand, seed):
    rng = np.random.default_rng(seed)
    streams = []
    for number in range(9):
        options = {"live": bool(rng.integers(2)), "max_seconds": float(rng.uniform(0.1, 3.0))}
        streams.append(say(hand.engine, hand.engine.open(), f"Number {number}.", **options))
        for _ in range(int(rng.integers(0, 25))):
            hand.round()
            hand.now += float(rng.choice([0.0, 0.03, 0.2]))
    hand.run()
    for heard in streams:
        assert heard.frames()
        assert_sounds(hand, heard)
    assert rows_free(hand.codec)


def test_frames_come_in_chunks_that_double(hand):
    counts, heard = [], say(hand.engine, hand.engine.open(), "x" * 60, max_seconds=2.5)
    while not heard.over:
        before = len(heard.audio)
        hand.round()
        counts.append(len(heard.audio) - before)
    assert [count for count in counts if count] == [1, 1, 2, 4, 8, 8, 8]
    assert heard.frames() == 32


def silent_from(hand: ByHand, frame: int) -> None:
    """The codec gives silence from `frame` of each utterance on."""
    original = hand.codec.decoder.decode

    def decode(codes, rows):
        begins = [hand.codec.decoder.frames[row] for row in rows]
        sound = original(codes, rows)
        for one, begin in zip(sound, begins, strict=True):
            one[max(0, frame - begin) * FRAME_SAMPLES :] = 0
        return sound

    hand.codec.decoder.decode = decode


@pytest.mark.parametrize("begin", [0, 1, 3, 5])
def test_silence_ends_at_the_frame_that_completes_it_though_more_were_drawn(hand, small, begin):
    silent_from(hand, begin)
    conversation, text = hand.engine.open(), "x" * 60
    heard = say(hand.engine, conversation, text)
    hand.run()
    assert (heard.frames(), heard.reason) == (begin + 38, Reason.SILENCE)
    expected = hand.engine._writer.turn(0, text, heard.codes)
    np.testing.assert_array_equal(hand.log(conversation), expected)
    assert rows_free(hand.codec)
    after = say(hand.engine, hand.engine.open(), "And on.", max_seconds=0.4)
    hand.run()
    np.testing.assert_array_equal(after.codes, alone(small, "And on.", after.frames()))


def test_silence_that_ends_where_the_length_does_counts_as_the_length(hand):
    silent_from(hand, 0)
    heard = say(hand.engine, hand.engine.open(), "x" * 60, max_seconds=38 * 0.08 - 0.01)
    hand.run()
    assert (heard.frames(), heard.reason) == (38, Reason.LENGTH)


@pytest.mark.parametrize("frame", [3, 8, 10, 15])
def test_a_cancel_in_the_middle_of_a_chunk_is_obeyed_within_a_frame(hand, frame):
    """Codes whose audio was not delivered are removed from the conversation."""

    def leave(event):
        if isinstance(event, Audio) and event.frame == frame:
            hand.engine.cancel(event.utterance)

    conversation = hand.engine.open()
    heard = say(hand.engine, conversation, "A sentence.", max_seconds=4.0, then=leave)
    hand.run()
    assert (heard.frames(), heard.reason) == (frame + 1, Reason.CANCELLED)
    expected = hand.engine._writer.turn(0, "A sentence.", heard.codes)
    np.testing.assert_array_equal(hand.log(conversation), expected)
    assert rows_free(hand.codec)


def test_what_waits_to_be_decoded_is_dropped_with_a_cancel(hand):
    conversation = hand.engine.open()
    heard = say(hand.engine, conversation, "A sentence.", max_seconds=4.0)
    while hand.drawn_of(heard) < 13:
        hand.round()
    assert len(heard.audio) == 8
    hand.engine.cancel(heard.id)
    hand.round()
    assert (heard.frames(), heard.reason) == (8, Reason.CANCELLED)
    expected = hand.engine._writer.turn(0, "A sentence.", heard.codes)
    np.testing.assert_array_equal(hand.log(conversation), expected)
    assert hand.free()
    assert rows_free(hand.codec)


def test_the_codec_keeps_nothing_of_an_utterance_that_is_over(hand):
    for number in range(3):
        say(hand.engine, hand.engine.open(), f"Number {number}.", max_seconds=1.0)
    hand.run()
    assert rows_free(hand.codec)
    assert not any(state.any() for _, state in hand.codec.decoder._state)


class Behind:
    """A stage that doubles the amplitude and delays by some samples."""

    held = 3

    def __init__(self, rows: int, delay: int) -> None:
        self.delay = delay
        self.kept = [torch.zeros(0)] * rows
        self.ended: list[int] = []

    def __call__(
        self,
        samples: torch.Tensor,
        rows: Sequence[int],
        last: Sequence[bool],
        waits: Sequence[int | None],
    ) -> list[torch.Tensor]:
        parts = []
        for row, new, ends in zip(rows, samples, last, strict=True):
            held = torch.cat([self.kept[row], new])
            count = len(held) if ends else max(0, len(held) - self.delay)
            parts.append(2 * held[:count])
            self.kept[row] = held[count:]
            if ends:
                self.ended.append(row)
        return parts

    def reset(self, row: int) -> None:
        self.kept[row] = torch.zeros(0)


@pytest.mark.parametrize("delay", [0, 100, 1920, 5000])
def test_a_stage_may_hold_sound_back_and_nothing_is_lost(hand, delay, seed):
    """For utterances that end with frames still to be decoded, and for others."""
    rng = np.random.default_rng(seed)
    hand.codec.stage = stage = Behind(4, delay)
    streams = []
    for number in range(8):
        options = {"live": bool(rng.integers(2)), "max_seconds": (number + 1) * 0.08 * 2 - 0.01}
        streams.append(say(hand.engine, hand.engine.open(), f"Number {number}.", **options))
        for _ in range(int(rng.integers(0, 12))):
            hand.round()
    hand.run()
    for number, heard in enumerate(streams):
        assert (heard.frames(), heard.reason) == (2 * (number + 1), Reason.LENGTH)
        sound = np.concatenate([audio.samples for audio in heard.audio]) / 2
        expected = offline(hand, heard.codes)
        assert np.abs(sound - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert len(stage.ended) == len(streams)
    assert rows_free(hand.codec)
    assert not any(len(kept) for kept in stage.kept)


def test_silence_is_found_and_delivered_though_a_stage_holds_sound_back(hand):
    silent_from(hand, 2)
    hand.codec.stage = Behind(4, 5000)
    heard = say(hand.engine, hand.engine.open(), "x" * 60)
    hand.run()
    assert (heard.frames(), heard.reason) == (40, Reason.SILENCE)
    assert rows_free(hand.codec)
