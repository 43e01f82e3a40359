"""Compiles `frame.c` and `codec.c` for this machine's processor and loads them.

It takes a second, so the result is kept in the user's cache folder, under a name that stands for
sources, compiler and processor: a library for another processor would end the process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

from ...config import cache_folder

SOURCES = tuple(Path(__file__).with_name(name) for name in ("frame.c", "codec.c"))
HEADERS = tuple(Path(__file__).with_name(name) for name in ("layers.h", "vectors.h"))
COMPILERS = ("cc", "gcc", "clang")
_FLAGS = shlex.split("-O3 -std=gnu11 -fno-math-errno -fno-trapping-math -fPIC -shared")
_TARGETS: tuple[list[str], ...] = (["-march=native"], ["-mcpu=native"], [])
"""Tried in this order: not every compiler knows each of them on each processor."""
_PROCESSOR = Path("/proc/cpuinfo")
_SECONDS = 60.0
_LOCK = threading.Lock()


class BuildError(Exception):
    """There is no library; the message says why, in a few words."""


def compiler() -> str | None:
    """The C compiler to use, or None."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def shared() -> ctypes.CDLL:
    """The library, loaded at the first call. Raises BuildError."""
    with _LOCK:
        return _shared()


@functools.cache
def _shared() -> ctypes.CDLL:
    return load()


def load() -> ctypes.CDLL:
    """Compile the library, unless it was kept, and load it. Raises BuildError."""
    program = compiler()
    if program is None:
        raise BuildError("no C compiler")
    kept = _kept(program)
    if kept is not None and kept.is_file():
        try:
            return ctypes.CDLL(str(kept))
        except OSError:
            kept.unlink(missing_ok=True)
    folder = None if kept is None else kept.parent
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as work:
        path = Path(work) / "kernels.so"
        _compile(program, path)
        if kept is not None:
            path = path.replace(kept)
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise BuildError("the compiled library cannot be loaded") from error


def _compile(program: str, path: Path) -> None:
    for target in _TARGETS:
        command = [program, *_FLAGS, *target, *map(str, SOURCES), "-o", str(path), "-lm"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"the C compiler fails: {type(error).__name__}") from None
        if done.returncode == 0:
            return
    raise BuildError(f"{Path(program).name} does not compile them")


def _kept(program: str) -> Path | None:
    """Where the library is kept; None if there is no folder that only this user can write to, or
    if the processor is not known.
    """
    try:
        processor, folder = _processor(), cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
            return None
        if not os.access(folder, os.W_OK):
            return None
        parts = [processor, program, str(Path(program).resolve().stat().st_mtime_ns)]
        parts += [repr((_FLAGS, _TARGETS)), *(p.read_text() for p in (*SOURCES, *HEADERS))]
    except (OSError, RuntimeError, AttributeError):
        return None
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return folder / f"kernels-{key[:24]}.so"


def _processor() -> str:
    """Model and features of the processor. Raises OSError where they cannot be read."""
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    lines = _PROCESSOR.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(names))
