"""Background tasks of a call. Their failure does not end the call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger("csm_tts_plugin.agent")


class Background:
    """Runs coroutines on the event loop and keeps a reference to each until it is done."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Starts `work`. Its exceptions are only logged, because the room may be closed already."""
        task = asyncio.create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception as error:
        logger.info("a task of the call failed, the room may be closed (%s)", type(error).__name__)
