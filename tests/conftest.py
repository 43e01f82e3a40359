"""Shared fixtures of all tests."""

from hypothesis import settings

# No time limit on one example: the machine may be busy.
settings.register_profile("csm", deadline=None, print_blob=True)
settings.load_profile("csm")
