"""Transcripts of the shared call's recorded replies are closest to the texts of these replies."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from tests.support.wording import Listener, unlike

pytestmark = [pytest.mark.call, pytest.mark.timeout(700)]


def test_each_reply_sounds_like_its_own_words_and_not_like_those_of_another(call):
    """`tiny` garbles words that are rare in its training data: of ten whole replies of three calls
    Whisper got 1 to 49 % of the letters wrong, and 70 to 82 % against another reply's words."""
    listener = Listener()
    sound, rate = soundfile.read(call.out / "call.wav", dtype="float32")
    turns = call.report["turns"]
    own, others = [], []
    for turn in turns:
        if turn["interrupted"]:
            continue  # its text is longer than what was heard
        begin, end = (int(at * rate) for at in turn["heard"])
        heard = listener.hear(sound[begin:end, 1], rate)
        rest = [other["reply_text"] for other in turns if other is not turn]
        # A small LLM may give the same reply twice.
        told = [text for text in rest if unlike(text, turn["reply_text"]) > 0.5]
        own.append(unlike(heard, turn["reply_text"]))
        others += [min(unlike(heard, text) for text in told)] if told else []
    print("own words", own, "nearest other words", others)
    assert len(own) >= 3
    assert others, "replies that all say the same cannot be told apart"
    assert np.mean(own) < np.mean(others) - 0.1
