"""Runs the engine's tests with the oldest versions that pyproject.toml allows: `make test-oldest`.

No other test would find a minimum version that is too low. The packages are installed into
`.tools/oldest`, apart from `.venv`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from .setup_tools import ROOT, TOOLS

_FOLDER = TOOLS / "oldest"
_EXTRAS = ("engine", "adapters")
_TESTS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis")


def main(arguments: Sequence[str]) -> int:
    uv, python = TOOLS / "uv" / "bin" / "uv", _FOLDER / "bin" / "python"
    pinned = (ROOT / "requirements-dev.txt").read_text().split()
    tests = [line for line in pinned if line.partition("==")[0] in _TESTS]
    make = [str(uv), "venv", "--quiet", "--clear", "--python", sys.executable]
    subprocess.run([*make, str(_FOLDER)], check=True)
    install = [str(uv), "pip", "install", "--quiet", "--python", str(python)]
    extras = [part for extra in _EXTRAS for part in ("--extra", extra)]
    lowest = ["--resolution", "lowest-direct", "-r", str(ROOT / "pyproject.toml"), *extras]
    subprocess.run([*install, *lowest, *tests], check=True)
    listed = [str(uv), "pip", "list", "--quiet", "--python", str(python)]
    subprocess.run(listed, check=True)
    return subprocess.run(
        [str(python), "-m", "pytest", "-q", "tests/engine", *arguments], cwd=ROOT
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
