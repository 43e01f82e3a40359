"""What a client can do wrong, and what can go wrong with it: typed errors, and others unharmed."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from contextlib import asynccontextmanager

import aiohttp
import pytest

from csm_tts_plugin.audio.reference import encode_wav
from csm_tts_plugin.client import EngineClient, InlineVoice
from csm_tts_plugin.config import ServerConfig
from csm_tts_plugin.errors import (
    AudioError,
    AuthError,
    BusyError,
    ConfigError,
    ConsentError,
    EngineError,
    EngineTimeoutError,
    NumericError,
    RequestError,
    TextError,
    UnavailableError,
    VoiceError,
)
from csm_tts_plugin.server.access import check_bind
from tests.server.conftest import limits_of, listen, serving, speaks, until
from tests.support.stand_in_engine import StandInEngine

LINE = "It is a fine day to be heard from start to end."
LONG = "And so on. " * 180


HANDSHAKE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@asynccontextmanager
async def raw(server, **options):
    """A bare WebSocket to the stream, for what the client would never send."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/v1/stream", compress=0, **options) as ws,
    ):
        yield ws


async def answer(ws):
    return await ws.receive_json(timeout=10)


async def opened(ws):
    await ws.send_str('{"type":"open"}')
    assert (await answer(ws))["type"] == "opened"


async def closed(ws):
    """Read to the end; the last text before it."""
    last = None
    async with asyncio.timeout(20):
        while (message := await ws.receive()).type in (
            aiohttp.WSMsgType.TEXT,
            aiohttp.WSMsgType.BINARY,
        ):
            last = message.data if message.type is aiohttp.WSMsgType.TEXT else last
    return json.loads(last) if last else None


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


# Engines that fail


async def test_readyz_is_503_until_the_model_can_speak():
    async with serving(StandInEngine("not-ready")) as server, EngineClient(server.url) as client:
        assert (await client.status())["ready"] is False
        async with client._http().get(f"{server.url}/readyz") as response:
            assert response.status == 503
        async with client._http().get(f"{server.url}/healthz") as response:
            assert response.status == 200
        with pytest.raises(UnavailableError, match="loading"):
            await client.conversation()
        server.engine.mode = "normal"
        async with client._http().get(f"{server.url}/readyz") as response:
            assert response.status == 200


@pytest.mark.parametrize(
    "error",
    [EngineError("It broke."), NumericError("NaN came out."), UnavailableError("It stopped.")],
)
async def test_a_failing_engine_is_a_typed_error_after_what_it_said(server, client, error):
    server.engine.mode, server.engine.error = "failing", error
    conversation = await client.conversation()
    heard = []

    async def hear():
        async for chunk in await conversation.say(LINE):
            heard.append(chunk)

    with pytest.raises(type(error)) as caught:
        await hear()
    assert len(heard) == server.engine.fail_after
    assert caught.value.message == error.message
    assert caught.value.retryable == error.retryable
    server.engine.mode = "normal"
    assert speaks(await listen(await conversation.say(LINE)), LINE)


async def test_a_busy_engine_says_when_to_come_back(server, client):
    server.engine.mode = "busy"
    conversation = await client.conversation()
    with pytest.raises(BusyError) as caught:
        await listen(await conversation.say(LINE))
    assert caught.value.retry_after == 0.5


async def test_an_error_inside_the_server_gives_nothing_away(server, client, caplog):
    def broken(_, text, *__, **___):
        raise ValueError(text)

    server.engine.say = broken
    conversation = await client.conversation()
    with pytest.raises(EngineError) as caught:
        await listen(await conversation.say("secret words of a caller"))
    assert "secret" not in caught.value.message + caplog.text
    assert "ValueError" in caplog.text


async def test_a_stalled_engine_is_a_timeout_and_the_engine_is_told(server):
    server.engine.mode = "stalled"
    async with EngineClient(server.url, timeout=0.2) as client:
        conversation = await client.conversation()
        with pytest.raises(EngineTimeoutError):
            await listen(await conversation.say(LINE))
        await until(lambda: server.engine.cancelled == [LINE])


async def test_waiting_behind_an_earlier_sentence_is_no_timeout(server):
    server.engine.mode = "slow"
    async with EngineClient(server.url, timeout=0.3) as client:
        conversation = await client.conversation()
        first = asyncio.create_task(listen(await conversation.say(LINE * 2, more=True)))
        assert speaks(await listen(await conversation.say("And then.")), "And then.")
        await first


async def test_a_lost_connection_ends_every_utterance_typed(server):
    async with serving(StandInEngine("stalled")) as lost, EngineClient(lost.url) as client:
        conversation = await client.conversation()
        tasks = [asyncio.create_task(listen(await conversation.say(LINE))) for _ in range(3)]
        await until(lambda: lost.engine.utterances == 3)
        conversation._socket._response.connection.transport.abort()
        for task in tasks:
            with pytest.raises(UnavailableError):
                await task
        with pytest.raises(UnavailableError):
            await conversation.say(LINE)
        await lost.settle()


async def test_no_engine_at_all_says_how_to_start_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with EngineClient(url) as client:
            for ask in (client.conversation, client.status):
                with pytest.raises(UnavailableError, match="csm_tts_plugin serve"):
                    await ask()


async def test_a_server_that_never_answers_is_left_in_time():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        async with serving() as good:
            async with EngineClient([url, good.url], connect_timeout=0.2) as client:
                conversation = await client.conversation()
                assert speaks(await listen(await conversation.say(LINE)), LINE)
            await good.settle()


async def test_a_server_of_another_kind_is_named_as_such(server):
    async with EngineClient(f"{server.url}/other") as client:
        with pytest.raises(UnavailableError, match="404"):
            await client.conversation()


async def test_a_gap_in_the_sound_is_an_error(server, client, monkeypatch):
    from csm_tts_plugin.server.relay import Relay

    send = Relay._send

    def lossy(relay, samples, frame):
        if frame == 3:
            relay._seq += 1
        send(relay, samples, frame)

    monkeypatch.setattr(Relay, "_send", lossy)
    server.engine.mode = "slow"
    conversation = await client.conversation()
    with pytest.raises(EngineError, match="lost"):
        await listen(await conversation.say(LINE))
    await until(lambda: server.engine.cancelled == [LINE])


# Clients that fail


def deaf(server, sentences=1):
    """A plain socket that opens, asks for speech, and never reads again."""
    host, port = server.url.removeprefix("http://").split(":")
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect((host, int(port)))
    plain.sendall(HANDSHAKE)
    plain.sendall(frame(b'{"type":"open","rate":48000}'))
    for id in map(str, range(sentences)):
        plain.sendall(frame(json.dumps({"type": "say", "id": id, "text": LONG}).encode()))
    return plain


def frame(payload):
    """A masked text frame, with a mask of zeros."""
    return bytes([0x81, 0x80 | 126]) + struct.pack(">H", len(payload)) + bytes(4) + payload


async def test_a_stalled_reader_is_dropped_and_holds_nobody_back():
    async with serving(limits=limits_of(output_buffer_s=4.0)) as server:
        plain = await asyncio.to_thread(deaf, server, 10)  # more than a kernel buffers
        try:
            async with EngineClient(server.url) as client:
                conversation = await client.conversation()
                for _ in range(5):
                    assert speaks(await listen(await conversation.say(LINE)), LINE)
                await until(lambda: len(server.engine.conversations) == 1)
                await until(lambda: len(server.state.sessions) == 1)
        finally:
            plain.close()
        await server.settle()


def hold_back(server):
    """Send nothing to the only client until the event is set."""
    outbox = next(iter(server.state.sessions))._outbox
    reading = asyncio.Event()
    send = outbox._send

    async def late(item):
        await reading.wait()
        await send(item)

    outbox._send = late
    return reading


async def test_a_reader_slower_than_the_buffer_is_told_why():
    async with serving(limits=limits_of(output_buffer_s=0.5)) as server:
        async with EngineClient(server.url) as client:
            conversation = await client.conversation()
            reading = hold_back(server)
            utterance = await conversation.say(LONG)
            await until(lambda: server.engine.idle)
            reading.set()
            with pytest.raises(BusyError, match="read faster"):
                await listen(utterance)
        await server.settle()


async def test_cancel_drops_what_waits_for_a_slow_reader():
    async with serving() as server, raw(server) as ws:
        await opened(ws)
        reading = hold_back(server)
        outbox = next(iter(server.state.sessions))._outbox
        for id in ("1", "2"):
            await ws.send_str(json.dumps({"type": "say", "id": id, "text": LINE}))
        await until(lambda: len(server.engine.said) == 2 and server.engine.utterances == 0)
        await ws.send_str('{"type":"cancel","id":"1"}')
        await until(lambda: outbox.seconds <= 0.08 * (len(LINE) // 4) + 0.01)
        reading.set()
        heard = {"1": 0, "2": 0}
        done = []
        while len(done) < 2:
            message = await ws.receive(timeout=10)
            if message.type is aiohttp.WSMsgType.TEXT:
                body = json.loads(message.data)
                heard[body["id"]] += body["type"] == "audio"
                done += [body["id"]] if body["type"] == "done" else []
        assert heard == {"1": 1, "2": len(LINE) // 4}  # one was on its way already
        assert done == ["1", "2"]


async def test_no_sound_follows_a_cancel_even_when_the_engine_makes_some(server):
    server.engine.mode = "slow"
    server.engine.cancel = lambda utterance: None
    async with raw(server) as ws:
        await opened(ws)
        await ws.send_str(json.dumps({"type": "say", "id": "1", "text": LINE}))
        assert (await answer(ws))["type"] == "audio"
        await ws.send_str('{"type":"cancel","id":"1"}')
        await ws.send_str('{"type":"what follows is after the cancel"}')
        heard = []
        while (message := await ws.receive(timeout=10)).type is not aiohttp.WSMsgType.TEXT or (
            json.loads(message.data)["type"] != "done"
        ):
            heard.append(message)
        texts = [m.data for m in heard if m.type is aiohttp.WSMsgType.TEXT]
        assert "error" in texts[-1]


async def test_a_half_open_client_is_freed():
    async with serving(StandInEngine("stalled"), limits=limits_of(heartbeat_s=0.2)) as server:
        plain = await asyncio.to_thread(deaf, server)
        try:
            await until(lambda: len(server.engine.conversations) == 1)
            await server.settle()
        finally:
            plain.close()


def test_a_half_open_client_is_freed_within_30_seconds_by_default():
    assert limits_of().heartbeat_s * 1.5 <= 30.0


async def test_a_client_that_never_opens_is_dropped():
    async with serving(limits=limits_of(open_s=0.1)) as server, raw(server) as ws:
        assert (await closed(ws))["code"] == "timeout"


async def test_an_idle_conversation_is_closed_but_not_while_it_speaks():
    async with serving(limits=limits_of(session_idle_s=0.2)) as server, raw(server) as ws:
        server.engine.mode = "slow"
        await opened(ws)
        await ws.send_str(json.dumps({"type": "say", "id": "1", "text": LINE}))
        kinds = []
        while (message := await ws.receive(timeout=20)).type is not aiohttp.WSMsgType.CLOSE:
            if message.type is aiohttp.WSMsgType.TEXT:
                kinds.append(json.loads(message.data)["type"])
            if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING):
                break
        assert kinds[-2:] == ["done", "error"]
        assert kinds.count("audio") == len(LINE) // 4
        await server.settle()


async def test_random_bytes_leave_the_server_speaking(server):
    import random

    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(60):
        host, port = server.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        if rng.random() < 0.7:
            writer.write(HANDSHAKE)
        writer.write(rng.randbytes(rng.randrange(1, 3000)))
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    async with EngineClient(server.url) as client:
        conversation = await client.conversation()
        assert speaks(await listen(await conversation.say(LINE)), LINE)


async def test_a_client_cannot_ask_for_an_utterance_of_another(server):
    server.engine.mode = "slow"
    async with EngineClient(server.url) as one, EngineClient(server.url) as other:
        first, second = await one.conversation(), await other.conversation()
        utterance = await first.say(LINE)
        mine = await second.say("A word.")
        assert mine.id == utterance.id
        await mine.cancel()
        assert speaks(await listen(utterance), LINE)


def test_errors_of_the_caller_are_not_retryable_and_those_of_the_engine_are():
    assert not any(kind.retryable for kind in (RequestError, AuthError, TextError))
    assert all(kind.retryable for kind in (BusyError, UnavailableError, EngineTimeoutError))
