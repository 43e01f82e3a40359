"""Two LiveKit servers joined by Redis: a caller at either reaches the same worker."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack, contextmanager

import pytest

from scripts.livekit_server import LiveKitServer
from tests.call.centre import AgentWorker, free_port, greeted, parrot

REDIS = shutil.which("redis-server")

pytestmark = [
    pytest.mark.call,
    pytest.mark.soak,
    pytest.mark.timeout(900),
    pytest.mark.skipif(REDIS is None, reason="no redis-server here; Debian's package has it"),
]


@contextmanager
def redis(folder):
    """Redis on loopback, only in memory; its address."""
    port = free_port()
    words = [REDIS, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def nodes(tmp_path):
    """Two servers with the same key."""
    with ExitStack() as stack:
        address = stack.enter_context(redis(tmp_path))
        first = stack.enter_context(LiveKitServer(tmp_path / "first.log", redis=address))
        second = LiveKitServer(tmp_path / "second.log", secret=first.secret, redis=address)
        yield first, stack.enter_context(second)


async def test_a_worker_at_one_node_takes_the_calls_of_both(nodes, quick_engine, tmp_path):
    first, second = nodes
    with parrot() as llm:
        models = {"AGENT_STT": "openai:none", "AGENT_LLM": "openai:parrot"}
        env = {**first.keys, **quick_engine, **models, "OPENAI_BASE_URL": llm.url}
        worker = AgentWorker(tmp_path / "worker.log", env, tmp_path / "figures")
        with worker.child:
            worker.wait_ready()
            async with greeted(second), greeted(first):
                assert worker.calls == 2
