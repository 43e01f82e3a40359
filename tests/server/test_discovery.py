"""Discovery routes; JSON for every answer; routes match their description."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import aiohttp
import numpy as np
import openai
import pytest

from csm_tts_plugin.client.engine import EngineClient
from csm_tts_plugin.server.voices import OPENAI_VOICES
from csm_tts_plugin.voices.store import VoiceStore
from csm_tts_plugin.voices.voice import Consent, Voice
from tests.server.conftest import listen, serving, speaks
from tests.server.test_openai_speech import LINE, SAMPLES, asked, client_of
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import LIMIT_S

CONFIG = Path(__file__).parents[2] / "schemathesis.toml"


def voice_of_ann():
    return Voice.from_audio(
        np.sin(np.arange(24_000) / 9.0),
        24_000,
        transcript="What I said.",
        consent=Consent("Ann", "You may.", "2025-01-31"),
        id="ann",
    )


async def got(server, method, path, **options):
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{server.url}{path}", **options) as answer,
    ):
        assert answer.content_type == "application/json", (path, await answer.text())
        return answer.status, await answer.json(), answer.headers


async def test_openais_client_lists_the_engines_model(server):
    async with client_of(server) as client:
        models = [model.id async for model in client.models.list()]
        assert models == ["stand-in"]
        assert (await client.models.retrieve("stand-in")).id == "stand-in"
        with pytest.raises(openai.NotFoundError, match="/v1/models"):
            await client.models.retrieve("eustlb/csm-1b")


async def test_there_is_no_model_before_it_is_loaded():
    async with serving(StandInEngine("not-ready")) as server:
        status, told, headers = await got(server, "GET", "/v1/models")
        assert (status, told["error"]["code"]) == (503, "unavailable")
        assert headers["Retry-After"] == "1"


async def test_voices_are_listed_where_clients_look(server, tmp_path):
    assert (await got(server, "GET", "/v1/audio/voices"))[1] == {
        "voices": [{"id": "stock", "name": "stock"}]
    }
    VoiceStore(tmp_path).add(voice_of_ann())
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    async with serving(voices_dir=tmp_path) as keeper:
        listed = (await got(keeper, "GET", "/v1/audio/voices"))[1]["voices"]
        assert [voice["id"] for voice in listed] == ["stock", "ann"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/no/such/route", 404),
        ("GET", "/", 404),
        ("POST", "/v1/audio/transcriptions", 404),
        ("GET", "/v1/audio/speech", 405),
        ("PUT", "/v1/voices", 405),
        ("POST", "/healthz", 405),
        ("GET", "/v1/stream", 400),
        ("GET", "/ws", 400),
        ("HEAD", "/v1/stream", 405),
        ("DELETE", "/v1/voices/..%2f..%2fetc", 400),
    ],
)
async def test_every_refusal_is_json_as_openais(server, method, path, status):
    if method == "HEAD":
        async with aiohttp.ClientSession() as session:
            assert (await session.head(f"{server.url}{path}")).status == status
        return
    found, told, headers = await got(server, method, path)
    assert found == status
    assert set(told["error"]) >= {"message", "type", "param", "code"}
    assert told["error"]["message"]
    assert ("Allow" in headers) == (status == 405)


@pytest.mark.parametrize("path", ["//v1/audio/speech", "/v1//audio/speech", "//v1///audio//speech"])
async def test_a_doubled_slash_is_one(server, path):
    body = json.dumps(asked(response_format="pcm"))
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}{path}", data=body, allow_redirects=False) as answer,
    ):
        assert (answer.status, len(await answer.read())) == (200, 2 * SAMPLES)


async def test_a_base_address_that_ends_in_a_slash_serves_sockets_and_ids(server, tmp_path):
    async with EngineClient(f"{server.url}//") as client:
        conversation = await client.conversation()
        assert speaks(await listen(await conversation.say(LINE)), LINE)
    assert (await got(server, "GET", "//v1//models//stand-in"))[1]["id"] == "stand-in"
    assert (await got(server, "GET", "//no//such"))[0] == 404


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
async def test_a_byte_order_mark_does_no_harm(server, encoding):
    body = json.dumps(asked(response_format="pcm")).encode(encoding)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/audio/speech", data=body) as answer,
        session.ws_connect(f"{server.url}/v1/stream") as socket,
    ):
        assert answer.status == 200
        await socket.send_str('{"type":"open"}'.encode(encoding).decode())
        assert (await socket.receive_json(timeout=LIMIT_S))["type"] == "opened"


async def test_an_unknown_field_is_named_and_a_text_in_its_place_is_not(server):
    told = (await got(server, "POST", "/v1/audio/speech", json=asked(lang_code="a")))[1]
    assert "lang_code" in told["error"]["message"]
    secret = "my card is 4111 1111"
    told = (await got(server, "POST", "/v1/audio/speech", json=asked(**{secret: 1})))[1]
    assert "unknown field" in told["error"]["message"]
    assert secret not in told["error"]["message"]


def routes(described):
    return {(path, method) for path, methods in described["paths"].items() for method in methods}


async def test_every_route_is_described(tmp_path):
    async with serving(voices_dir=tmp_path) as server:
        described = (await got(server, "GET", "/openapi.json"))[1]
        served = {
            (route.resource.canonical, route.method.lower())
            for route in server.app.router.routes()
            if route.method != "HEAD"
        }
        assert routes(described) == served - {("/v1/stream", "get"), ("/ws", "get")}


async def test_what_is_described_is_what_there_is(server, tmp_path):
    described = (await got(server, "GET", "/openapi.json"))[1]
    assert not {path for path, _ in routes(described) if path.startswith("/v1/voices")}
    VoiceStore(tmp_path).add(voice_of_ann())
    async with serving(voices_dir=tmp_path, key="k3y") as keeper:
        for headers, names in (
            ({}, ["stock"]),
            ({"Authorization": "Bearer k3y"}, ["stock", "ann"]),
        ):
            described = (await got(keeper, "GET", "/openapi.json", headers=headers))[1]
            speech = described["components"]["schemas"]["Speech"]["properties"]
            assert speech["voice"]["anyOf"][0]["enum"] == names


async def test_readyz_tells_what_the_model_makes_of_a_voice_as_it_is_described(server):
    ready = (await got(server, "GET", "/openapi.json"))[1]["components"]["schemas"]["Ready"]
    assert ready["properties"]["follows"] == {"type": ["string", "null"]}
    told = (await got(server, "GET", "/readyz"))[1]
    assert (told["clones"], told["follows"]) == (True, None)
    server.engine.told = {"reference_seconds": 10.0, "follows": "pitch and size"}
    told = (await got(server, "GET", "/readyz"))[1]
    assert (told["clones"], told["follows"]) == (False, "pitch and size")
    assert set(told) == set(ready["properties"])


@pytest.mark.parametrize(("key", "keeps"), [(None, False), ("k3y", True)])
async def test_schemathesis_finds_no_mismatch(tmp_path, key, keeps):
    """Generated requests, valid and invalid, checked against the OpenAPI document."""
    folder = tmp_path if keeps else None
    async with serving(StandInEngine(slots=64, queue=64), voices_dir=folder, key=key) as server:
        headers = ["-H", f"Authorization: Bearer {key}"] if key else []
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"),
            *(f"{server.url}/openapi.json", "--seed", "7", "--max-examples", "25", *headers),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
        )
        output = (await process.communicate())[0].decode()
        assert process.returncode == 0, output
        assert int(re.search(r"(\d+) generated", output)[1]) > 100, output
        await server.settle()


@pytest.mark.parametrize("voice", [*OPENAI_VOICES, {"id": "alloy"}])
async def test_openais_voices_are_the_stock_voice(server, voice):
    """OpenAI's client names a voice in each request."""
    prompts = []
    server.engine.open = watched(server.engine.open, prompts)
    async with client_of(server) as client:
        for name in ("stock", voice):
            answer = await client.audio.speech.create(**asked(voice=name, response_format="pcm"))
            assert len(answer.content) == 2 * SAMPLES
    assert prompts[1] == prompts[0]


async def test_a_stored_voice_goes_before_openais_name(tmp_path):
    VoiceStore(tmp_path).add(voice_of_ann(), id="nova")
    async with serving(voices_dir=tmp_path) as server:
        prompts = []
        server.engine.open = watched(server.engine.open, prompts)
        async with client_of(server) as client:
            await client.audio.speech.create(**asked(voice="nova"))
            assert prompts[0].turns[0].text == "What I said."
            with pytest.raises(openai.BadRequestError, match="no voice aria"):
                await client.audio.speech.create(**asked(voice="aria"))
            (tmp_path / "nova.json").unlink()  # a broken voice is not replaced by the stock voice
            with pytest.raises(openai.PermissionDeniedError):
                await client.audio.speech.create(**asked(voice="nova"))
        await server.settle()


def watched(open, prompts):
    def opened(voice=None, sampling=None, **options):
        prompts.append(voice)
        return open(voice, sampling, **options)

    return opened
