"""The watermark: the same for any chunks, independent per row, and equal to Perth's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from csm_tts_plugin.audio import perth, watermark
from csm_tts_plugin.audio.watermark import DELAY, Fade, Marker, marked
from csm_tts_plugin.config import FRAME_SAMPLES
from csm_tts_plugin.errors import ModelLoadError
from tests.support.recordings import READER, heard

RATE = 24_000
GOLDEN = Path(__file__).with_name("perth_marked.flac")
"""Second 1 to 2 of a recording, marked by resemble-perth 1.0.1 itself."""


@pytest.fixture(scope="module")
def speech():
    """[51, 1920]: a man's speech at 24 kHz."""
    samples = heard(READER[1], RATE).samples
    frames = len(samples) // FRAME_SAMPLES
    return samples[: frames * FRAME_SAMPLES].reshape(frames, FRAME_SAMPLES)


def whole(frames):
    return marked(frames.reshape(-1))


def streamed(marker, row, frames, sizes, others=None):
    """`frames` through `row` of a batch, other rows are noise; in pieces of `sizes`, repeated."""
    rng, out, at = np.random.default_rng(0), [], 0
    while at < len(frames):
        size = min(sizes[len(out) % len(sizes)], len(frames) - at)
        batch = rng.uniform(-1, 1, (row + 2, size * FRAME_SAMPLES)).astype(np.float32)
        batch[row] = frames[at : at + size].reshape(-1)
        out.append(marker(torch.from_numpy(batch), range(row + 2))[row].numpy())
        at += size
    out.append(marker.finish([row])[0].numpy())
    return np.concatenate(out)[DELAY * FRAME_SAMPLES :]


def decibels(samples):
    return 10 * np.log10(np.mean(np.square(samples)) + 1e-20)


@pytest.mark.parametrize("sizes", [[1], [1, 2, 4, 8], [3, 1], [51]])
def test_any_pieces_give_what_one_pass_gives(speech, sizes):
    marker = Marker(4)
    assert np.abs(streamed(marker, 2, speech, sizes) - whole(speech)).max() < 1e-6


def test_a_row_that_was_used_begins_anew_even_after_nan(speech):
    marker = Marker(2)
    marker(torch.full((2, FRAME_SAMPLES), float("nan")), [0, 1])
    for row in range(2):
        marker.reset(row)
    marker(torch.from_numpy(speech[:2]), [1, 0])
    marker.reset(0)
    marker.reset(1)
    assert np.abs(streamed(marker, 0, speech[:9], [1]) - whole(speech[:9])).max() < 1e-6


def test_streams_go_on_wherever_they_stand_in_a_batch(speech):
    marker = Marker(5)
    a, b = speech[:6], speech[20:26]
    rows = {"a": 4, "b": 1}
    made = {"a": [], "b": []}
    for at in range(6):
        order = "ab" if at % 2 else "ba"
        batch = np.stack([(a if name == "a" else b)[at] for name in order])
        out = marker(torch.from_numpy(batch), [rows[name] for name in order])
        for name, sound in zip(order, out, strict=True):
            made[name].append(sound)
    for name, tail in zip("ab", marker.finish([4, 1]), strict=True):
        joined = torch.cat([*made[name], tail]).numpy()[DELAY * FRAME_SAMPLES :]
        assert np.abs(joined - whole(a if name == "a" else b)).max() < 1e-6


def test_it_is_the_mark_that_perth_makes(speech, monkeypatch):
    golden, rate = soundfile.read(GOLDEN, dtype="float32")
    plain = speech.reshape(-1)[rate : 2 * rate]
    stronger = whole(speech)[rate : 2 * rate]
    monkeypatch.setattr(watermark, "STRENGTH", 1.0)
    ours = whole(speech)[rate : 2 * rate]
    assert decibels(plain - golden) > -50.0, "the recording is another one"
    # The error of the 8-bit weights is 45 dB below the mark itself.
    assert decibels(ours - golden) < decibels(plain - golden) - 35.0
    # Stronger, it is the same change, only larger.
    change, golden_change = stronger - plain, golden - plain
    assert np.corrcoef(change, golden_change)[0, 1] > 0.99
    assert 1.0 < decibels(change) - decibels(golden_change) < 3.0


def test_nothing_above_2_khz_is_touched(speech):
    change = np.fft.rfft(whole(speech) - speech.reshape(-1))
    at = int(2_100 / (RATE / 2) * len(change))
    assert decibels(np.abs(change[at:])) < decibels(np.abs(change[:at])) - 50.0


def test_silence_stays_silent():
    assert np.abs(marked(np.zeros(24_000, np.float32))).max() == 0.0


@pytest.mark.parametrize("damage", ["missing", "changed", "cut"])
def test_weights_that_are_not_those_shipped_are_refused(monkeypatch, tmp_path, damage):
    name = "marker.safetensors"
    data = bytearray((perth.FOLDER / name).read_bytes())
    data[-1] ^= 1
    if damage != "missing":
        (tmp_path / name).write_bytes(data if damage == "changed" else data[: len(data) // 2])
    monkeypatch.setattr(perth, "FOLDER", tmp_path)
    with pytest.raises(ModelLoadError, match=r"watermark's weights.*CSM_WATERMARK=off") as caught:
        Marker(1)
    assert "\n" not in str(caught.value)


def faded(frames, sizes, begin):
    """The output pieces of a stream that may be delayed from frame `begin` on."""
    marker, fade, at, out = Marker(1), Fade(), 0, []
    for size in sizes:
        plain = torch.from_numpy(frames[at : at + size].reshape(1, -1))
        marked = marker(plain, [0])
        wait = max(0, begin - at) if begin < at + size else None
        out.append(fade.push(plain[0], marked[0], wait).numpy())
        at += size
    if fade.waits:
        out.append(fade.finish(marker.finish([0])[0]).numpy())
    return out


@pytest.mark.parametrize(
    ("sizes", "begin"),
    [
        ([1] * 20, 5),
        ([1, 2, 4, 8, 5], 7),
        ([1, 2, 4, 8, 5], 3),
        ([1, 1, 8, 1, 1, 8], 0),
        ([20], 0),
        ([4, 1], 4),
        ([1, 1], 1),
    ],
)
def test_sound_goes_out_as_it_is_and_then_marked(speech, sizes, begin):
    """No sample is lost, repeated or shifted; the mark fades in over the first delayed frame."""
    frames = speech[: sum(sizes)]
    out = np.concatenate(faded(frames, sizes, begin)).reshape(-1, FRAME_SAMPLES)
    wanted = whole(frames).reshape(-1, FRAME_SAMPLES)
    assert len(out) == len(frames)
    assert np.array_equal(out[:begin], frames[:begin])
    share = np.linspace(0, 1, FRAME_SAMPLES)
    over = frames[begin] * (1 - share) + wanted[begin] * share
    assert np.abs(out[begin] - over).max() < 1e-6
    assert np.abs(out[begin + 1 :] - wanted[begin + 1 :]).max(initial=0.0) < 1e-6


def test_what_may_not_wait_goes_out_at_once(speech):
    out = faded(speech[:7], [1, 2, 4], 99)
    assert [len(piece) // FRAME_SAMPLES for piece in out] == [1, 2, 4]
    assert np.array_equal(np.concatenate(out), speech[:7].reshape(-1))


def test_what_waits_is_three_frames_behind(speech):
    out = faded(speech[:12], [1] * 12, 2)
    assert [len(piece) // FRAME_SAMPLES for piece in out] == [1, 1, 0, 0, 0, *[1] * 7, 3]
