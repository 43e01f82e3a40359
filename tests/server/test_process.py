"""The server as a process: its output, its shutdown, and its supervisor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.config import EngineConfig, ServerConfig
from csm_tts_plugin.errors import ConfigError, ModelLoadError, UnavailableError
from csm_tts_plugin.server.supervisor import EngineProcess
from tests.server.conftest import listen, speaks
from tests.support.waiting import until

STAND_IN = (sys.executable, "-m", "tests.support.serve_stand_in", "serve")
ROOT = Path(__file__).resolve().parents[2]
LINE = "It is a fine day to be heard from start to end."
GRACE = 120.0


def free_of_settings():
    return {k: v for k, v in os.environ.items() if not k.startswith(("CSM_", "LIVEKIT_"))}


@contextmanager
def process(*arguments, command=STAND_IN, env=None):
    child = subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**free_of_settings(), **(env or {})},
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            pipe.close()


def line_with(child, word):
    """The next line of its output that holds `word`."""
    for line in child.stdout:
        if word in line:
            return line.strip()
    raise AssertionError(f"it ended without {word!r}: {child.stderr.read()}")


def engine(model="ready", **options):
    options.setdefault("command", STAND_IN)
    return EngineProcess(EngineConfig(model=model), ServerConfig(port=0), **options)


@pytest.fixture(autouse=True)
def run_where_the_tests_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("CSM_ENGINE_KEY", "CSM_VOICES_DIR", "CSM_MODEL"):
        monkeypatch.delenv(name, raising=False)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


# serve


def test_serve_prints_where_it_listens_and_that_it_is_ready():
    with process("--model", "ready", "--port", "0") as child:
        url = line_with(child, "listening").split()[-1]
        assert not url.endswith(":0")
        assert "stand-in on cpu float32, 8 slots" in line_with(child, "ready:")


@asynccontextmanager
async def told_to_end_while_it_speaks(text):
    """A server after a SIGTERM, its client, and the task that receives the audio."""
    with process("--model", "slow", "--port", "0") as child:
        url = line_with(child, "listening").split()[-1]
        line_with(child, "ready:")
        async with EngineClient(url) as client:
            conversation = await client.conversation()
            task = asyncio.create_task(listen(await conversation.say(text)))
            await until_status(client, speaking=1)
            child.send_signal(signal.SIGTERM)
            await until_status(client, ready=False)
            yield child, client, task
            assert await asyncio.to_thread(child.wait, GRACE) == 0
        assert "Traceback" not in child.stderr.read()


async def test_sigterm_lets_what_speaks_finish_and_exits_0():
    async with told_to_end_while_it_speaks(LINE) as (_, client, task):
        with pytest.raises(UnavailableError):
            await client.conversation()
        assert speaks(await task, LINE)


async def until_status(client, **wanted):
    """Polls until the status is as `wanted`; the timeouts of the client and the test bound this."""
    while not wanted.items() <= (await client.status()).items():  # noqa: ASYNC110  a poll
        await asyncio.sleep(0.01)


async def test_a_second_sigterm_does_not_wait():
    async with told_to_end_while_it_speaks(LINE * 40) as (child, _, task):
        child.send_signal(signal.SIGTERM)
        with pytest.raises(UnavailableError):
            await task


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "no-model", "--port", "0"), "no model no-model"),
        (("--host", "0.0.0.0", "--port", "0"), "CSM_ENGINE_KEY"),
        (("--host", "203.0.113.7", "--port", "0", "--key", "k3y"), "Cannot listen"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(arguments, words):
    with process(*arguments) as child:
        _, errors = child.communicate(timeout=GRACE)
        assert child.returncode == 2
        assert words in errors.splitlines()[-1]
        assert "Traceback" not in errors
        assert "k3y" not in errors


def test_a_taken_port_is_one_line_and_exit_code_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with process("--model", "ready", "--port", port) as child:
            _, errors = child.communicate(timeout=GRACE)
            assert child.returncode == 2
            assert port in errors
            assert "Traceback" not in errors


def test_a_setting_that_is_no_number_is_one_line_and_exit_code_2():
    with process("--model", "ready", "--port", "0", env={"CSM_SLOTS": "many"}) as child:
        _, errors = child.communicate(timeout=GRACE)
        assert child.returncode == 2
        assert errors.strip() == "csm_tts_plugin: CSM_SLOTS must be a whole number, got 'many'."


def test_a_supervised_server_ends_when_its_input_does():
    with process("--model", "ready", "--port", "0", "--supervised") as child:
        assert json.loads(line_with(child, "ready"))["event"] in ("progress", "ready")
        child.stdin.close()
        assert child.wait(GRACE) == 0


# EngineProcess


async def test_a_supervised_engine_speaks_with_a_key_of_its_own():
    with engine() as one:
        url = await one.ready(GRACE)
        assert one.key not in command_line(one.pid)
        async with EngineClient(url, key=one.key) as client:
            conversation = await client.conversation()
            assert speaks(await listen(await conversation.say(LINE)), LINE)
        pid = one.pid
    assert not alive(pid)
    assert one.pid is None


async def test_a_killed_engine_is_back_at_the_same_address_with_the_same_key():
    with engine() as one:
        url = await one.ready(GRACE)
        for falls in (1, 2):
            pid = one.pid
            async with EngineClient(url, key=one.key) as client:
                conversation = await client.conversation()
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(UnavailableError):
                    await listen(await conversation.say(LINE * 20))
            await until(lambda old=pid: one.pid not in (None, old), GRACE)
            assert await one.ready(GRACE) == url
            async with EngineClient(url, key=one.key) as client:
                conversation = await client.conversation()
                assert speaks(await listen(await conversation.say(LINE)), LINE)
                async with client._http().get(f"{url}/metrics", headers=client._headers) as told:
                    assert f"csm_engine_restarts_total {falls}.0" in await told.text()


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [("no-model", ModelLoadError, "name a folder"), ("crash", UnavailableError, "exit code 7")],
)
async def test_a_failed_start_says_why_and_is_not_tried_again(model, kind, words):
    with engine(model) as one:
        with pytest.raises(kind, match=words):
            await one.ready(GRACE)
        with pytest.raises(kind, match=words):
            one.wait_ready(GRACE)
        assert one.pid is None


def test_a_start_that_takes_too_long_ends_the_process():
    with engine("never", start_timeout=3.0) as one:
        with pytest.raises(UnavailableError, match="killed by signal 9"):
            one.wait_ready(GRACE)
        assert one.pid is None


def test_waiting_has_a_bound_and_stopping_ends_a_start():
    with engine("never") as one, pytest.raises(UnavailableError, match=r"within 0\.1 s"):
        one.wait_ready(0.1)
    with pytest.raises(UnavailableError, match="stopped"):
        one.wait_ready(GRACE)
    assert one.pid is None


async def test_progress_is_passed_on():
    lines = []
    with engine(on_progress=lines.append) as one:
        await one.ready(GRACE)
        await until(lambda: any("engine ready: stand-in" in line for line in lines))


def test_no_program_to_start_is_a_typed_error():
    with (
        engine(command=(str(ROOT / "no-such-program"),)) as one,
        pytest.raises(UnavailableError, match="No engine process"),
    ):
        one.wait_ready(GRACE)


def test_a_public_address_without_a_key_gets_a_random_one():
    one = EngineProcess(EngineConfig(), ServerConfig(host="0.0.0.0", port=0))
    other = EngineProcess(EngineConfig(), ServerConfig(host="0.0.0.0", port=0))
    assert len(one.key) >= 32
    assert one.key != other.key


async def test_an_engine_does_not_outlive_a_killed_parent():
    script = (
        "import sys, time\n"
        "from csm_tts_plugin.config import EngineConfig, ServerConfig\n"
        "from csm_tts_plugin.server.supervisor import EngineProcess\n"
        f"stand_in = {STAND_IN}\n"
        "config, server = EngineConfig(model='ready'), ServerConfig(port=0)\n"
        "one = EngineProcess(config, server, command=stand_in)\n"
        "one.start(); one.wait_ready(120); print(one.pid, flush=True); time.sleep(600)\n"
    )
    with process(command=(sys.executable, "-c", script)) as parent:
        pid = int(line_with(parent, ""))
        assert alive(pid)
        parent.kill()
        await until(lambda: not alive(pid), GRACE)


def test_a_process_started_twice_at_one_port_says_so():
    with engine() as one:
        url = one.wait_ready(GRACE)
        port = int(url.rpartition(":")[2])
        second = EngineProcess(
            EngineConfig(model="ready"), ServerConfig(port=port), command=STAND_IN
        )
        with second, pytest.raises(ConfigError, match=str(port)):
            second.wait_ready(GRACE)


def test_stop_is_bounded_even_when_the_engine_ignores_it():
    command = (sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(60)")
    one = engine(command=command)
    one.start()
    while one.pid is None:
        time.sleep(0.01)
    one.stop(grace=0.2)
    assert one.pid is None
