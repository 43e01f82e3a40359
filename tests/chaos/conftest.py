"""Uses the fixtures of the server's tests: no task, thread or socket may be left over."""

from tests.server.conftest import nothing_left, server  # noqa: F401
