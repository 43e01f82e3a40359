"""Checks that web/dist was built from the current web/src. Part of `make check`; needs no npm."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from .setup_tools import ROOT

WEB = ROOT / "web"
TOP = ("index.html", "package-lock.json", "tsconfig.json", "vite.config.js")
CURE = "run `npm ci && npm run build` in web/ and commit web/dist"


def sources_digest(web: Path) -> str:
    """Equals `sourcesDigest` in web/vite.config.js."""
    names = sorted([*TOP, *(f"src/{path.name}" for path in (web / "src").iterdir())])
    lines = [f"{name} {hashlib.sha256((web / name).read_bytes()).hexdigest()}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def breaches(web: Path) -> Iterator[str]:
    record = web / "dist" / "build.json"
    if not record.is_file():
        yield f"web/dist is missing; {CURE}"
    elif json.loads(record.read_text())["sources"] != sources_digest(web):
        yield f"web/dist is older than its sources; {CURE}"
    # npm writes the address of the registry in use, which may be unreachable from elsewhere.
    if '"resolved"' in (web / "package-lock.json").read_text():
        yield 'web/package-lock.json names a registry; remove its "resolved" lines'


def main() -> int:
    found = list(breaches(WEB))
    for what in found:
        print(what)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
