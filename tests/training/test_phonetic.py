"""Phonetic codes: every phone has some, and the codec's encoder never chooses one."""

import numpy as np
import torch

from training import phonetic
from training.phones import LEAD, spell, symbols_of
from training.spec import CODES, ENCODED

WEATHER = symbols_of(spell("wˈɛðəɹ, lˈɛtəɹ, vˈYs?"))


def test_a_code_tells_the_phone_and_the_kind_of_sound_after_it():
    codes = phonetic.codes_of(WEATHER)
    assert codes.min() >= ENCODED
    assert codes.max() < CODES
    phones = (codes - ENCODED) // (phonetic._OTHER + 1)
    assert "".join(phonetic.SYMBOLS[n] for n in phones) == WEATHER
    before_lips, before_teeth = phonetic.codes_of("xp")[0], phonetic.codes_of("xt")[0]
    assert before_lips != before_teeth
    assert phonetic.codes_of("xd")[0] == before_teeth


def test_all_phones_have_room():
    worst = phonetic.SYMBOLS[-1] + "c"
    assert phonetic.codes_of(worst)[0] < CODES


def test_a_last_frame_is_followed_by_silence():
    assert phonetic.codes_of("s")[0] == phonetic.codes_of("s" + LEAD)[0]


def test_the_encoder_chooses_as_before_and_no_phonetic_code(small):
    sound = torch.randn(1, 1, 40 * 1920, generator=torch.Generator().manual_seed(2)) * 0.1
    with torch.inference_mode():
        before = small.encode(sound).audio_codes
        heard = small.decode(before).audio_values
        assert not phonetic.placed(small)
        entry = small.quantizer.semantic_residual_vector_quantizer.layers[0].codebook.embed[1]
        phonetic.place(small, entry.expand(CODES - ENCODED, -1))
        assert phonetic.placed(small)
        after = small.encode(sound).audio_codes
        again = small.decode(after).audio_values
    assert torch.equal(before, after)
    assert after.max() < ENCODED
    assert (heard - again).abs().max() < 0.15 * heard.abs().max()


def test_a_phonetic_entry_decodes_to_what_it_stands_for_at_first(small):
    first = small.quantizer.semantic_residual_vector_quantizer
    book = first.layers[0].codebook
    coded = [(np.full(len(WEATHER), 7, np.int16), WEATHER)]
    start = phonetic.means(book.embed, coded, torch.zeros(book.embed.shape[1]))
    phonetic.place(small, start)
    code = int(phonetic.codes_of(WEATHER)[2])
    with torch.inference_mode():
        weight = first.output_proj.weight[..., 0]
        assert torch.allclose(weight @ book.embed[code], weight @ book.embed[7], atol=1e-3)
