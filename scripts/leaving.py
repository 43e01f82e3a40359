"""Ends a process that has used LiveKit's native library."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Exits with `code`, without finalising the interpreter.

    LiveKit's threads may still call into Python then. Python ends such a thread in the middle of
    native code, which aborts the process with exit code 134 (once in eleven runs of the consent
    tests).
    """
    atexit.unregister(leave)  # it may be an exit function itself
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
