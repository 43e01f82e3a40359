"""Canaries: a caller's words, messages and keys appear in no log, output or error, in success or
failure.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import signal
import subprocess

import aiohttp
import pytest

from csm_tts_plugin.client.engine import EngineClient, InlineVoice
from csm_tts_plugin.config import EngineConfig
from csm_tts_plugin.engine.core import Engine
from csm_tts_plugin.errors import CsmError
from tests.engine.tools import small_checkpoint
from tests.server.conftest import listen, serving
from tests.server.test_process import command_line, line_with, process
from tests.server.test_seed_socket import recording
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import LIMIT_S, until

CANARY = "zanzibar-canary"
KEY = f"{CANARY}-key"
WORDS = f"My secret word is {CANARY}."
CONSENT = {"speaker": CANARY, "statement": WORDS, "date": "2025-01-31"}
AUDIO = base64.b64encode(recording()).decode()


def silent(text):
    return CANARY not in text


async def native(url):
    """A call with every kind of request, valid and invalid; returns the errors."""
    voice = InlineVoice(recording(), WORDS, CONSENT)
    broken = InlineVoice(WORDS.encode(), WORDS, CONSENT)
    errors = []
    async with EngineClient(url, key=KEY, timeout=60.0) as client:
        conversation = await client.conversation(voice)
        await conversation.turn(CANARY, WORDS, recording())
        await conversation.turn(CANARY, WORDS, WORDS.encode())
        await listen(await conversation.say(WORDS, max_seconds=0.4))
        async for _ in await conversation.say(WORDS, max_seconds=0.4):
            break
        for wrong in (broken, "nobody", f"../{CANARY}"):
            with pytest.raises(CsmError) as caught:
                await conversation.set_voice(wrong)
            errors += [repr(caught.value)]
        with pytest.raises(CsmError) as caught:
            await listen(await conversation.say(WORDS * 500))
        errors += [repr(caught.value), repr(conversation), repr(voice), repr(client)]
    async with EngineClient(url, key=f"{KEY}-wrong") as client:
        with pytest.raises(CsmError) as caught:
            await client.conversation(voice)
        return [*errors, repr(caught.value)]


async def nonsense(url):
    """Sends invalid raw messages; returns the answers."""
    wrong = [
        f'{{"{CANARY}": "{CANARY}"}}',
        f'{{"type": "{CANARY}"}}',
        f'{{"type": "open", "rate": "{CANARY}"}}',
        f'{{"type": "say", "id": " {CANARY}", "text": "{CANARY}"',
        f'{{"audio": "{CANARY}", "transcript": "{CANARY}", "response_text": "{CANARY}"}}',
        f'{{"audio": "{AUDIO}", "transcript": "{CANARY}", "response_text": "{CANARY}"}}',
    ]
    heard = []
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for path in ("v1/stream", "ws"):
            async with session.ws_connect(f"{url}/{path}") as ws:
                for text in wrong:
                    await ws.send_str(text)
                    heard += [(await ws.receive(timeout=60)).data]
        for path in ("v1/audio/speech", "v1/voices"):
            for text in [*wrong, f'{{"input": "{CANARY}", "voice": "nobody"}}']:
                async with session.post(f"{url}/{path}", data=text) as answer:
                    heard += [await answer.text()]
        body = {"input": WORDS, "response_format": "pcm"}
        async with session.post(f"{url}/v1/audio/speech", json=body) as answer:
            assert answer.status == 200
            await answer.read()
        async with session.get(f"{url}/metrics") as answer:
            heard += [await answer.text()]
    return [text for text in heard if isinstance(text, str)]


def stand_in():
    return StandInEngine()


def real():
    config = EngineConfig(model="small", device="cpu", slots=2, queue=4, threads=1)
    return Engine(config, checkpoint=small_checkpoint(3))


@pytest.mark.parametrize("make", [stand_in, real])
async def test_no_log_and_no_error_holds_a_callers_words_or_key(make, caplog, capfd, tmp_path):
    caplog.set_level(logging.DEBUG)
    async with serving(make(), key=KEY, voices_dir=tmp_path) as server:
        await until(lambda: server.engine.status().ready)
        errors = [*await native(server.url), *await nonsense(server.url)]
        await until(lambda: not server.state.sessions)
    assert "conversation" in caplog.text, "logs are looked at"
    assert silent(caplog.text)
    assert silent("".join(capfd.readouterr()))
    assert len(errors) > 20
    assert all(map(silent, errors))


async def test_a_serving_process_prints_neither_words_nor_keys(tmp_path):
    env = {"CSM_ENGINE_KEY": KEY, "CSM_VOICES_DIR": str(tmp_path)}
    with process("--model", "ready", "--port", "0", env=env) as child:
        url = line_with(child, "listening").split()[-1]
        line_with(child, "ready:")
        await native(url)
        await nonsense(url)
        assert silent(command_line(child.pid))
        child.send_signal(signal.SIGTERM)
        try:
            out, err = child.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            pytest.fail("it does not end")
    assert "conversation" in err, "its log is looked at"
    assert silent(out + err)


async def test_what_is_no_http_is_not_quoted_in_the_log(caplog):
    async with serving(key=KEY) as server:
        host, port = server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /readyz HTTP/1.1\r\nAuthorization: Bearer {KEY}\x00\r\n\r\n".encode())
        assert b"400" in await reader.readline()
        writer.close()
    assert "in a request" in caplog.text
    assert KEY not in caplog.text
