"""Tests of one engine's server behind a router: clients see no difference.

`BEHIND_ROUTER=1 pytest tests/server tests/chaos` puts one in front of the servers of all tests.
Tests that then fail count addresses, read metrics that have no label, or wait until a socket is
closed that a router keeps for the next request.
"""

from __future__ import annotations

import pytest

from tests.chaos import test_half_open
from tests.server import (
    conftest,
    test_draining,
    test_failing_clients,
    test_openai_speech,
    test_origins,
    test_refusals,
    test_resumed_links,
    test_seed_socket,
    test_shares,
)

openai_client = test_openai_speech.openai_client

SAME = {
    test_half_open: "a_half_open_client_gives_its_slot_to_who_waits",
    test_draining: "what_is_new_is_refused_on_every_route_with_when_to_come_back",
    test_failing_clients: """
        a_client_that_never_opens_is_dropped
        a_stalled_reader_is_dropped_and_holds_nobody_back
        random_bytes_leave_the_server_speaking""",
    test_openai_speech: """
        a_body_too_large_is_refused
        a_busy_engine_is_503_with_retry_after
        a_client_that_leaves_frees_the_engine
        a_reader_that_stops_reading_holds_no_slot
        a_speech_that_breaks_off_is_not_taken_for_a_whole_one""",
    test_origins: """
        an_allowed_page_gets_cors_answers_for_speech_and_for_errors
        preflights_of_allowed_pages_are_answered_without_a_key
        foreign_pages_are_refused_before_anything_is_done""",
    test_refusals: """
        a_key_may_come_with_open
        a_wrong_or_missing_key_takes_nothing
        an_inline_voice_reaches_the_engine
        an_oversized_message_closes_the_socket
        nothing_is_said_before_open""",
    test_resumed_links: """
        a_cancel_reaches_the_engine_over_the_next_connection
        a_client_that_closes_is_freed_at_once
        a_client_that_does_not_come_back_is_forgotten
        an_utterance_goes_on_where_it_was
        nobody_else_takes_a_conversation_over""",
    test_seed_socket: "requests_of_a_socket_are_answered_in_order_and_not_without_end",
    test_shares: "every_route_counts_for_its_key",
}
"""Test names without `test_`."""

for module, names in SAME.items():
    globals().update({f"test_{name}": getattr(module, f"test_{name}") for name in names.split()})


@pytest.fixture(autouse=True)
def behind(monkeypatch):
    monkeypatch.setattr(conftest, "BEHIND_ROUTER", True)
