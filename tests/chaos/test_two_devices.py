"""Two real engines behind one address: `serve --devices cpu,cpu`, `tiny`, killed and drained."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
import pytest

from csm_tts_plugin.client.call import Call, Manner
from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.client.reply import Reply, numbered
from csm_tts_plugin.config import SAMPLE_RATE
from csm_tts_plugin.errors import BusyError
from tests.server.conftest import listen
from tests.server.test_devices import engines_of, ready
from tests.server.test_process import line_with, process, until_status
from tests.support.processes import wait_until
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(600)

SERVE = (sys.executable, "-m", "csm_tts_plugin", "serve", "--model", "tiny", "--port", "0")
SENTENCES = [
    "The engine at your side is about to end.",
    "Nobody should notice a thing.",
    "This is the last one.",
]
SEED = 7
LIMIT_S = 240.0
ROUNDING = 8
"""In steps of 16-bit samples."""


class Listener:
    def __init__(self):
        self.pcm, self.texts = b"", []

    def text(self, sentence, seconds):
        self.texts.append((sentence, seconds))

    def sound(self, pcm):
        self.pcm += pcm


@asynccontextmanager
async def serving_two(*options):
    command = (*SERVE, "--devices", "cpu,cpu", "--threads", "1", *options)
    with process(command=command) as child:
        url = (await asyncio.to_thread(line_with, child, "listening")).split()[-1]
        await asyncio.to_thread(line_with, child, "ready: 2 engines on cpu, cpu")
        yield child, url


async def speak(url, listener, heard=None):
    """A reply in which the seed determines the audio of each sentence."""
    async with EngineClient(url, timeout=LIMIT_S) as client:

        async def connect():
            return client

        async def sentences():
            for sentence in numbered(SENTENCES, more_to_come=False):
                yield sentence
                if heard is not None:
                    await heard.wait()

        call = Call(connect, Manner(seed=SEED))
        try:
            await Reply(call, lambda: 4.0, listener, 24_000, LIMIT_S).speak(
                sentences(), lambda call: None
            )
        finally:
            await call.aclose()


async def test_sigkill_under_load_loses_no_sentence_and_says_none_twice():
    async with serving_two("--slots", "4", "--watermark", "off") as (child, url):
        whole = Listener()
        await speak(url, whole)
        victim, _ = engines_of(child)
        listeners = [Listener() for _ in range(4)]
        replies = [asyncio.create_task(speak(url, listener)) for listener in listeners]
        await until(
            lambda: all(listener.pcm for listener in listeners) or any(r.done() for r in replies)
        )
        assert not any(reply.done() for reply in replies), "killed while all speak"
        os.kill(victim, signal.SIGKILL)
        await asyncio.wait_for(asyncio.gather(*replies), LIMIT_S)
        again = [begun_again(listener, whole) for listener in listeners]
        assert again.count(0) >= 2, "those of the other engine are as if nothing had been"
        assert sum(map(bool, again)) >= 1, "one was killed in the middle of a sentence"
        async with EngineClient(url) as client:
            await until_ready(client, 2)
            restarts = [one["restarts"] for one in (await client.status())["engines"]]
            assert sorted(restarts) == [0, 1]


def begun_again(listener, whole):
    """Samples of a sentence that were heard before it was spoken again.

    Fails if `listener` did not hear each sentence complete and in order, apart from one such part.
    """
    pcm, same = samples(listener), samples(whole)
    extra = len(pcm) - len(same)
    starts = [round(seconds * SAMPLE_RATE) for _, seconds in whole.texts]
    assert any(
        alike(pcm[: at + extra], same[: at + extra]) and alike(pcm[at + extra :], same[at:])
        for at in starts
    ), f"{len(pcm)} samples are not {len(same)} and a part of one sentence"
    return extra


def samples(listener):
    return np.frombuffer(listener.pcm, "<i2").astype(int)


def joined(chunks):
    return np.frombuffer(b"".join(chunk.pcm for chunk in chunks), "<i2").astype(int)


def alike(one, other):
    """Equal up to rounding: the order of sums depends on the other streams in the batch."""
    return len(one) == len(other) and (not len(one) or np.abs(one - other).max() <= ROUNDING)


async def until_ready(client, count):
    async with asyncio.timeout(LIMIT_S):
        while await ready(client) < count:  # noqa: ASYNC110  a poll
            await asyncio.sleep(0.1)


async def test_full_engines_and_a_drain_under_load():
    async with serving_two("--slots", "1", "--queue", "0", "--watermark", "off") as (child, url):
        async with EngineClient(url, timeout=LIMIT_S) as client, aiohttp.ClientSession() as http:
            several = [await client.conversation(seed=SEED) for _ in range(2)]
            said = [await one.say(" ".join(SENTENCES), max_seconds=8.0) for one in several]
            tasks = [asyncio.create_task(listen(one)) for one in said]
            await until_status(client, speaking=2)
            third = await client.conversation()
            with pytest.raises(BusyError) as refused:
                await listen(await third.say("There is no room for this."))
            assert refused.value.retry_after > 0
            body = {"input": "Nor for this.", "response_format": "pcm"}
            async with http.post(f"{url}/v1/audio/speech", json=body) as answer:
                assert (answer.status, "Retry-After" in answer.headers) == (503, True)
                assert (await answer.json())["error"]["code"] == "busy"
            child.send_signal(signal.SIGTERM)
            await until_status(client, ready=False)
            heard = await asyncio.gather(*tasks)
            assert [one.result.reason in ("end", "length") for one in said] == [True, True]
            assert alike(*map(joined, heard)), "both spoke to their end"
        assert await asyncio.to_thread(child.wait, LIMIT_S) == 0
        assert wait_until(lambda: not engines_of(child))
