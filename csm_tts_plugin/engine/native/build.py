"""Compiles `frame.c` and `codec.c` for this machine's processor and loads them.

It takes a second, so the result is kept in the user's cache folder, under a name that stands for
sources, compiler and processor: a library for another processor would end the process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from contextlib import suppress
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
_TOLD = 80
"""The most characters of a compiler's error that are told."""
_OLD = 8
"""Libraries of other versions that stay in the folder."""
_LOCK = threading.Lock()


class BuildError(Exception):
    """There is no library; the message says why, in a few words."""


def compilers() -> list[str]:
    """The C compilers of this machine."""
    found = [path for name in COMPILERS if (path := shutil.which(name))]
    return list(dict.fromkeys(found))


def shared() -> ctypes.CDLL:
    """The library, loaded at the first call. Raises BuildError."""
    with _LOCK:
        found = _shared()
    if isinstance(found, BuildError):
        raise found
    return found


@functools.cache
def _shared() -> ctypes.CDLL | BuildError:
    try:
        return load()
    except BuildError as error:
        return error


def load() -> ctypes.CDLL:
    """Compile the library, unless it was kept, and load it. Raises BuildError."""
    programs = compilers()
    if not programs:
        raise BuildError("no C compiler")
    try:
        kept = _kept(programs)
        if kept is not None and kept.exists():
            with suppress(OSError):
                return _opened(kept)
        return _made(programs, kept)
    except OSError as error:
        raise BuildError(f"the library cannot be kept or loaded ({error.strerror})") from None


def _made(programs: list[str], kept: Path | None) -> ctypes.CDLL:
    """Compile and load it. Raises BuildError and OSError."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        path = Path(work) / "kernels.so"
        _compile(programs, path)
        if kept is not None:
            with suppress(OSError):
                return _opened(_moved(path, kept))
        return ctypes.CDLL(str(path))


def _moved(path: Path, kept: Path) -> Path:
    """Put a copy in the cache folder, complete from the first moment on."""
    for old in sorted(kept.parent.glob("kernels-*.so"), key=lambda one: one.stat().st_mtime)[
        :-_OLD
    ]:
        old.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
        file.write(path.read_bytes())
    return Path(file.name).replace(kept)


def _opened(path: Path) -> ctypes.CDLL:
    """Raises OSError if it is not this user's own file or no library."""
    if not _own(path):
        raise OSError("the library belongs to somebody else")
    return ctypes.CDLL(str(path))


def _own(path: Path) -> bool:
    """Whether only this user can change what is at `path`, which is no link."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return False
    return found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o022


def _compile(programs: list[str], path: Path) -> None:
    """Raises BuildError if no compiler makes the library at `path`."""
    reason = ""
    for program in programs:
        for target in _TARGETS:
            command = [program, *_FLAGS, *target, *map(str, SOURCES), "-o", str(path), "-lm"]
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=_SECONDS,
                    check=False,
                    text=True,
                    errors="replace",
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                reason = type(error).__name__
                break
            if done.returncode == 0:
                return
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            reason = errors[0].rpartition("error: ")[2][:_TOLD] if errors else "it fails"
    raise BuildError(f"{Path(programs[-1]).name} does not compile them ({reason})")


def _kept(programs: list[str]) -> Path | None:
    """Where the library is kept; None if there is no folder that only this user can write to, or
    if the processor is not known.
    """
    try:
        processor, folder = _processor(), cache_folder()
        if not folder.is_absolute():
            return None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _own(folder):
            return None
        parts = [processor, repr((_FLAGS, _TARGETS))]
        parts += [f"{path} {Path(path).resolve().stat().st_mtime_ns}" for path in programs]
        parts += [path.read_text() for path in (*SOURCES, *HEADERS)]
    except (OSError, RuntimeError, AttributeError):
        return None
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return folder / f"kernels-{key[:24]}.so"


def _processor() -> str:
    """Model and features of the processor. Raises OSError where they are not known."""
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    lines = _PROCESSOR.read_text().split("\n\n")[0].splitlines()
    found = [line for line in lines if line.startswith(names)]
    if not found:
        raise OSError("no features")
    return "\n".join([platform.machine(), *found])
