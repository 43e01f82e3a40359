"""Compiles `frame.c` and `codec.c` for this machine's processor and loads it.

It takes about a second, so nothing is cached: a cached library could be one for another processor.
"""

from __future__ import annotations

import ctypes
import functools
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = tuple(Path(__file__).with_name(name) for name in ("frame.c", "codec.c"))
COMPILERS = ("cc", "gcc", "clang")
_FLAGS = shlex.split("-O3 -std=gnu11 -fno-math-errno -fno-trapping-math -fPIC -shared")
_TARGETS: tuple[list[str], ...] = (["-march=native"], ["-mcpu=native"], [])
"""Tried in this order: not every compiler knows each of them on each processor."""
_SECONDS = 60.0


class BuildError(Exception):
    """There is no library; the message says why, in a few words."""


def compiler() -> str | None:
    """The C compiler to use, or None."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


@functools.cache
def shared() -> ctypes.CDLL:
    """The kernels, compiled at the first call. Raises BuildError."""
    return load()


def load() -> ctypes.CDLL:
    """Compile and load the kernels. Raises BuildError."""
    program = compiler()
    if program is None:
        raise BuildError("no C compiler")
    with tempfile.TemporaryDirectory(prefix="csm-tts-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "kernels.so"
        for target in _TARGETS:
            command = [program, *_FLAGS, *target, *map(str, SOURCES), "-o", str(path), "-lm"]
            if _run(command) == 0:
                return _loaded(path)
    raise BuildError(f"{Path(program).name} does not compile them")


def _run(command: list[str]) -> int:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the C compiler fails: {type(error).__name__}") from None
    return done.returncode


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError("the compiled library cannot be loaded") from error
