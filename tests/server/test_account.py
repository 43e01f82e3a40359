"""The router's count of an engine's conversations, whenever the engine's reports arrive."""

from __future__ import annotations

import random
from contextlib import ExitStack

import pytest

from csm_tts_plugin.server.account import Account


class Engine:
    """An engine that the router reaches with delays: each step is taken when the test says so."""

    def __init__(self, others: int = 0) -> None:
        self.account = Account()
        self.conversations = others
        self.report()

    def report(self) -> None:
        """A report that arrives at once."""
        self.account.report(self.conversations, self.account.asked())

    def accept(self) -> ExitStack:
        """Opens a conversation that the router gives it; the stack closes it."""
        held = ExitStack()
        held.enter_context(self.account.giving())
        self.conversations += 1
        held.enter_context(self.account.opened())
        return held


@pytest.mark.parametrize("others", [0, 1, 4])
def test_a_report_in_the_middle_of_a_burst_changes_nothing(others):
    """Whatever of the burst the engine and the router had done when the report was asked for, made
    and received.
    """
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(500):
        engine, given, made = Engine(others), 0, None
        account, opened, known = engine.account, 0, 0
        asked = None
        with ExitStack() as held:
            while known < 8:
                step = chance.choice(["give", "open", "learn", "ask", "make", "receive"])
                if step == "give" and given < 8:
                    held.enter_context(account.giving())
                    given += 1
                elif step == "open" and opened < given:
                    engine.conversations += 1
                    opened += 1
                elif step == "learn" and known < opened:
                    held.enter_context(account.opened())
                    known += 1
                elif step == "ask" and asked is None:
                    asked, made = account.asked(), None
                elif step == "make" and asked is not None:
                    made = engine.conversations
                elif step == "receive" and asked is not None and made is not None:
                    account.report(made, asked)
                    asked = None
                assert account.held == others + given


def test_a_conversation_whose_client_was_lost_counts_until_the_engine_frees_it():
    engine = Engine()
    lost, stays = engine.accept(), engine.accept()
    engine.report()
    lost.close()
    engine.report()
    assert engine.account.held == 2
    engine.conversations -= 1
    engine.report()
    assert engine.account.held == 1
    stays.close()


def test_a_resumed_conversation_is_counted_once():
    engine = Engine()
    engine.accept().close()
    engine.report()
    with engine.account.giving(), engine.account.opened():  # of the one that the engine kept
        engine.report()
        assert engine.account.held == 1


def test_one_that_ends_before_a_report_is_made_takes_none_of_the_others_with_it():
    engine = Engine(others=1)
    held, asked = engine.accept(), engine.account.asked()
    engine.conversations -= 1
    held.close()
    engine.account.report(engine.conversations, asked)
    assert engine.account.held == 1


def test_one_that_ends_after_a_report_was_made_counts_no_more_after_the_next():
    engine = Engine(others=1)
    held, asked = engine.accept(), engine.account.asked()
    counted = engine.conversations
    engine.conversations -= 1
    held.close()
    engine.account.report(counted, asked)
    engine.report()
    assert engine.account.held == 1


def test_an_engine_that_does_not_answer_has_none_of_others():
    engine = Engine(others=3)
    engine.account.report(0, engine.account.asked())
    assert engine.account.held == 0
