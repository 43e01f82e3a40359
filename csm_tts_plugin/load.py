"""How full an engine is, out of what it says of itself at `/readyz`.

The one measure by which a client picks an engine and a worker tells LiveKit what it can take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

QUIET_ROWS = 32
"""Conversations that an engine keeps on its device beside those that speak, at most."""


def rows_for(slots: int) -> int:
    """Conversations whose context stays on the device while `slots` utterances are spoken."""
    return slots + min(slots, QUIET_ROWS)


def fullness(status: Mapping[str, Any]) -> float:
    """0 idle, 1 full, more where some wait; infinite for an engine that cannot speak.

    The share of its rows that calls hold, from their first second, when they have not said a word
    yet. Slots count when none is free: how many speak changes from second to second, and whoever
    calls while one is free can be greeted.
    """
    slots = int(status.get("slots") or 0)
    if not status.get("ready") or not slots:
        return math.inf
    busy = (status.get("speaking", 0) + status.get("queued", 0)) / slots
    held = status.get("conversations", 0) / rows_for(slots)
    return float(max(held, busy) if busy >= 1 else held)
