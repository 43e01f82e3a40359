"""The page's server: token grants, who gets a token, and response headers."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from csm_tts_plugin.errors import ConfigError
from livekit import api
from scripts.check_web import WEB, breaches
from scripts.web import chosen_address, page_config
from scripts.web_page import (
    DIST,
    TOKEN_TTL,
    Page,
    PageConfig,
    Rate,
    application,
    local_names,
    room_token,
    security_headers,
)
from tests.call.running import run
from tests.web.making_web import clean_env

CONFIG = PageConfig("ws://127.0.0.1:7880", "key", "a-secret-of-more-than-32-characters")
KEYS = {
    "LIVEKIT_URL": CONFIG.livekit_url,
    "LIVEKIT_API_KEY": CONFIG.livekit_key,
    "LIVEKIT_API_SECRET": CONFIG.livekit_secret,
}


def claims(token: str) -> api.access_token.Claims:
    return api.TokenVerifier(CONFIG.livekit_key, CONFIG.livekit_secret).verify(token)


@pytest.fixture
async def client():
    async with TestClient(TestServer(application(CONFIG))) as made:
        yield made


def test_a_token_allows_one_microphone_in_one_room_and_attributes():
    grants = claims(room_token(CONFIG)).video
    assert grants.room_join
    assert grants.room.startswith("web-")
    assert grants.can_publish_sources == ["microphone"]
    assert grants.can_update_own_metadata
    assert not grants.can_publish_data
    for power in ("room_create", "room_list", "room_admin", "room_record", "hidden", "agent"):
        assert not getattr(grants, power)


def test_rooms_and_names_cannot_be_guessed_and_never_return():
    made = [claims(room_token(CONFIG)) for _ in range(200)]
    assert Counter(c.video.room for c in made).most_common(1)[0][1] == 1
    assert Counter(c.identity for c in made).most_common(1)[0][1] == 1
    assert min(len(c.video.room) for c in made) >= len("web-") + 24  # 18 random bytes


def test_a_token_is_good_for_minutes():
    assert timedelta(0) < TOKEN_TTL <= timedelta(minutes=5)


def test_an_agent_with_a_name_is_dispatched_with_the_room():
    named = claims(room_token(replace(CONFIG, agent_name="parrot")))
    assert [agent.agent_name for agent in named.room_config.agents] == ["parrot"]
    assert claims(room_token(CONFIG)).room_config is None


async def test_the_page_gets_livekits_address_and_a_token(client):
    answer = await client.post("/token")
    body = await answer.json()
    assert body["url"] == CONFIG.livekit_url
    assert claims(body["token"]).video.room_join


async def test_browsers_may_be_sent_to_another_address_of_livekit():
    config = replace(CONFIG, public_url="wss://calls.example")
    async with TestClient(TestServer(application(config))) as client:
        answer = await client.post("/token")
        assert (await answer.json())["url"] == "wss://calls.example"
        assert "wss://calls.example" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/", "/token", "/assets/licences.txt", "/nothing"])
async def test_every_answer_is_guarded(client, path):
    answer = await client.get(path)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"


async def test_tokens_are_never_cached_and_named_files_always(client):
    index = await client.get("/")
    token = await client.post("/token")
    named = next((DIST / "assets").glob("*.js")).name
    script = await client.get(f"/assets/{named}")
    missing = await client.get("/assets/index-none.js")
    assert index.headers["Cache-Control"] == token.headers["Cache-Control"] == "no-store"
    assert "immutable" in script.headers["Cache-Control"]
    assert missing.status == 404
    assert missing.headers["Cache-Control"] == "no-store"


async def test_a_token_is_for_our_own_page_only(client):
    for theirs in ("http://evil.example", "null", "http://["):
        assert (await client.post("/token", headers={"Origin": theirs})).status == 403
    ours = {"Origin": f"http://{client.host}:{client.port}"}
    assert (await client.post("/token", headers=ours)).status == 200
    assert (await client.get("/token")).status == 405


async def test_on_loopback_a_foreign_name_that_leads_here_gets_nothing():
    config = replace(CONFIG, hosts=local_names("127.0.0.1"))
    async with TestClient(TestServer(application(config))) as client:
        for path in ("/", "/assets/licences.txt"):
            foreign = await client.get(path, headers={"Host": "evil.example:8080"})
            assert foreign.status == 403
        assert (await client.get("/", headers={"Host": "localhost:8080"})).status == 200
        assert (await client.get("/", headers={"Host": "[::1]:8080"})).status == 200


async def test_tokens_are_bounded_and_the_page_hears_for_how_long():
    config = replace(CONFIG, tokens_per_minute=3)
    async with TestClient(TestServer(application(config))) as client:
        statuses = [(await client.post("/token")).status for _ in range(5)]
        refused = await client.post("/token")
    assert statuses == [200, 200, 200, 429, 429]
    assert 1 <= int(refused.headers["Retry-After"]) <= 21


def test_the_bound_is_each_addresses_own_and_heals():
    rate = Rate(2)
    assert [rate.wait_s("a", 0.0) for _ in range(2)] == [0.0, 0.0]
    assert rate.wait_s("a", 0.0) == pytest.approx(30.0)
    assert rate.wait_s("b", 0.0) == 0.0
    assert rate.wait_s("a", 29.0) == pytest.approx(1.0)
    assert rate.wait_s("a", 31.0) == 0.0


def test_the_bound_remembers_no_more_addresses_than_it_may():
    rate = Rate(1, addresses=10)
    for number in range(1000):
        rate.wait_s(str(number), 0.0)
    assert len(rate._buckets) == 10
    assert rate.wait_s("999", 0.0) > 0


async def test_the_page_can_be_mounted_in_another_server():
    outer = web.Application()
    outer.add_subapp("/call/", application(CONFIG))
    async with TestClient(TestServer(outer)) as client:
        page = await (await client.get("/call/")).text()
        script = page.split('src="./')[1].split('"')[0]
        assert (await client.get(f"/call/{script}")).status == 200
        assert (await client.post("/call/token")).status == 200


def test_livekit_cloud_may_send_the_browser_on_within_its_domain():
    policy = security_headers("wss://mine.livekit.cloud")["Content-Security-Policy"]
    assert "wss://*.livekit.cloud" in policy
    assert "*" not in security_headers("wss://calls.example")["Content-Security-Policy"]


def test_a_missing_build_is_told_with_the_command_for_it(tmp_path):
    with pytest.raises(ConfigError, match="npm run build"):
        application(replace(CONFIG, dist=tmp_path))


async def test_a_taken_port_is_told_with_a_way_out():
    async with Page(CONFIG, "127.0.0.1", 0) as page:
        port = int(page.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=r"PORT=.* make web"):
            await Page(CONFIG, "127.0.0.1", port).__aenter__()


async def test_the_printed_address_is_one_that_answers():
    config = replace(CONFIG, hosts=local_names("127.0.0.1"))
    async with (
        Page(config, "127.0.0.1", 0) as page,
        aiohttp.ClientSession() as http,
        http.get(page.url, timeout=aiohttp.ClientTimeout(total=30)) as answer,
    ):
        assert page.url.startswith("http://localhost:")
        assert answer.status == 200


@pytest.mark.parametrize("port", ["eighty", "-1", "70000"])
def test_a_port_that_is_none_is_named(port):
    with pytest.raises(ConfigError, match="PORT"):
        chosen_address({"PORT": port})


def test_a_page_for_others_needs_a_livekit_that_they_reach():
    with pytest.raises(ConfigError, match="LIVEKIT_URL"):
        chosen_address({"WEB_HOST": "0.0.0.0"})
    assert chosen_address({"WEB_HOST": "0.0.0.0", "LIVEKIT_URL": "wss://x"}) == ("0.0.0.0", 8080)


def test_on_a_server_of_others_our_agent_takes_no_calls_but_ours():
    assert page_config(KEYS, None, "127.0.0.1").agent_name.startswith("web-")
    assert page_config({**KEYS, "AGENT_NAME": "parrot"}, None, "127.0.0.1").agent_name == "parrot"


def test_the_committed_page_is_built_from_its_sources():
    assert list(breaches(WEB)) == []


def test_a_change_of_the_sources_is_noticed(tmp_path):
    copy = tmp_path / "web"
    shutil.copytree(WEB, copy, ignore=shutil.ignore_patterns("node_modules"))
    with (copy / "src" / "style.css").open("a") as style:
        style.write("\n/* changed */\n")
    lock = json.loads((copy / "package-lock.json").read_text())
    lock["packages"]["node_modules/events"]["resolved"] = "https://registry.example/events.tgz"
    (copy / "package-lock.json").write_text(json.dumps(lock))
    assert [what.split(" ")[0] for what in breaches(copy)] == ["web/dist", "web/package-lock.json"]


async def test_make_web_with_a_taken_port_ends_with_one_line_and_starts_nothing(tmp_path):
    async with Page(CONFIG, "127.0.0.1", 0) as page:
        port = page.url.rpartition(":")[2]
        done = await asyncio.to_thread(
            run, ["-m", "scripts.web"], clean_env(PORT=port, OUT=str(tmp_path)), tmp_path, 120
        )
    assert done.code == 1
    assert port in done.last_line
    assert "PORT=" in done.last_line
    assert "Traceback" not in done.output
    assert not (tmp_path / "agent.log").exists()
