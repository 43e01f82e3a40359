"""Speech over a bad network: complete audio or a typed error, in bounded time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.errors import CsmError, EngineTimeoutError
from tests.chaos.figures import record
from tests.chaos.proxy import POOR, FaultyProxy, Link
from tests.server.conftest import listen

TEXT = "This is the sentence with the number {n}, and it goes on for a while."
AT_ONCE = 20
"""No more than the engine has places for: refusals are tested elsewhere."""
PATIENCE_S = 30.0
"""The client's timeout: longer than any single fault of the link."""


@pytest.fixture
def rng():
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


def pcm(chunks):
    return b"".join(chunk.pcm for chunk in chunks)


async def whole(url, text):
    """The complete audio over a good link."""
    async with EngineClient(url, timeout=60.0, connect_timeout=60.0) as client:
        return pcm(await listen(await (await client.conversation()).say(text)))


async def attempt(url, text):
    """What was heard, and the error that ended it or None."""
    heard = []
    async with EngineClient(url, timeout=PATIENCE_S, connect_timeout=PATIENCE_S) as client:
        try:
            conversation = await client.conversation()
            async for chunk in await conversation.say(text):
                heard.append(chunk)
        except CsmError as error:
            return pcm(heard), error
    return pcm(heard), None


async def speak_over(server, link, rng, count):
    """Checks every outcome; the numbers of complete utterances, of connections that the link reset,
    and of utterances that took longer than PATIENCE_S, as is possible on a busy machine.
    """
    texts, gate = [TEXT.format(n=n) for n in range(count)], asyncio.Semaphore(AT_ONCE)

    async def one(url, text):
        async with gate:
            return await attempt(url, text)

    wanted = [await whole(server.url, text) for text in texts]
    async with FaultyProxy(server.url, link, rng) as proxy:
        # PATIENCE_S bounds each step of an attempt: opening, and each chunk's arrival.
        async with asyncio.timeout(15.0 * max(AT_ONCE, count)):
            outcomes = await asyncio.gather(*(one(proxy.url, text) for text in texts))
    await server.settle()
    for (heard, error), sound in zip(outcomes, wanted, strict=True):
        assert sound.startswith(heard)
        assert error is not None or heard == sound
        assert error is None or error.retryable
    late = sum(isinstance(error, EngineTimeoutError) for _, error in outcomes)
    return sum(error is None for _, error in outcomes), proxy.resets, late


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.soak)])
async def test_utterances_are_byte_complete_or_a_typed_error(server, rng, count):
    """An utterance cut by a broken connection resumes over the next one."""
    complete, resets, late = await speak_over(server, POOR, rng, count)
    record("poor_link", utterances=count, whole=complete, resets=resets, timeouts=late)
    assert resets >= count // 10, "the link was poor"
    assert complete >= 0.95 * count


@pytest.mark.parametrize(
    "link",
    [
        replace(POOR, resets=0.0),
        Link(slices=0.2),
        Link(stall_s=0.5, stalls=0.5),
    ],
)
async def test_a_link_that_loses_nothing_loses_no_byte_of_speech(server, rng, link):
    assert await speak_over(server, link, rng, 8) == (8, 0, 0)


async def test_a_link_that_dies_at_once_is_a_typed_error(server, rng):
    assert (await speak_over(server, Link(resets=1.0), rng, 8))[0] == 0
