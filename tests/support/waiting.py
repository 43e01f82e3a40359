"""Waits for named conditions, with limits that suit a busy machine."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

LIMIT_S = 150.0
"""Below pytest's own limit, whose error would not name the condition."""
STEP_S = 0.01


async def until(condition: Callable[[], object], what: str = "", limit_s: float = LIMIT_S) -> None:
    """Waits until it is true. Raises AssertionError, which names `what`, else the waiting line."""
    try:
        async with asyncio.timeout(limit_s):
            while not condition():  # noqa: ASYNC110  threads and processes set no event
                await asyncio.sleep(STEP_S)
    except TimeoutError:
        what = what or inspect.getsource(condition).strip()
        raise AssertionError(f"not within {limit_s:g} s: {what}") from None
