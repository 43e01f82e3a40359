"""LiveKit accepts the files of deploy/sip: its protobuf messages, and a real server."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess

import pytest
from google.protobuf.json_format import ParseDict

from livekit import api
from scripts.livekit_server import LiveKitServer
from scripts.setup_tools import ROOT

FOLDER = ROOT / "deploy" / "sip"
FILES = {
    "inbound-trunk.json": api.CreateSIPInboundTrunkRequest,
    "dispatch-rule.json": api.CreateSIPDispatchRuleRequest,
    "outbound-trunk.json": api.CreateSIPOutboundTrunkRequest,
    "outbound-call.json": api.CreateSIPParticipantRequest,
}


def read(name):
    """The file as a request; a field that LiveKit does not know is an error."""
    return ParseDict(json.loads((FOLDER / name).read_text()), FILES[name]())


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_a_request_of_livekit(name):
    assert read(name).ListFields()


def test_there_is_no_other_file():
    assert {path.name for path in FOLDER.iterdir()} == set(FILES)


def test_each_call_gets_a_room_and_the_agent_by_its_name():
    rule = read("dispatch-rule.json").dispatch_rule
    assert rule.rule.dispatch_rule_individual.room_prefix
    (agent,) = rule.room_config.agents
    assert agent.agent_name == "csm"
    page = (ROOT / "docs" / "telephony.md").read_text()
    assert f"AGENT_NAME={agent.agent_name}" in page


def test_numbers_stay_out_of_rooms():
    assert read("dispatch-rule.json").dispatch_rule.hide_phone_number
    call = read("outbound-call.json")
    assert call.hide_phone_number
    assert call.participant_identity


def test_numbers_are_of_nobody_and_secrets_are_none():
    """Germany reserves +49 30 23125 000 to 999 for books and films."""
    for name in FILES:
        text = (FOLDER / name).read_text()
        assert all(number.startswith("+493023125") for number in re.findall(r"\+\d+", text))
    assert read("outbound-trunk.json").trunk.auth_password == "replace-me"


@pytest.fixture
def redis(tmp_path):
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("LiveKit keeps trunks in Redis, and there is no redis-server here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [found, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", tmp_path]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.call
async def test_a_real_server_takes_and_lists_them(redis, tmp_path, monkeypatch):
    with LiveKitServer(tmp_path / "server.log", redis=redis) as server:
        async with api.LiveKitAPI(server.url, server.key, server.secret) as livekit:
            async with asyncio.timeout(60):
                inbound = await livekit.sip.create_inbound_trunk(read("inbound-trunk.json"))
                outbound = await livekit.sip.create_outbound_trunk(read("outbound-trunk.json"))
                rule = await livekit.sip.create_dispatch_rule(read("dispatch-rule.json"))
                rules = await livekit.sip.list_dispatch_rule(api.ListSIPDispatchRuleRequest())
    assert inbound.sip_trunk_id.startswith("ST_")
    assert outbound.sip_trunk_id.startswith("ST_")
    (listed,) = rules.items
    assert listed.sip_dispatch_rule_id == rule.sip_dispatch_rule_id
    assert listed.room_config.agents[0].agent_name == "csm"
