"""The tests' mu-law codec equals other implementations."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from tests.support import mulaw

# ITU-T G.711, table 2: code, and 16-bit value at the decoder's output.
KNOWN = {
    0x80: 32_124,
    0x8F: 16_764,
    0xCE: 988,
    0xF0: 120,
    0xFE: 8,
    0xFF: 0,
    0x7E: -8,
    0x00: -32_124,
}


@pytest.mark.parametrize(("code", "value"), KNOWN.items())
def test_known_values(code, value):
    assert mulaw.decode(np.uint8([code])) == value
    assert mulaw.encode(np.int16([value])) == code


def test_all_values_are_coded_as_libsndfile_codes_them():
    pcm = np.arange(-32_768, 32_768, 7).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, pcm, mulaw.RATE, format="WAV", subtype="ULAW")
    theirs, _ = soundfile.read(io.BytesIO(file.getvalue()), dtype="int16")
    ours = mulaw.decode(mulaw.encode(pcm))
    # A value between two steps may be coded as either of them.
    step = np.maximum(8, 2 ** np.floor(np.log2(np.abs(pcm.astype(int)) + 132)) / 16)
    assert np.all(np.abs(ours.astype(int) - theirs) <= step)
    assert np.all(
        np.abs(ours.astype(int) - pcm)[np.abs(pcm) <= 32_124] <= step[np.abs(pcm) <= 32_124]
    )


def test_coding_again_changes_nothing():
    codes = np.arange(256, dtype=np.uint8)
    again = mulaw.encode(mulaw.decode(codes))
    assert np.array_equal(mulaw.decode(again), mulaw.decode(codes))
