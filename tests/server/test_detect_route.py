"""`POST /v1/audio/detect`: its answers, its keys, and refused requests."""

from __future__ import annotations

import asyncio
import json
import threading

import aiohttp
import numpy as np
import pytest

from csm_tts_plugin.audio.reference import encode_wav
from csm_tts_plugin.audio.watermark import marked
from csm_tts_plugin.config import Limits
from csm_tts_plugin.server import detections
from tests.server.conftest import serving
from tests.support.recordings import READER, heard
from tests.support.waiting import LIMIT_S, until


@pytest.fixture(scope="module")
def plain():
    return heard(READER[1], 24_000).samples


async def ask(server, *, key=None, **options):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{server.url}/v1/audio/detect", **options) as answer,
    ):
        return answer.status, json.loads(await answer.text())


async def test_a_body_is_told_by_its_seconds(server, plain):
    status, found = await ask(server, data=encode_wav(marked(plain)))
    assert status == 200
    assert found["marked"] is True
    assert found["confidence"] > 0.95
    assert len(found["seconds"]) == 3
    assert (found["length"], found["watermark"]) == (2.99, "perth")
    status, found = await ask(server, data=encode_wav(plain))
    assert (status, found["marked"]) == (200, False)
    assert found["confidence"] < 0.3


async def test_a_form_is_taken_too(server, plain):
    form = aiohttp.FormData()
    form.add_field("file", encode_wav(marked(plain)), filename="a.wav")
    status, found = await ask(server, data=form)
    assert (status, found["marked"]) == (200, True)


@pytest.mark.parametrize("data", [b"", b"no sound", b"RIFF" + b"\0" * 100])
async def test_what_is_no_sound_is_a_typed_error(server, data):
    status, body = await ask(server, data=data)
    assert (status, body["error"]["code"]) == (400, "bad_audio")


async def test_what_is_too_long_is_refused_with_the_limit(plain):
    async with serving(limits=Limits(detect_seconds_max=2.0)) as server:
        status, body = await ask(server, data=encode_wav(plain))
        assert (status, body["error"]["code"]) == (400, "bad_audio")
        assert "more than 2 s" in body["error"]["message"]


async def test_a_form_without_a_file_is_refused(server):
    form = aiohttp.FormData()
    form.add_field("other", b"x", filename="a.wav")
    status, body = await ask(server, data=form)
    assert (status, body["error"]["code"]) == (400, "bad_request")


async def test_the_key_is_asked_for(plain):
    async with serving(key="secret") as server:
        assert (await ask(server, data=encode_wav(plain)))[0] == 401
        assert (await ask(server, data=encode_wav(plain), key="secret"))[0] == 200


async def test_one_at_a_time_is_looked_at_and_too_many_are_told_to_come_back(monkeypatch):
    go, running = threading.Event(), []

    def slow(data, limits):
        running.append(len(running))
        assert go.wait(LIMIT_S)
        return {"marked": False}

    monkeypatch.setattr(detections, "_detected", slow)
    sound = encode_wav(np.zeros(24_000, np.float32))
    async with serving(limits=Limits(detections=2)) as server:
        asked = [asyncio.create_task(ask(server, data=sound)) for _ in range(2)]
        await until(lambda: server.state.detections.here == 2)
        status, body = await ask(server, data=sound)
        assert (status, body["error"]["code"]) == (503, "busy")
        assert body["error"]["retry_after"] == 2.0
        assert running == [0]
        go.set()
        assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200]
        assert server.state.detections.here == 0
