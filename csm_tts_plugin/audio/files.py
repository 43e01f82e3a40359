"""Writes files completely or not at all: to a temporary file beside the target, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

_OTHERWISE = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors if no file can be created in the folder; an existing one may still be writable."""
_BOUND = (errno.EBUSY, errno.EXDEV)
"""Errors if the existing file is a mount, as in containers, and cannot be replaced."""


class WholeFile:
    """A context manager: write to `file`, which can be read and seeked; leaving the context puts it
    in place, and after an exception the existing file stays. Links and file modes are kept.

    `private`: readable by its owner only. Raises OSError, at once if nothing can be written.
    """

    def __init__(self, path: str | Path, *, private: bool = False) -> None:
        self._target = Path(os.path.realpath(path))
        if self._target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        self._draft: Path | None = self._target.with_name(
            f".{self._target.name[:200]}.{secrets.token_hex(4)}.part"
        )
        self.file: IO[bytes]
        try:
            self.file = open(os.open(self._draft, _FLAGS, self._mode(private)), "w+b")  # noqa: SIM115
        except OSError as error:
            if error.errno not in _OTHERWISE or not os.access(self._target, os.W_OK):
                raise
            self._draft = None
            self.file = tempfile.TemporaryFile()  # noqa: SIM115

    def commit(self) -> None:
        """Put it in place."""
        self.file.flush()
        if self._draft is None:
            return self._copy(self.file)
        os.fsync(self.file.fileno())
        if self._target.exists():
            with suppress(OSError):
                os.chmod(self._draft, stat.S_IMODE(self._target.stat().st_mode))
        try:
            self._draft.replace(self._target)
        except OSError as error:
            if error.errno not in _BOUND:
                raise
            self._copy(self.file)

    def discard(self) -> None:
        """Remove the temporary file, unless it was put in place."""
        self.file.close()
        if self._draft is not None:
            self._draft.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.discard()

    def _mode(self, private: bool) -> int:
        return 0o600 if private else 0o666

    def _copy(self, source: IO[bytes]) -> None:
        source.seek(0)
        with self._target.open("wb") as target:
            shutil.copyfileobj(source, target)


_FLAGS = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)


def write_whole(path: str | Path, data: bytes | str, *, private: bool = False) -> None:
    """Write a file with these bytes, or with this text in UTF-8. Raises OSError."""
    with WholeFile(path, private=private) as whole:
        whole.file.write(data.encode() if isinstance(data, str) else data)


def is_special(path: str | Path) -> bool:
    """Whether it is a pipe, a terminal or a device, which is written to directly."""
    found = Path(path)
    return found.exists() and not found.is_file() and not found.is_dir()
