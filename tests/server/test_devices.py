"""`serve --devices` as processes: one address, an engine on each device, kills and drains."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import aiohttp
import pytest

from csm_tts_plugin.client.call import Call, Manner
from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.client.reply import Reply
from csm_tts_plugin.config import EngineConfig, ServerConfig, split_devices
from csm_tts_plugin.errors import ConfigError, ModelLoadError, UnavailableError
from csm_tts_plugin.server.run_router import cards
from csm_tts_plugin.server.supervisor import EngineProcess
from tests.chaos.test_resume import SENTENCES, Listener, repeated, slowly
from tests.server.conftest import listen, speaks
from tests.server.test_process import (
    GRACE,
    LINE,
    STAND_IN,
    alive,
    line_with,
    process,
    run_where_the_tests_are,  # noqa: F401
    until_status,
)
from tests.support.processes import descendants, wait_until
from tests.support.waiting import until

TWO = ("--devices", "cpu,cpu", "--port", "0")


def started(*arguments, env=None):
    return process("--model", *arguments, *TWO, env=env)


def url_of(child):
    url = line_with(child, "listening").split()[-1]
    line_with(child, "ready: 2 engines on cpu, cpu")
    return url


def engines_of(child):
    """Process ids of its engines."""
    return sorted(descendants(child.pid) - {child.pid})


async def speak(url, listener):
    async with EngineClient(url, timeout=60.0) as client:

        async def connect():
            return client

        call = Call(connect, Manner())
        try:
            reply = Reply(call, lambda: None, listener, 24_000, 60.0)
            await reply.speak(slowly(SENTENCES), lambda call: None)
        finally:
            await call.aclose()


async def test_an_engine_killed_under_load_loses_nothing_and_comes_back():
    with started("slow", "--slots", "4") as child:
        url = await asyncio.to_thread(url_of, child)
        victim, other = engines_of(child)
        listeners = [Listener() for _ in range(6)]
        replies = [asyncio.create_task(speak(url, listener)) for listener in listeners]
        await until(lambda: all(listener.pcm for listener in listeners))
        os.kill(victim, signal.SIGKILL)
        await asyncio.wait_for(asyncio.gather(*replies), 120.0)
        extra = [repeated(listener.pcm, SENTENCES) for listener in listeners]
        assert max(sum(map(bool, one)) for one in extra) == 1, "some lost the sentence under way"
        assert sum(any(one) for one in extra) <= 3, "the other engine's lost nothing"
        async with EngineClient(url) as client:
            await until_engines(client, 2)
            told = (await client.status())["engines"]
            assert sorted(one["restarts"] for one in told) == [0, 1]
            async with client._http().get(f"{url}/metrics") as answer:
                text = await answer.text()
            lost = next(one["engine"] for one in told if one["restarts"])
            assert f'csm_engine_restarts_total{{engine="{lost}"}} 1.0' in text
        assert alive(other)


async def until_engines(client, count):
    """Waits until `count` engines are ready."""
    async with asyncio.timeout(GRACE):
        while await ready(client) < count:  # noqa: ASYNC110  a poll
            await asyncio.sleep(0.05)


async def ready(client):
    return sum(one["ready"] for one in (await client.status())["engines"])


async def test_sigterm_lets_both_engines_finish_and_refuses_what_is_new():
    with started("slow") as child:
        url = await asyncio.to_thread(url_of, child)
        async with EngineClient(url) as client:
            several = [await client.conversation() for _ in range(4)]
            tasks = [asyncio.create_task(listen(await one.say(LINE))) for one in several]
            await until_status(client, speaking=4)
            child.send_signal(signal.SIGTERM)
            await until_status(client, ready=False)
            with pytest.raises(UnavailableError) as caught:
                await client.conversation()
            assert caught.value.retry_after > 0
            assert all(speaks(heard, LINE) for heard in await asyncio.gather(*tasks))
            assert await asyncio.to_thread(child.wait, GRACE) == 0
        assert "Traceback" not in child.stderr.read()


async def test_a_second_signal_ends_it_at_once_with_all_engines():
    with started("slow") as child:
        url = await asyncio.to_thread(url_of, child)
        engines = engines_of(child)
        async with EngineClient(url) as client:
            conversation = await client.conversation()
            utterance = await conversation.say(LINE * 30)
            await until_status(client, speaking=1)
            child.send_signal(signal.SIGTERM)
            await until_status(client, ready=False)
            child.send_signal(signal.SIGTERM)
            with pytest.raises(UnavailableError):
                await listen(utterance)
        assert await asyncio.to_thread(child.wait, GRACE) == 0
        assert wait_until(lambda: not any(alive(pid) for pid in engines))


def test_engines_do_not_outlive_a_killed_router():
    with started("ready") as child:
        url_of(child)
        engines = engines_of(child)
        child.kill()
        assert wait_until(lambda: not any(alive(pid) for pid in engines))


async def test_engines_are_open_to_the_router_alone():
    with started("ready") as child:
        url = await asyncio.to_thread(url_of, child)
        async with aiohttp.ClientSession() as http:
            for port in {port for pid in engines_of(child) for port in listening(pid)}:
                async with http.get(f"http://127.0.0.1:{port}/v1/models") as answer:
                    assert answer.status == 401
            async with http.get(f"{url}/v1/models") as answer:
                assert answer.status == 200


def listening(pid):
    """TCP ports that a process listens on."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{name}")
        inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    with open(f"/proc/{pid}/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    found = {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes}
    assert found
    return found


async def test_a_worker_supervises_several_engines_as_it_does_one():
    config = EngineConfig(model="ready", devices=("cpu", "cpu"))
    with EngineProcess(config, ServerConfig(port=0), command=STAND_IN) as one:
        async with EngineClient(await one.ready(GRACE), key=one.key) as client:
            assert len((await client.status())["engines"]) == 2
            conversation = await client.conversation()
            assert speaks(await listen(await conversation.say(LINE)), LINE)


# Bad input: one line, exit code 2, no engine left


def refused(*arguments, env=None, **others):
    with process(*arguments, env=env, **others) as child:
        assert child.wait(GRACE) == 2
        lines = child.stderr.read().splitlines()
        told = [line for line in lines if line.startswith("csm_tts_plugin:")]
        assert len(told) == 1, lines
        assert not any("Traceback" in line for line in lines)
        return told[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "names no device"),
        (" ", "names no device"),
        (",", "before and after each comma"),
        ("cpu,", "before and after each comma"),
        ("all,cpu", "or the word all"),
    ],
)
def test_a_list_that_is_none_is_refused(given, words):
    assert words in refused("--devices", given)


def test_device_and_devices_exclude_each_other():
    assert "give one of them" in refused("--device", "cpu", "--devices", "cpu,cpu")


def test_an_engine_that_cannot_start_ends_all_with_its_reason():
    told = refused("--model", "ready", "--devices", "cpu,broken", "--port", "0")
    assert "name a folder or a hub id" in told


def test_a_port_in_use_is_told_before_any_engine_is_started():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        told = refused("--model", "never", "--devices", "cpu,cpu", "--port", port)
        assert f"Cannot listen on 127.0.0.1:{port}" in told


def test_a_public_address_needs_a_key_here_too():
    assert "CSM_ENGINE_KEY" in refused("--devices", "cpu,cpu", "--host", "0.0.0.0", "--port", "0")


def test_the_environment_names_devices_and_the_command_line_goes_before_it():
    with process("--model", "ready", "--port", "0", env={"CSM_DEVICES": "cpu,cpu"}) as child:
        assert "2 engines on cpu, cpu" in line_with(child, "2 engines")
    env = {"CSM_DEVICES": "cpu,cpu"}
    with process("--model", "ready", "--port", "0", "--device", "cpu", env=env) as child:
        assert "stand-in on cpu" in line_with(child, "ready: ")
    assert "CSM_DEVICES" in refused(env={"CSM_DEVICES": ","})


def test_devices_are_read():
    assert split_devices(" cuda:0 , cuda:1", "x") == ("cuda:0", "cuda:1")
    assert split_devices("all", "x") == ("all",)
    assert split_devices(None, "x") == ()


def test_all_cards_of_a_machine_without_any_is_a_config_error(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="name them, such as cpu,cpu"):
        cards()


async def test_a_failed_router_tells_its_supervisor_why():
    config = EngineConfig(model="no-model", devices=("cpu", "cpu"))
    one = EngineProcess(config, ServerConfig(port=0), command=STAND_IN)
    with one, pytest.raises(ModelLoadError, match="name a folder"):
        await one.ready(GRACE)
