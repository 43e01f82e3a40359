"""What the server's tests share serves here too: nothing may be left over."""

from tests.server.conftest import nothing_left, server  # noqa: F401
