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

    Whichever is scarcer: slots, which are taken while somebody speaks, or rows, which a call holds
    from its first second, when it has not said a word yet.
    """
    slots = status.get("slots")
    if not status.get("ready") or not slots:
        return math.inf
    busy = float(status.get("speaking", 0) + status.get("queued", 0)) / float(slots)
    return max(busy, float(status.get("conversations", 0)) / rows_for(int(slots)))
