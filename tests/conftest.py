"""Shared fixtures of all tests."""

import atexit

import pytest
from hypothesis import settings

from scripts.leaving import leave

# No time limit on one example: the machine may be busy.
settings.register_profile("csm", deadline=None, print_blob=True)
settings.load_profile("csm")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    atexit.register(leave, int(exitstatus))
