"""The codes in which the model speaks, and the entries that the decoder learns for them."""

import numpy as np
import pytest
import torch
from transformers import MimiModel

from training import encode, phonetic, prosodic, speakers
from training.corpus import STOCK
from training.entries import PARTS, Entries
from training.phones import LEAD, spell, symbols_of
from training.spec import CODEBOOKS, CODES, ENCODED, FRAME, MIMI

WORDS = symbols_of(spell("wˈɛðəɹ."))


def coded(periods: int = 9, size: float = 1.0, loud: float = 0.1) -> np.ndarray:
    audio = np.full(len(WORDS) * FRAME, loud * 32768, np.int16)
    return prosodic.codes_of(WORDS, np.full(len(WORDS), periods), size, audio)


def test_every_codebook_says_one_thing():
    plain, higher, larger, louder = coded(), coded(18), coded(size=1.2), coded(loud=0.4)
    for changed, book in ((higher, 1), (larger, 1), (louder, 2)):
        assert [k for k in range(CODEBOOKS) if (changed[:, k] != plain[:, k]).any()] == [book]
    assert (plain[:, 0] == phonetic.codes_of(WORDS)).all()
    assert (plain[:-1, 3] == plain[1:, 0]).all(), "the next frame's phone"
    assert plain[-1, 3] == phonetic.codes_of(LEAD)[0], "silence follows"


@pytest.mark.parametrize("periods", [0, 4, 32, 99])
@pytest.mark.parametrize("size", [0.1, 3.0])
@pytest.mark.parametrize("loud", [0.0, 0.99])
def test_whatever_is_measured_has_a_code_that_the_encoder_does_not_use(periods, size, loud):
    codes = coded(periods, size, loud)
    assert codes.min() >= ENCODED
    assert codes.max() < CODES


def curve(*hertz: float) -> np.ndarray:
    """The teacher's F0 for frames with these frequencies, 0 where there is no voice."""
    ends = np.round(np.arange(1, len(hertz) + 1) * FRAME / speakers.STEP).astype(int)
    return np.repeat(np.array(hertz, np.float32), np.diff(ends, prepend=0))


def test_periods_follow_f0_through_what_has_no_voice_and_do_not_flicker():
    assert speakers.periods(curve(100.0, 150.0), 2).tolist() == [8, 12]
    through = speakers.periods(curve(100.0, 0.0, 0.0, 150.0), 4).tolist()
    assert through[0] == 8
    assert through[3] == 12
    assert 8 < through[1] < through[2] < 12
    assert speakers.periods(curve(101.0, 107.0, 105.0, 107.0), 4).tolist() == [8, 8, 8, 8]
    assert speakers.periods(curve(0.0, 0.0), 2).tolist() == [speakers.FEWEST] * 2
    edge = curve(100.0, 0.0, 120.0)
    edge[np.flatnonzero(edge == 0)[0]] = 60.0  # on the way to no voice
    assert (speakers.periods(edge, 3) >= 8).all()


def test_every_frame_begins_with_the_same_phase():
    train = speakers.aligned_pulses(
        curve(100.0, 112.5, 112.5, 112.5, 0.0), np.array([8, 9, 9, 9, 9])
    )
    frames = train[: 5 * FRAME].reshape(-1, FRAME)
    assert np.array_equal(frames[1], frames[2])
    assert not frames[4, FRAME // 2 :].any(), "no voice"
    for frame, periods in zip(frames[:3], (8, 9, 9), strict=True):
        peaks = np.flatnonzero(frame > 0.9 * frame.max())
        assert peaks[0] == 0
        spectrum = np.abs(np.fft.rfft(frame))
        heard = np.flatnonzero(spectrum > 0.5 * spectrum.max())
        assert (heard % periods == 0).all(), "harmonics of whole periods only"


def speaker_rows() -> list[dict]:
    rng = np.random.default_rng(1)
    sound = (rng.normal(0, 0.1, 20 * FRAME) * 32767).astype(np.int16)
    return [{"voice": "{}", "group": n // 6, "audio": sound} for n in range(12)]


def test_the_first_utterances_of_a_speaker_are_heard_as_references_through_channels(monkeypatch):
    # The filters of the real channel need scipy, which only training does.
    monkeypatch.setattr(speakers, "channel", lambda sound, random_: sound * random_.random())
    rows = speaker_rows()
    heard = encode.heard_rows(rows, 101)
    assert [row is not None for row in heard] == ([True] * encode.HEARD + [False] * 2) * 2
    assert heard[0] is rows[0], "it has its channel already"
    for row in heard[1 : encode.HEARD]:
        assert not np.array_equal(row["audio"], rows[0]["audio"])
    again = encode.heard_rows(rows, 101)
    assert np.array_equal(heard[2]["audio"], again[2]["audio"])
    stock = {**rows[5], "voice": STOCK}
    assert encode.heard_rows([stock], 1) == [stock]


@pytest.fixture
def ready(small: MimiModel) -> MimiModel:
    """The small codec with places for the codes to speak in."""
    phonetic.place(small, torch.zeros(CODES - ENCODED, MIMI["codebook_dim"]))
    return small


@torch.no_grad()
def test_what_is_trained_is_what_the_codec_then_decodes(ready):
    entries = Entries(ready)
    for number, weight in enumerate(entries.parameters()):
        generator = torch.Generator().manual_seed(number)
        weight += 0.1 * torch.randn(weight.shape, generator=generator)
    codes = torch.from_numpy(coded().T.astype(np.int64))[None]
    wanted = ready.decoder(entries.decoded(ready, codes)).audio_values
    before = ready.decode(codes).audio_values
    entries.keep(ready)
    made = ready.decode(codes).audio_values
    assert not torch.allclose(made, before, atol=1e-3)
    assert torch.allclose(made, wanted, atol=1e-4)
    sound = torch.randn(1, 1, 40 * FRAME, generator=torch.Generator().manual_seed(2)) * 0.1
    assert ready.encode(sound).audio_codes.max() < ENCODED


@torch.no_grad()
def test_a_combination_that_never_occurred_is_the_sum_of_its_parts(ready):
    entries = Entries(ready)
    entries.parts["pitch"][7] += 1.0
    entries.parts["size"][3] += 10.0
    table = entries.tables()[1] - entries.base[0]
    both = table[7 * prosodic.SIZES + 3]
    assert torch.allclose(both, table[7 * prosodic.SIZES] + table[3], atol=1e-3)
    assert {book for book, _, _ in PARTS.values()} == {1, 2, 3}
