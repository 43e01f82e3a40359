"""Shared fixtures of all tests."""

import atexit
import os

import pytest
from hypothesis import settings

from scripts.leaving import leave

# As in `make test`, also if pytest is started alone: two threads of torch beside other work take
# twenty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No time limit on one example: the machine may be busy.
settings.register_profile("csm", deadline=None, print_blob=True)
settings.load_profile("csm")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    atexit.register(leave, int(exitstatus))
