"""Raw WebSocket clients: invalid messages, and a client that never reads."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from contextlib import asynccontextmanager

import aiohttp

from tests.support.waiting import LIMIT_S

LONG = "And so on. " * 180

HANDSHAKE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@asynccontextmanager
async def raw(server, **options):
    """A bare WebSocket to the stream, for messages that the client never sends."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/v1/stream", compress=0, **options) as ws,
    ):
        yield ws


async def answer(ws):
    return await ws.receive_json(timeout=LIMIT_S)


async def opened(ws):
    await ws.send_str('{"type":"open"}')
    assert (await answer(ws))["type"] == "opened"


async def closed(ws):
    """Reads until the socket closes; returns the last text message."""
    last = None
    async with asyncio.timeout(LIMIT_S):
        while (message := await ws.receive()).type in (
            aiohttp.WSMsgType.TEXT,
            aiohttp.WSMsgType.BINARY,
        ):
            last = message.data if message.type is aiohttp.WSMsgType.TEXT else last
    return json.loads(last) if last else None


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
