"""The figures of each reply, and the tasks that run during a call."""

from __future__ import annotations

import asyncio
import json
import logging

from csm_tts_plugin.caller.background import Background
from csm_tts_plugin.caller.figures import TurnFigures


def test_each_reply_is_told_with_the_turn_that_it_answers():
    figures = TurnFigures()
    assert figures.replied({"e2e_latency": 0.5}, voice="stock", interrupted=False) is None
    figures.heard({"end_of_turn_delay": 0.25})
    figures.heard({"end_of_turn_delay": 0.5})
    figures.llm["llm_node_ttft"] = 0.125
    told = figures.replied({"tts_node_ttfb": 0.25}, voice="caller", interrupted=True)
    found = json.loads(told)
    assert {name: found[name] for name in ("turn", "endpointing", "llm_ttft")} == {
        "turn": 2,
        "endpointing": 0.5,
        "llm_ttft": 0.125,
    }
    assert (found["voice"], found["interrupted"]) == ("caller", True)
    # A turn has one reply: speech after it answers no turn.
    assert figures.replied({}, voice="stock", interrupted=False) is None


async def test_a_failure_beside_the_call_is_a_line_without_its_words(caplog):
    async def fails() -> None:
        raise RuntimeError("the caller's number is 555 0100")

    done = asyncio.Event()

    async def works() -> None:
        done.set()

    background = Background()
    with caplog.at_level(logging.INFO):
        background.start(fails())
        background.start(works())
        await asyncio.wait_for(done.wait(), 10)
    assert "RuntimeError" in caplog.text
    assert "555" not in caplog.text
