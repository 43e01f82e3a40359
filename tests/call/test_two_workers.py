"""Two workers and two engines behind one LiveKit server: distribution of calls, and failures."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import EngineConfig, ServerConfig
from csm_tts_plugin.server.supervisor import EngineProcess
from csm_tts_plugin.wire.load import rows_for
from scripts.livekit_server import LiveKitServer
from scripts.setup_tools import ROOT
from tests.call.centre import (
    LIMIT_S,
    AgentWorker,
    Parrot,
    calling,
    get_json,
    get_text,
    greeted,
    parrot,
    refusals,
    until,
)
from tests.chaos.figures import record
from tests.support.collector import Collector, attributes, collecting

pytestmark = [pytest.mark.call, pytest.mark.timeout(900)]

KEY = "the key of both engines"
SLOTS = 2
FULL = 3
"""Calls that put an engine of two slots above LiveKit's threshold of 0.7."""
REST = (
    "The third one comes from the other engine, and so do all that follow. "
    "Whoever hears the fourth one has lost nothing of what was said."
)
REPLY = (
    "This is the first sentence of a reply that takes its time. "
    "The second sentence of it follows here, and is not short either. "
    f"{REST}"
)

SHORT = "Are you still there?"


class Engine(EngineProcess):
    """A real engine with the model `tiny`; restarted when it dies."""

    def __init__(self) -> None:
        config = EngineConfig(model="tiny", device="cpu", slots=SLOTS, threads=1)
        super().__init__(config, ServerConfig(port=0, key=KEY), start_timeout=300.0)

    @property
    def status(self) -> dict:
        """`/readyz`, also of an engine that is loading; empty if the process does not listen."""
        try:
            return get_json(f"{self.url}/readyz")
        except urllib.error.HTTPError as unready:
            return json.load(unready)
        except OSError:
            return {}

    @property
    def conversations(self) -> int:
        return self.status.get("conversations", 0)

    @property
    def idle(self) -> bool:
        """Ready, also after a restart, and without a call."""
        status = self.status
        return bool(status.get("ready")) and not status["conversations"]

    @property
    def metrics(self) -> str:
        return get_text(f"{self.url}/metrics", KEY)

    @property
    def spoken(self) -> float:
        """Utterances that have ended, for any reason."""
        lines = self.metrics.splitlines()
        counts = [line for line in lines if line.startswith("csm_utterances_total")]
        return sum(float(line.split()[-1]) for line in counts)

    @asynccontextmanager
    async def filled(self, calls: int = FULL):
        """Holds this number of silent calls of other callers."""
        async with EngineClient(self.url, key=KEY, timeout=LIMIT_S) as client:
            for _ in range(calls):
                await client.conversation()
            yield


@dataclass
class Centre:
    """`one` knows the first engine only; `both` knows both."""

    livekit: LiveKitServer
    engines: tuple[Engine, Engine]
    one: AgentWorker
    both: AgentWorker
    collector: Collector
    llm: Parrot

    async def settled(self) -> None:
        """Waits until no call is left, both workers know it and both engines are ready."""

        def quiet() -> bool:
            workers = (self.one, self.both)
            alive = [worker for worker in workers if worker.child.code is None]
            calls = any(worker.calls or worker.load for worker in alive)
            return not calls and all(one.idle for one in self.engines)

        await until(quiet, "all calls are over")


@pytest.fixture(scope="module")
def centre(tmp_path_factory):
    logs = tmp_path_factory.mktemp("centre")
    with ExitStack() as stack:
        server = stack.enter_context(LiveKitServer(logs / "livekit.log"))
        llm = stack.enter_context(parrot())
        collector = stack.enter_context(collecting())
        engines = (stack.enter_context(Engine()), stack.enter_context(Engine()))
        urls = [engine.wait_ready(300) for engine in engines]

        def worker(name: str, *urls: str) -> AgentWorker:
            env = {**server.keys, "CSM_ENGINE_URL": ",".join(urls), "CSM_ENGINE_KEY": KEY}
            models = {"AGENT_STT": "openai:none", "AGENT_LLM": "openai:parrot"}
            env |= {**models, "OPENAI_BASE_URL": llm.url, "OPENAI_API_KEY": "none"}
            figures = logs / f"{name}-figures"
            env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
            made = AgentWorker(logs / f"{name}.log", env, figures)
            stack.enter_context(made.child)
            return made

        one, both = worker("one", urls[0]), worker("both", urls[1], urls[0])
        for each in (one, both):
            each.wait_ready()
        yield Centre(server, engines, one, both, collector, llm)


async def test_calls_go_where_there_is_room(centre):
    first, second = centre.engines
    async with AsyncExitStack() as calls:
        async with first.filled():
            await until(lambda: centre.one.load >= FULL / rows_for(SLOTS), "it knows of them")
            for _ in range(2):
                await calls.enter_async_context(greeted(centre.livekit))
            assert (centre.one.calls, centre.both.calls) == (0, 2)
            assert (first.conversations, second.conversations) == (FULL, 2)
            await until(lambda: 0 < centre.both.load < 0.7, "it has room, the greetings being over")
        await until(lambda: centre.one.load == 0, "there is room again")
        await calls.enter_async_context(greeted(centre.livekit))
        assert (first.conversations, second.conversations) == (1, 2)
    await centre.settled()


@pytest.mark.soak
async def test_where_all_is_full_nobody_is_given_a_call(centre):
    first, second = centre.engines
    before = refusals(centre.livekit)
    async with first.filled(), second.filled():
        await until(lambda: min(centre.one.load, centre.both.load) >= 0.7, "both are full")
        async with calling(centre.livekit) as caller:
            await until(lambda: refusals(centre.livekit) > before, "the call is refused")
            assert not caller.agents
            assert centre.one.healthy
            assert centre.both.healthy
    await centre.settled()
    async with greeted(centre.livekit):
        pass
    await centre.settled()


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.soak)])
async def test_a_reply_goes_on_when_its_engine_is_killed(centre, kills):
    first, second = centre.engines
    rests: list[float] = []
    async with first.filled():  # the call goes to the second engine; the first has free slots
        await until(lambda: centre.one.load >= 0.7, "the first is full")
        for _ in range(kills):
            async with greeted(centre.livekit) as caller:
                assert second.conversations == 1
                await until(lambda: caller.texts, "the greeting ends")
                before, spoken, heard = len(caller.texts), first.spoken, caller.heard_s
                with centre.llm.holding(REST) as goes_on:  # so that the reply cannot be over
                    await caller.write(REPLY)
                    await until(lambda: caller.heard_s > heard + 1.0, "it replies")  # noqa: B023
                    os.kill(second.pid, signal.SIGKILL)
                    heard, caller.longest_rest_s = caller.heard_s, 0.0
                    goes_on.set()
                    await until(lambda: len(caller.texts) > before, "its text ends")  # noqa: B023
                assert caller.texts[before] == REPLY
                # LiveKit paces the text by its length: its end may come before that of the sound.
                await until(lambda: first.spoken > spoken, "the rest is spoken")  # noqa: B023
                more = "more is heard than had been made ahead"
                await until(lambda: caller.heard_s > heard + 2.5, more)  # noqa: B023
                rests.append(round(caller.longest_rest_s, 2))
            await until(lambda: second.idle, "it is back")
    record("engine_killed_in_a_call", kills=kills, longest_silences_s=rests)
    await centre.settled()


async def test_a_turn_leaves_figures_and_spans_without_a_word(centre):
    async with greeted(centre.livekit) as caller:
        await caller.write(SHORT)
        await until(lambda: SHORT in caller.texts, "the reply ends")
    await until(lambda: centre.collector.spans("csm.turn", "csm-agent"), "the span of the turn")
    for turn in centre.collector.spans("csm.turn"):
        assert attributes(turn)["csm.first_audio_s"] > 0
    await until(lambda: centre.collector.spans("agent_session"), "LiveKit's own, of a whole call")
    for words in (SHORT, REPLY, "caller"):
        assert words.encode() not in centre.collector.raw
    await centre.settled()


async def test_every_metric_of_the_dashboard_and_the_alerts_is_served(centre):
    async with greeted(centre.livekit) as caller:
        await caller.write(SHORT)
        await until(lambda: SHORT in caller.texts, "the reply ends")
    await centre.settled()
    served = names(centre.engines[0].metrics) | names(centre.one.metrics + centre.both.metrics)
    board = (ROOT / "deploy/grafana/csm.json").read_text()
    alerts = (ROOT / "deploy/alerts.yml").read_text()
    wanted = set(METRIC.findall(board)) | set(METRIC.findall(alerts))
    assert len(wanted) > 20
    assert not wanted - served


METRIC = re.compile(r"\b(?:csm|lk_agents|process)_[a-z_]+\b")


def names(metrics: str) -> set[str]:
    lines = [line for line in metrics.splitlines() if not line.startswith("#")]
    return {re.split(r"[{ ]", line)[0] for line in lines}


@pytest.mark.soak
async def test_a_worker_that_is_told_to_end_finishes_its_calls_and_takes_no_more(centre):
    first, _ = centre.engines
    async with AsyncExitStack() as calls:
        async with first.filled():
            await until(lambda: centre.one.load >= 0.7, "the first is full")
            caller = await calls.enter_async_context(greeted(centre.livekit))
        assert centre.both.calls == 1
        await until(lambda: centre.one.load < 0.7, "there is room again")
        centre.both.terminate()
        await until(lambda: "draining worker" in centre.both.child.log.read_text(), "it knows")
        await calls.enter_async_context(greeted(centre.livekit))
        assert (centre.one.calls, centre.both.calls) == (1, 1)
        await caller.write(SHORT)
        await until(lambda: SHORT in caller.texts, "it still replies")
        assert centre.both.child.code is None
    assert centre.both.child.wait(LIMIT_S) == 0
    await centre.settled()
