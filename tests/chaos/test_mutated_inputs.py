"""Thousands of requests with a fault in them, on every route: answered as client errors, and the
server still speaks.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import socket

import aiohttp
import pytest

from csm_tts_plugin.client.engine import EngineClient
from tests.chaos.figures import record, resident
from tests.server.conftest import listen, serving, speaks
from tests.server.test_seed_socket import recording
from tests.support.waiting import LIMIT_S, until

LINE = "It is a fine day to be heard from start to end."
CONSENT = {"speaker": "Ann", "statement": "You may speak in my voice.", "date": "2025-01-31"}
EVIL = [
    None, True, -1, 2**70, 1e308, "", " ", "../../etc/passwd", "http://127.0.0.1/a.wav", "\ud800",
    "\0", "a" * 5000, [], {}, [[[]]], {"id": {"id": {}}}, "NaN", "file:///etc/passwd", "é" * 300,
]  # fmt: skip
RIFF_FIELDS = (4, 16, 20, 22, 24, 28, 32, 34, 40)


def requests():
    audio = base64.b64encode(recording(0.6)).decode()
    reference = {"audio": audio, "transcript": "What I said."}
    inline = reference | {"consent": CONSENT}
    return [
        ("v1/stream", {"type": "open", "voice": inline, "rate": 8000, "seed": 1}),
        ("v1/stream", {"type": "turn", "who": "Ann", "text": "Hello.", "audio": audio}),
        ("v1/stream", {"type": "say", "id": "1", "text": "Hi.", "max_seconds": 1.0}),
        ("ws", reference | {"response_text": "Hi."}),
        ("v1/audio/speech", {"model": "m", "input": "Hi.", "voice": "stock", "speed": 1}),
        ("v1/voices", inline | {"id": "ann", "name": "Annie"}),
    ]


def mutated(body, rng):
    """The text of the request, with one fault in it."""
    kind = rng.randrange(4)
    if kind == 0:
        name = rng.choice(list(body))
        return json.dumps(body | {name: rng.choice(EVIL)})
    if kind == 1 and "audio" in body:
        wav = bytearray(base64.b64decode(body["audio"]))
        at = rng.choice(RIFF_FIELDS)
        wav[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", rng.randbytes(4)])
        del wav[rng.randrange(len(wav)) :]
        return json.dumps(body | {"audio": base64.b64encode(wav).decode()})
    text = json.dumps(body)
    at = rng.randrange(len(text))
    if kind == 2:
        return text[:at] + rng.choice(["NaN", "\\", '"', "{", "\u0000", "9" * 5000]) + text[at:]
    return text[:at] + text[at + rng.randrange(1, 40) :]


def connections(monkeypatch):
    """Every address that this process connects to from now on."""
    addresses, connect = set(), socket.socket.connect

    def noted(self, address):
        addresses.add(f"{address[0]}:{address[1]}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    return addresses


async def post(session, url, text):
    async with session.post(url, data=text.encode("utf-8", "surrogatepass")) as answer:
        await answer.read()
        assert answer.status < 500, (answer.status, answer.url.path)


async def send(session, url, text):
    """Accepts any answer but an internal error; some messages are still valid, and are spoken."""
    async with session.ws_connect(url) as ws:
        if url.endswith("stream"):
            await ws.send_str('{"type":"open"}')
            assert (await ws.receive_json(timeout=LIMIT_S))["type"] == "opened"
        try:
            await ws.send_str(text)
            await ws.send_str('{"type":"last"}')
        except UnicodeEncodeError:
            return
        while (message := await ws.receive(timeout=LIMIT_S)).type is not aiohttp.WSMsgType.CLOSED:
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
            if message.type is aiohttp.WSMsgType.TEXT:
                answer = json.loads(message.data)
                assert answer.get("code") not in ("engine", "internal"), answer
                if answer.get("code"):
                    return


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_nothing_that_is_wrong_in_a_request_is_a_failure_inside(
    tmp_path, caplog, monkeypatch, count
):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    caplog.set_level(logging.WARNING)  # captured lines of thousands of requests take memory
    connected = connections(monkeypatch)
    async with serving(voices_dir=tmp_path / "voices") as server:
        gate, before = asyncio.Semaphore(8), resident()
        async with aiohttp.ClientSession() as session:

            async def one(number, path, body):
                async with gate:
                    text = mutated(body, random.Random(seed + number))
                    way = post if path in ("v1/audio/speech", "v1/voices") else send
                    await way(session, f"{server.url}/{path}", text)

            kinds = requests()
            await asyncio.gather(*(one(n, *kinds[n % len(kinds)]) for n in range(count)))
        await until(lambda: server.engine.idle and not server.state.sessions)
        grown = round(resident() - before, 1)
        record("mutated_inputs", requests=count, failures_inside=0, memory_mib_more=grown)
        assert count < 10_000 or grown < 64.0
        async with EngineClient(server.url) as client:
            conversation = await client.conversation()
            assert speaks(await listen(await conversation.say(LINE)), LINE)
        await server.settle()
    assert "in the server" not in caplog.text
    assert connected == {server.url.removeprefix("http://")}, "the server itself connects nowhere"
    assert {path.name for path in tmp_path.iterdir()} <= {"voices"}
