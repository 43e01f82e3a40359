"""Which web pages may use an engine without a key, for each kind of browser request."""

from __future__ import annotations

import io
import json

import aiohttp
import pytest
from aiohttp import WSServerHandshakeError

from csm_tts_plugin.config import ServerConfig
from csm_tts_plugin.errors import ConfigError
from csm_tts_plugin.server.access import check_bind
from tests.server.conftest import serving
from tests.server.test_voice_routes import recording

PAGE = "https://page.example"
LINE = "It is a fine day to be heard."
ROUTES = [
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("GET", "/v1/audio/voices"),
    ("GET", "/v1/voices"),
    ("POST", "/v1/voices"),
    ("POST", "//v1/voices"),
    ("DELETE", "/v1/voices/somebody"),
    ("POST", "/v1/audio/speech"),
    ("OPTIONS", "/v1/audio/speech"),
    ("GET", "/no/such/route"),
]
SOCKETS = ["/v1/stream", "/ws"]
FOREIGN = [
    {"Origin": PAGE},
    {"Origin": "null"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://localhost@evil.example"},
    {"Origin": "http://127.0.0.1.evil.example:8090"},
    {"Origin": "file://"},
    {"Origin": "chrome-extension://abcdefgh"},
    {"Origin": ""},
    {"Host": "evil.example"},
    {"Host": "evil.example:8090"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "localhost.evil.example"},
    {"Host": "0.0.0.0:8090"},
    {"Host": ""},
    {"Host": "evil.example", "Origin": "http://evil.example"},
]
OURS = [
    {},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://127.0.0.1:5173"},
    {"Origin": "https://[::1]:8443"},
    {"Host": "localhost"},
    {"Host": "LOCALHOST:8090"},
    {"Host": "[::1]:8090"},
    {"Host": "127.8.9.10"},
]


async def asked(server, method, path, headers, **body):
    """Status, headers and JSON of an answer."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{server.url}{path}", headers=headers, **body) as answer,
    ):
        data = await answer.read()
        told = json.loads(data) if answer.content_type == "application/json" else None
        return answer.status, answer.headers, told


async def spoken(server, headers, **options):
    body = json.dumps({"input": LINE, "response_format": "pcm"})
    return await asked(server, "POST", "/v1/audio/speech", headers, data=body, **options)


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_foreign_pages_are_refused_before_anything_is_done(tmp_path, headers):
    async with serving(voices_dir=tmp_path) as server:
        for method, path in ROUTES:
            status, _, told = await asked(server, method, path, headers, data=b"{}")
            assert (status, told["error"]["code"]) == (403, "forbidden"), (method, path)
        for path in SOCKETS:
            async with aiohttp.ClientSession() as session:
                with pytest.raises(WSServerHandshakeError) as refused:
                    await session.ws_connect(f"{server.url}{path}", headers=headers)
            assert refused.value.status == 403, path
        assert (server.engine.said, server.engine.conversations) == ([], {})
        assert list(tmp_path.iterdir()) == []


async def test_a_page_cannot_plant_a_voice_by_a_simple_form(tmp_path):
    form = aiohttp.FormData()
    form.add_field("audio", io.BytesIO(recording()), filename="a.wav", content_type="audio/wav")
    for name, value in (("transcript", "Hello."), ("id", "planted")):
        form.add_field(name, value)
    for name, value in (("speaker", "You"), ("statement", "I agree."), ("date", "2026-01-01")):
        form.add_field(f"consent_{name}", value)
    async with serving(voices_dir=tmp_path) as server:
        status, _, _ = await asked(server, "POST", "/v1/voices", {"Origin": PAGE}, data=form)
        assert (status, list(tmp_path.iterdir())) == (403, [])


@pytest.mark.parametrize("headers", OURS, ids=str)
async def test_programs_and_pages_of_this_machine_are_served(server, headers):
    status, answered, _ = await spoken(server, headers)
    assert status == 200
    assert answered.get("Access-Control-Allow-Origin") == headers.get("Origin")
    for path in SOCKETS:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{server.url}{path}", headers=headers),
        ):
            pass


async def test_an_allowed_page_gets_cors_answers_for_speech_and_for_errors():
    async with serving(allowed_origins=(PAGE,)) as server:
        status, headers, _ = await spoken(server, {"Origin": PAGE})
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, PAGE)
        assert "Origin" in headers["Vary"]
        status, headers, _ = await asked(server, "POST", "/v1/audio/speech", {"Origin": PAGE})
        assert (status, headers["Access-Control-Allow-Origin"]) == (400, PAGE)
        status, headers, _ = await spoken(server, {"Origin": "https://other.example"})
        assert (status, "Access-Control-Allow-Origin" in headers) == (403, False)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{server.url}/v1/stream", headers={"Origin": PAGE}),
        ):
            pass
        await server.settle()


@pytest.mark.parametrize("same", ["https://page.example:443", "https://PAGE.example"])
async def test_origins_are_compared_as_browsers_write_them(same):
    async with serving(allowed_origins=(same,)) as server:
        assert (await spoken(server, {"Origin": PAGE}))[0] == 200
        assert (await spoken(server, {"Origin": "http://page.example"}))[0] == 403
        assert (await spoken(server, {"Origin": "https://page.example:8443"}))[0] == 403


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/voices/somebody", "/no/such/route"])
@pytest.mark.parametrize("key", [None, "k3y"])
async def test_preflights_of_allowed_pages_are_answered_without_a_key(path, key):
    asks = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        "Access-Control-Request-Private-Network": "true",
    }
    async with serving(allowed_origins=(PAGE,), key=key) as server:
        status, headers, _ = await asked(server, "OPTIONS", path, asks)
        assert status == 204
        assert headers["Access-Control-Allow-Origin"] == PAGE
        assert "POST" in headers["Access-Control-Allow-Methods"]
        assert "x-stainless-lang" in headers["Access-Control-Allow-Headers"]
        assert headers["Access-Control-Allow-Private-Network"] == "true"


async def test_with_a_key_the_key_decides_and_unnamed_pages_cannot_read():
    asks = {"Origin": PAGE, "Host": "voice.example", "Authorization": "Bearer k3y"}
    async with serving(key="k3y") as server:
        status, headers, _ = await spoken(server, asks)
        assert (status, "Access-Control-Allow-Origin" in headers) == (200, False)
        assert (await asked(server, "OPTIONS", "/v1/audio/speech", asks))[0] == 405
    async with serving(key="k3y", allowed_origins=("*",)) as server:
        status, headers, _ = await spoken(server, asks)
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, PAGE)


@pytest.mark.parametrize("given", ["page.example", "https://page.example/path", "ftp://page"])
def test_what_is_no_origin_is_told_at_the_start(given):
    config = ServerConfig.from_env({"CSM_ALLOWED_ORIGINS": f"http://localhost:3000,{given}"})
    with pytest.raises(ConfigError, match="CSM_ALLOWED_ORIGINS"):
        check_bind(config)


def test_every_page_may_speak_only_where_a_key_is_asked():
    with pytest.raises(ConfigError, match="CSM_ENGINE_KEY"):
        check_bind(ServerConfig.from_env({"CSM_ALLOWED_ORIGINS": "*"}))
    check_bind(ServerConfig.from_env({"CSM_ALLOWED_ORIGINS": "*", "CSM_ENGINE_KEY": "k3y"}))


def test_a_slash_behind_an_origin_does_no_harm():
    config = ServerConfig.from_env({"CSM_ALLOWED_ORIGINS": " https://page.example/ , "})
    assert config.allowed_origins == (PAGE,)
