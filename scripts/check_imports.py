"""What no linter knows of this project: who may import whom, how long a file may be, no pickles.

Part of `make check`. Prints one line for each breach and ends with 1 when there is any.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .setup_tools import ROOT

LONGEST = 420
"""Lines of one Python file."""

PACKAGE = "csm_tts_plugin"

LIVEKIT_ONLY_IN = ("csm_tts_plugin/tts.py", "csm_tts_plugin/offline/")
"""Of the package; agent.py, scripts, benchmarks, tests and livekit/plugins/csm lie outside it."""

LOWEST = {"errors", "config", "version", "fields", "text", "load", "telemetry"}
MAY_IMPORT: dict[str, set[str]] = {
    "telemetry": {"errors", "config"},
    "audio": LOWEST,
    "protocol": LOWEST,
    "engine": LOWEST | {"audio"},
    "voices": LOWEST | {"audio", "engine", "protocol"},
    "server": LOWEST | {"audio", "engine", "voices", "protocol"},
    "conversation": LOWEST | {"protocol"},
    "client": LOWEST | {"protocol", "conversation", "engine.api"},
    "offline": LOWEST | {"audio"},
}
"""What each part may import of the package besides itself; parts not named here may import all."""

UNSAFE_CALLS = {("torch", "load"), ("yaml", "load")}
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}


def breaches(path: str, source: str) -> Iterator[str]:
    """What is wrong with one file; `path` is relative to the repository, with slashes."""
    lines = source.count("\n")
    if lines > LONGEST:
        yield f"{path}: {lines} lines, more than {LONGEST}; make it two files"
    for node in ast.walk(ast.parse(source, path)):
        yield from (f"{path}:{node.lineno}: {what}" for what in _of_node(path, node))  # type: ignore[attr-defined]


def _of_node(path: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        if isinstance(owner, ast.Name) and (owner.id, node.func.attr) in UNSAFE_CALLS:
            yield f"{owner.id}.{node.func.attr} runs what a file says; use safetensors or json"
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        for module in _imported(path, node):
            yield from _of_import(path, module)


def _of_import(path: str, module: str) -> Iterator[str]:
    top = module.split(".")[0]
    if top in UNSAFE_MODULES:
        yield f"{top} runs what a file says; use safetensors or json"
    if not path.startswith(f"{PACKAGE}/"):
        return
    if top == "livekit" and not path.startswith(LIVEKIT_ONLY_IN):
        yield "only tts.py and offline/ may import livekit"
    part = path.split("/")[1].removesuffix(".py")
    allowed = MAY_IMPORT.get(part)
    if top == PACKAGE and allowed is not None:
        wanted = module.split(".")[1:]
        own = not wanted or wanted[0] == part
        if not own and not {wanted[0], ".".join(wanted[:2])} & allowed:
            yield f"{part} may not import {'.'.join(wanted)}"


def _imported(path: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """Full names of the modules that one statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not node.level:
        return [node.module or ""]
    package = path.split("/")[: -node.level]
    base = ".".join([*package, *([node.module] if node.module else [])])
    return [base] if node.module else [f"{base}.{alias.name}" for alias in node.names]


def tracked_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    names = listed.stdout.split("\n") if listed.returncode == 0 else _all_files()
    return sorted(name for name in names if name and (ROOT / name).is_file())


def _all_files() -> list[str]:
    """Where there is no git: an unpacked archive."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return [path.as_posix() for path in found if not path.parts[0].startswith(".")]


def main() -> int:
    found = [
        what for name in tracked_files() for what in breaches(name, Path(ROOT / name).read_text())
    ]
    for what in found:
        print(what)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
