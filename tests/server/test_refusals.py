"""Client errors give a typed error, and the conversation continues."""

from __future__ import annotations

import json
import struct

import aiohttp
import pytest

from csm_tts_plugin.audio.reference import encode_wav
from csm_tts_plugin.client.engine import EngineClient, InlineVoice
from csm_tts_plugin.config import ServerConfig
from csm_tts_plugin.errors import (
    AudioError,
    AuthError,
    BusyError,
    ConfigError,
    ConsentError,
    TextError,
    VoiceError,
)
from csm_tts_plugin.server.access import check_bind
from tests.server.conftest import limits_of, listen, serving, speaks
from tests.server.raw import answer, closed, opened, raw
from tests.support.stand_in_engine import StandInEngine
from tests.support.waiting import until

LINE = "It is a fine day to be heard from start to end."


# Messages


@pytest.mark.parametrize(
    ("text", "code", "about"),
    [
        ("{", "bad_request", None),
        ("[]", "bad_request", None),
        ('{"type":"sing"}', "bad_request", None),
        ('{"type":"open","rate":44100}', "bad_request", "open"),
        ('{"type":"open","voice":"../x"}', "bad_voice", "open"),
        ('{"type":"open","voice":"nobody"}', "bad_voice", "open"),
        ('{"type":"turn","who":"a","text":" "}', "bad_text", "turn"),
        ('{"type":"turn","who":"a","text":"b","audio":"AAAA"}', "bad_audio", "turn"),
        ('{"type":"cancel"}', "bad_request", "cancel"),
    ],
)
async def test_nonsense_is_answered_and_the_socket_goes_on(server, text, code, about):
    async with raw(server) as ws:
        await opened(ws)
        await ws.send_str(text)
        error = await answer(ws)
        assert (error["type"], error["code"], error.get("about")) == ("error", code, about)
        assert error["retryable"] is False
        await ws.send_str('{"type":"say","id":"1","text":"Hello."}')
        assert (await answer(ws))["type"] == "audio"


async def test_a_refused_sentence_is_answered_with_its_id(server):
    async with raw(server) as ws:
        await opened(ws)
        await ws.send_str('{"type":"say","id":"7","text":" "}')
        error = await answer(ws)
        assert (error["id"], error["code"]) == ("7", "bad_text")


async def test_nothing_is_said_before_open(server):
    async with raw(server) as ws:
        await ws.send_str('{"type":"say","id":"1","text":"Hello."}')
        assert "open" in (await answer(ws))["message"]
        assert server.engine.said == []


async def test_an_id_cannot_be_used_twice_at_once(server):
    server.engine.mode = "stalled"
    async with raw(server) as ws:
        await opened(ws)
        for _ in range(2):
            await ws.send_str('{"type":"say","id":"1","text":"Hello."}')
        assert (await answer(ws))["code"] == "bad_request"
        assert len(server.engine.said) == 1


async def test_sound_from_a_client_is_refused(server):
    async with raw(server) as ws:
        await opened(ws)
        await ws.send_bytes(b"\0" * 64)
        assert (await answer(ws))["code"] == "bad_request"


async def test_an_oversized_message_closes_the_socket():
    async with serving(limits=limits_of(message_bytes=10_000)) as server:
        async with raw(server) as ws:
            await opened(ws)
            await ws.send_str(json.dumps({"type": "turn", "who": "a", "text": "b" * 20_000}))
            await closed(ws)
            assert ws.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        await server.settle()


async def test_a_compressed_frame_closes_the_socket(server):
    async with raw(server) as ws:
        await opened(ws)
        payload = bytes(1024)
        header = bytes([0b1100_0001, 0x80 | 126]) + struct.pack(">H", len(payload)) + bytes(4)
        ws._response.connection.transport.write(header + payload)
        await closed(ws)
        assert ws.close_code == aiohttp.WSCloseCode.PROTOCOL_ERROR
    await server.settle()


async def test_compression_is_not_offered_even_when_asked_for(server):
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/v1/stream", compress=15) as ws,
    ):
        assert ws.compress == 0


async def test_a_sentence_too_many_waits_for_none(server):
    server.engine.mode = "stalled"
    async with serving(
        StandInEngine("stalled"), limits=limits_of(utterances_per_conversation=2)
    ) as s:
        async with EngineClient(s.url) as client:
            conversation = await client.conversation()
            utterances = [await conversation.say(LINE) for _ in range(3)]
            with pytest.raises(BusyError):
                await listen(utterances[2])
        await s.settle()


# Voices


def wav(seconds=1.0):
    import numpy as np

    rng = np.random.default_rng(1)
    return encode_wav(rng.uniform(-0.3, 0.3, int(24_000 * seconds)).astype("float32"))


CONSENT = {"speaker": "Ann", "statement": "You may speak in my voice.", "date": "2025-01-31"}


async def test_an_inline_voice_reaches_the_engine(server, client):
    voice = InlineVoice(wav(), "What I said.", CONSENT)
    await client.conversation(voice)
    held = next(iter(server.engine.conversations.values()))
    assert [(turn.text, len(turn.audio)) for turn in held.voice.turns] == [("What I said.", 24_000)]
    assert held.voice.private


@pytest.mark.parametrize(
    ("voice", "error"),
    [
        (InlineVoice(b"RIFF, or so", "What I said.", CONSENT), AudioError),
        (InlineVoice(wav(), "What I said.", {"speaker": "Ann"}), ConsentError),
        (InlineVoice(wav(), " ", CONSENT), TextError),
        ("nobody", VoiceError),
        ("http://host/voice.wav", VoiceError),
    ],
)
async def test_a_voice_that_cannot_be_had_is_a_typed_error(server, client, voice, error):
    with pytest.raises(error):
        await client.conversation(voice)
    await until(lambda: server.engine.idle)


async def test_a_refused_voice_leaves_the_old_one(server, client):
    conversation = await client.conversation()
    with pytest.raises(VoiceError):
        await conversation.set_voice("nobody")
    assert speaks(await listen(await conversation.say(LINE)), LINE)
    await conversation.set_voice(InlineVoice(wav(), "What I said.", CONSENT))
    held = next(iter(server.engine.conversations.values()))
    assert held.voice.speaker == "caller"


async def test_a_refused_turn_leaves_the_conversation_usable(client):
    conversation = await client.conversation()
    await conversation.turn("caller", "Hello.", b"no audio file")
    assert speaks(await listen(await conversation.say(LINE)), LINE)


# Keys and addresses


async def test_a_wrong_or_missing_key_takes_nothing():
    async with serving(key="k3y") as server:
        for key in (None, "", "k3", "k3yy", "ключ"):
            async with EngineClient(server.url, key=key) as client:
                with pytest.raises(AuthError) as caught:
                    await client.conversation()
                assert "k3y" not in caught.value.message
        assert server.engine.conversations == {}
        async with EngineClient(server.url, key="k3y") as client:
            assert speaks(await listen(await (await client.conversation()).say(LINE)), LINE)
        await server.settle()


async def test_a_key_may_come_with_open():
    async with serving(key="k3y") as server:
        async with raw(server) as ws:
            await ws.send_str('{"type":"open","key":"k3y"}')
            assert (await answer(ws))["type"] == "opened"
        async with raw(server) as ws:
            await ws.send_str('{"type":"open","key":"other"}')
            assert (await closed(ws))["code"] == "unauthorized"
            assert ws.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION
        await server.settle()


async def test_metrics_need_the_key_and_health_does_not():
    async with serving(key="k3y") as server, aiohttp.ClientSession() as session:
        statuses = {}
        for path in ("healthz", "readyz", "metrics"):
            async with session.get(f"{server.url}/{path}") as response:
                statuses[path] = response.status
        assert statuses == {"healthz": 200, "readyz": 200, "metrics": 401}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "engine.example"])
def test_a_public_address_needs_a_key(host):
    with pytest.raises(ConfigError, match="CSM_ENGINE_KEY"):
        check_bind(ServerConfig(host=host))
    check_bind(ServerConfig(host=host, key="k3y"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(host):
    check_bind(ServerConfig(host=host))


@pytest.mark.parametrize("url", ["", "ftp://a", "http://", "a b", "http://a b"])
def test_what_is_no_url_is_a_config_error(url):
    with pytest.raises(ConfigError):
        EngineClient(url)
