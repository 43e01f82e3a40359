"""Lists processes and their children."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.support.waiting import LIMIT_S


def parents() -> dict[int, int]:
    """Every process with its parent; zombies do not count."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found


def descendants(pid: int) -> set[int]:
    family, all_parents = {pid}, parents()
    while more := {child for child, parent in all_parents.items() if parent in family} - family:
        family |= more
    return family


def wait_until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> bool:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return False
