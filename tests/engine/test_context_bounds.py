"""The engine keeps to the context limits of a model's folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import GenerationConfig

from csm_tts_plugin.engine.api import Turn
from csm_tts_plugin.engine.defaults import ContextBounds
from csm_tts_plugin.errors import ModelLoadError
from tests.engine.tools import ByHand, noise, say, small_checkpoint, truth, voice

TINY = Path(__file__).parents[2] / "csm_tts_plugin" / "assets" / "tiny"


def by_hand(told: object, **settings: bool) -> ByHand:
    checkpoint = small_checkpoint(3)
    checkpoint.model.generation_config.csm_context = told
    return ByHand(checkpoint, slots=2, **settings)


def spoken(hand: ByHand, conversation: str, text: str = "Say this."):
    """One sentence, spoken until the engine is idle."""
    heard = say(hand.engine, conversation, text, max_seconds=0.4)
    hand.run()
    assert heard.frames()
    return heard


def expected(hand: ByHand, *turns: tuple[str, str, float | None]) -> np.ndarray:
    writer, codes = hand.engine._writer, hand.runner.encode
    return np.concatenate(
        [writer.turn(int(n), t, None if s is None else codes(noise(s, 1))) for n, t, s in turns]
    )


def test_without_an_entry_everything_is_read_that_fits():
    hand = by_hand(None)
    info = hand.engine.info()
    assert (info.context_turns, info.reference_seconds) == (None, None)
    assert info.clones
    conversation = hand.engine.open(voice("one"))
    for number in range(4):
        hand.engine.add_turn(conversation, Turn("someone", f"turn {number}"))
    spoken(hand, conversation)
    assert len(hand.context(conversation).turns) == 5
    assert len(hand.context(conversation).voice) > 0


@pytest.mark.parametrize("turns", [1, 2])
def test_only_the_last_turns_are_read_before_a_reply(turns):
    hand = by_hand({"turns": turns})
    conversation = hand.engine.open()
    for number in range(4):
        hand.engine.add_turn(conversation, Turn("someone", f"turn {number}"))
    heard = say(hand.engine, conversation, "A reply.", max_seconds=0.4)
    hand.run()
    kept = [("1", f"turn {n}", None) for n in range(4 - turns, 4)]
    positions = expected(hand, *kept, ("0", "A reply.", None))
    np.testing.assert_array_equal(
        heard.codes, truth(hand.engine._checkpoint.model, positions, heard.frames())
    )
    # The reply counts as a turn before the next one.
    again = say(hand.engine, conversation, "Another one.", max_seconds=0.4)
    hand.run()
    assert again.frames()
    assert len(hand.context(conversation).turns) == turns + 1


def test_no_turns_at_all_are_read_where_a_model_allows_none():
    hand = by_hand({"turns": 0})
    conversation = hand.engine.open(voice("one", 0.6))
    hand.engine.add_turn(conversation, Turn("someone", "not read", noise(0.5)))
    for text in ("A reply.", "Another."):
        heard = say(hand.engine, conversation, text, max_seconds=0.4)
        hand.run()
        positions = expected(hand, ("0", "my voice one", 0.6), ("0", text, None))
        np.testing.assert_array_equal(
            heard.codes, truth(hand.engine._checkpoint.model, positions, heard.frames())
        )


def test_whoever_asks_for_the_whole_context_gets_it():
    hand = by_hand({"turns": 0, "reference_seconds": 0}, whole_context=True)
    info = hand.engine.info()
    assert (info.context_turns, info.reference_seconds) == (None, None)
    conversation = hand.engine.open()
    hand.engine.add_turn(conversation, Turn("someone", "read"))
    spoken(hand, conversation)
    assert len(hand.context(conversation).turns) == 2


@pytest.mark.parametrize(
    "told",
    [
        *({"turns": -1}, {"turns": 1.5}, {"turns": True}, {"reference_seconds": "long"}, [1], 7),
        *({"follows": told} for told in ("", " ", 1, True, ["pitch"], "two\nlines", 41 * "x")),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_with_what_it_takes(told):
    checkpoint = small_checkpoint(3)
    checkpoint.model.generation_config.csm_context = told
    with pytest.raises(ModelLoadError, match="csm_context") as caught:
        ContextBounds.of(checkpoint.model)
    assert "reference_seconds" in str(caught.value)
    assert "`follows`, if given, is a text of 1 to 40 printable characters" in str(caught.value)


@pytest.mark.parametrize(("seconds", "clones"), [(0, False), (3, True)])
def test_a_model_that_allows_no_reference_does_not_clone(seconds, clones):
    info = by_hand({"turns": 1, "reference_seconds": seconds}).engine.info()
    assert info.clones is clones


FOLLOWER = {"turns": 0, "reference_seconds": 10, "follows": "pitch and size"}


def test_a_model_that_follows_a_voice_uses_it_and_does_not_clone_it():
    hand = by_hand(FOLLOWER)
    info = hand.engine.info()
    assert (info.clones, info.follows) == (False, "pitch and size")
    conversation = hand.engine.open(voice("one"))
    spoken(hand, conversation)
    assert len(hand.context(conversation).voice) > 0


def test_the_whole_context_does_not_turn_what_a_model_follows_into_a_clone():
    info = by_hand(FOLLOWER, whole_context=True).engine.info()
    assert (info.context_turns, info.reference_seconds) == (None, None)
    assert (info.clones, info.follows) == (False, "pitch and size")


def test_nothing_is_followed_where_no_reference_is_used():
    told = {**FOLLOWER, "reference_seconds": 0}
    info = by_hand(told).engine.info()
    assert (info.clones, info.follows) == (False, None)
    assert by_hand(told, whole_context=True).engine.info().follows == "pitch and size"


def test_the_whole_context_needs_no_sense_in_limits_that_it_ignores():
    model = small_checkpoint(3).model
    for told in ({"turns": -1}, [1]):
        model.generation_config.csm_context = told
        assert ContextBounds.of(model, whole=True) == ContextBounds()
    model.generation_config.csm_context = {"follows": 7}
    with pytest.raises(ModelLoadError, match="`follows`"):
        ContextBounds.of(model, whole=True)


def test_the_entry_comes_through_the_folder_s_file(tmp_path):
    entry = {"turns": 3, "reference_seconds": 8, "follows": 40 * "x"}
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "csm_context": entry})
    )
    loaded = GenerationConfig.from_pretrained(tmp_path)
    checkpoint = small_checkpoint(3)
    checkpoint.model.generation_config = loaded
    assert ContextBounds.of(checkpoint.model) == ContextBounds(3, 8.0, 40 * "x")
    loaded.save_pretrained(tmp_path / "again")
    again = GenerationConfig.from_pretrained(tmp_path / "again")
    assert again.csm_context == entry
