"""Occupancy of an engine, computed from its `/readyz`.

Clients choose an engine by it, and workers report it to LiveKit as their load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

QUIET_ROWS = 32
"""The most conversations that an engine keeps on its device besides those that speak."""


def rows_for(slots: int) -> int:
    """The number of KV rows of an engine with `slots` slots."""
    return slots + min(slots, QUIET_ROWS)


def rows(status: Mapping[str, Any]) -> int:
    """Of an engine, or of all that are behind one address."""
    behind = status.get("engines") or [status]
    return sum(rows_for(int(one["slots"])) for one in behind if one.get("slots"))


def fullness(status: Mapping[str, Any]) -> float:
    """0 idle, 1 full, more if some wait; infinite for an engine that is not ready.

    It is the share of its rows that open calls use, even before their first word. Slots count only
    if none is free: the number of speaking calls changes from second to second, and a new call can
    be greeted while one is free. Of several engines behind one address (`engines`) the least full
    one counts, since it gets the next call.
    """
    if behind := status.get("engines"):
        return min(fullness(one) for one in behind) if status.get("ready") else math.inf
    slots = int(status.get("slots") or 0)
    if not status.get("ready") or not slots:
        return math.inf
    busy = (status.get("speaking", 0) + status.get("queued", 0)) / slots
    held = status.get("conversations", 0) / rows_for(slots)
    return float(max(held, busy) if busy >= 1 else held)
