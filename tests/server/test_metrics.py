"""`/metrics` has every documented name, with the values that operators need."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.errors import CODES
from csm_tts_plugin.server.bridge import Bridge
from tests.server.conftest import listen, serving
from tests.support.routed import routing
from tests.support.stand_in_engine import StandInEngine, frames_of
from tests.support.waiting import until

LINE = "It is a fine day to be heard from start to end."
MANUAL = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
BEFORE_IT = "And so on."


def bare(name):
    return re.sub(r"_(bucket|count|sum|created|total)$", "", name)


async def scraped(server):
    """Name and labels -> value."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{server.url}/metrics") as answer,
    ):
        families = list(text_string_to_metric_families(await answer.text()))
    samples = [sample for family in families for sample in family.samples]
    return {(s.name, *sorted(s.labels.items())): s.value for s in samples}


async def test_every_metric_of_the_manual_is_there_and_no_other_of_ours(server):
    table = MANUAL.read_text().partition("| metric | kind | watch for |")[2].partition("\n\n")[0]
    promised = re.findall(r"`(csm_[a-z_]+)[`{]", table)
    names = {name for name, *_ in await scraped(server)}
    ours = {bare(name) for name in names if name.startswith("csm_")}
    of_a_router = {"csm_engine_up"}
    assert ours == set(map(bare, promised)) - of_a_router
    assert "process_resident_memory_bytes" in names
    async with routing([server.url]) as router:
        through = {bare(name) for name, *_ in await scraped(router)}
    assert through == {bare(name) for name in names} | of_a_router


async def test_counters_begin_at_zero_and_labels_are_known_beforehand(server):
    figures = await scraped(server)
    codes = {dict(labels)["code"] for name, *labels in figures if name == "csm_errors_total"}
    assert codes == set(CODES)
    assert all(figures["csm_errors_total", ("code", code)] == 0 for code in codes)
    assert figures["csm_utterances_total", ("reason", "end")] == 0


async def test_a_reply_is_counted_once_and_its_later_sentences_do_not_count_as_waiting(
    server, client
):
    conversation = await client.conversation()
    said = [await conversation.say(text, more=text != LINE) for text in (BEFORE_IT, LINE)]
    await asyncio.gather(*map(listen, said))
    figures = await scraped(server)
    assert figures["csm_utterances_total", ("reason", "end")] == 2
    assert figures["csm_first_audio_seconds_count",] == 1
    assert figures["csm_queue_seconds_count",] == 1
    frames = frames_of(LINE) + frames_of(BEFORE_IT)
    assert abs(figures["csm_audio_seconds_total",] - 0.08 * frames) < 1e-6


async def test_who_hangs_up_is_counted_as_cancelled():
    async with serving(StandInEngine("stalled")) as server:
        async with EngineClient(server.url) as client:
            await (await client.conversation()).say(LINE)
            await until(lambda: server.engine.utterances == 1)
            assert (await scraped(server))["csm_clients",] == 1
        await server.settle()
        figures = await scraped(server)
        assert figures["csm_utterances_total", ("reason", "cancelled")] == 1
        assert figures["csm_clients",] == 0


async def test_an_engine_faster_than_the_loop_leaves_others_their_turn():
    bridge = Bridge(asyncio.get_running_loop())
    turns = []

    def receive(event):
        if len(turns) < 3:
            bridge.post(receive, event)  # there is always another event

    bridge.post(receive, None)
    for _ in range(3):
        await asyncio.sleep(0)
        turns.append("somebody else's")
    assert len(turns) == 3
