"""The limit for waits for another process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from csm_tts_plugin.wire.patience import patience

LIMIT_S = 0.2


class Answering:
    """A server on a thread that answers one question."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.answered = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self.listening, self.listening.accept()[0] as one:
            one.recv(1)
            one.sendall(b"!")
        self.answered.set()

    def pause(self) -> None:
        """The event loop stands still until the answer is there, and for longer than the limit."""
        self.answered.wait()
        time.sleep(2 * LIMIT_S)


async def test_an_answer_that_came_in_a_pause_of_this_process_is_in_time():
    server = Answering()
    reader, writer = await asyncio.open_connection(*server.listening.getsockname())
    async with patience(LIMIT_S):
        writer.write(b"?")
        asyncio.get_running_loop().call_soon(server.pause)
        assert await reader.read() == b"!"
    writer.close()


async def test_it_ends_a_wait_for_what_never_comes():
    with pytest.raises(TimeoutError):
        async with patience(LIMIT_S):
            await asyncio.Event().wait()


async def test_it_is_over_with_its_block():
    problems: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: problems.append(told))
    async with patience(LIMIT_S):
        pass
    await asyncio.sleep(2 * LIMIT_S)
    assert not problems


async def test_a_cancelled_wait_is_not_a_late_one():
    async def wait() -> None:
        async with patience(60.0):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_within_it_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError):
        async with patience(60.0):
            _ = 1 / 0
