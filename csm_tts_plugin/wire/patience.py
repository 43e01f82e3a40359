"""A limit for the wait for another process, which this process's own pauses do not use up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_STEPS = 8
"""Parts of the time, each counted when the event loop comes to it: a pause counts as one."""


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Like `asyncio.timeout`, but in time in which the event loop runs. Raises TimeoutError.

    When the loop goes on after a pause, such as a garbage collection on a busy machine, the answer
    may have arrived long ago. It takes several turns of the loop to read it, and a timer of
    `asyncio.timeout` that is due is executed in the first.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    async with asyncio.timeout(None) as limit:

        def step(left: int) -> None:
            nonlocal timer
            if left:
                timer = loop.call_later(seconds / _STEPS, step, left - 1)
            else:
                limit.reschedule(loop.time())

        timer = loop.call_later(seconds / _STEPS, step, _STEPS - 1)
        try:
            yield
        finally:
            timer.cancel()
