"""Checks that linters do not cover: the import rules, the length of files, and unsafe loaders.

Part of `make check`. Prints one line for each violation. The exit code is 1 if there is one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .setup_tools import ROOT

LONGEST = 420
"""The most lines that a Python file may have."""

PACKAGE = "csm_tts_plugin"

LIVEKIT_ONLY_IN = tuple(
    f"csm_tts_plugin/{part}" for part in ("tts.py", "agent.py", "worker.py", "offline/")
)
"""Within the package. agent.py, scripts, benchmarks and tests may import livekit too."""

BASE = "errors config version telemetry"
MAY_IMPORT: dict[str, set[str]] = {
    part: set(allowed.split())
    for part, allowed in {
        # part       may import, besides itself
        "errors": "",
        "version": "",
        "config": "errors",
        "telemetry": "errors config version",
        "text": BASE,
        "wire": BASE,
        "audio": BASE,
        "engine": f"{BASE} audio text.weight",
        "library": f"{BASE} audio engine text",
        "voices": f"{BASE} audio engine wire",
        "server": f"{BASE} audio engine wire text voices",
        "client": f"{BASE} audio wire text engine.api voices.voice server.supervisor",
        "caller": f"{BASE} audio wire voices",
        "offline": f"{BASE} audio text",
        "tts": f"{BASE} audio wire text client voices.voice",
        "agent": f"{BASE} caller offline.endings tts",
        "worker": f"{BASE} engine.api wire voices caller offline server.supervisor",
        "commands": f"{BASE} audio engine library wire text voices server client offline",
    }.items()
}
"""Layers of the package, lowest first. `__init__` and `__main__` import on demand: unchecked."""

UNSAFE_CALLS = {("torch", "load"), ("yaml", "load")}
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}


def breaches(path: str, source: str) -> Iterator[str]:
    """The violations in one file; `path` is relative to the repository, with slashes."""
    lines = source.count("\n")
    if lines > LONGEST:
        yield f"{path}: {lines} lines, more than {LONGEST}; split the file"
    for node in ast.walk(ast.parse(source, path)):
        yield from (f"{path}:{node.lineno}: {what}" for what in _of_node(path, node))  # type: ignore[attr-defined]


def _of_node(path: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        called = isinstance(owner, ast.Name) and (owner.id, node.func.attr)
        if called in UNSAFE_CALLS and not _converts(path, node):
            yield f"{owner.id}.{node.func.attr} can run code from a file; use safetensors or json"
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        for module in _imported(path, node):
            yield from _of_import(path, module)


def _converts(path: str, node: ast.Call) -> bool:
    """A conversion script may call `torch.load(weights_only=True)`, which reads only tensors."""
    said = {one.arg: ast.unparse(one.value) for one in node.keywords}
    return path.startswith("scripts/convert_") and said.get("weights_only") == "True"


def _of_import(path: str, module: str) -> Iterator[str]:
    top = module.split(".")[0]
    if top in UNSAFE_MODULES:
        yield f"{top} can run code from a file; use safetensors or json"
    if not path.startswith(f"{PACKAGE}/"):
        return
    if top == "livekit" and not path.startswith(LIVEKIT_ONLY_IN):
        yield f"only {', '.join(LIVEKIT_ONLY_IN)} may import livekit"
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
    """All Python files, for an unpacked archive without git."""
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
