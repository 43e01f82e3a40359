"""`say` with csm-tiny is intelligible: the transcript of its output equals its text."""

from __future__ import annotations

import os

import pytest
import soundfile

from csm_tts_plugin.__main__ import main
from tests.support.wording import Listener, errors, words
from training.sentences import held_out

CARD = 0.09
"""Word error rate in the model card, of 100 sentences of this kind."""
MARGIN = 0.11
"""Six sentences are a small sample, and codes differ by processor: 0.03 to 0.07 were measured."""


@pytest.mark.timeout(300)
def test_what_tiny_says_in_the_stock_voice_is_understood(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("CSM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    text = " ".join(held_out(6))
    assert main(["say", text, "--model", "tiny", "--device", "cpu", "--seed", "1"]) == 0
    heard = Listener().hear(*soundfile.read("out.wav", dtype="float32"))
    print(heard)
    said = words(text)
    assert errors(words(heard), said) <= (CARD + MARGIN) * len(said)
