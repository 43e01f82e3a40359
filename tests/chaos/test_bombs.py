"""Small messages that would expand to large ones are refused before they expand."""

from __future__ import annotations

import asyncio
import gzip
import struct
import tracemalloc
import zlib
from contextlib import contextmanager

import aiohttp
import pytest

from csm_tts_plugin.client.engine import EngineClient
from tests.server.conftest import listen, serving, speaks
from tests.server.raw import closed
from tests.support.waiting import until

LINE = "It is a fine day to be heard from start to end."
MIB = 2**20
LARGE = 64 * MIB
MOST = 16 * MIB


@contextmanager
def little_memory():
    """Fails if memory use inside ever exceeds that before by 16 MiB or more."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield
        assert tracemalloc.get_traced_memory()[1] - before < MOST
    finally:
        tracemalloc.stop()


def deflated(size):
    """A WebSocket message of `size` zeros, compressed with permessage-deflate to about 1/1000."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"".join(squeeze.compress(bytes(MIB)) for _ in range(size // MIB))
    return (data + squeeze.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


def compressed_frame(payload):
    """A final text frame, marked as compressed, masked with zeros."""
    size = len(payload)
    length = (
        struct.pack(">BH", 126 | 0x80, size) if size < 2**16 else b"\xff" + struct.pack(">Q", size)
    )
    return b"\xc1" + length + bytes(4) + payload


@pytest.mark.parametrize("path", ["v1/stream", "ws"])
@pytest.mark.parametrize("size", [MIB, LARGE])
async def test_a_compressed_frame_closes_the_socket_before_it_is_inflated(server, path, size):
    frame = compressed_frame(deflated(size))
    assert len(frame) < size / 900
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/{path}", compress=15) as ws,
    ):
        with little_memory():
            ws._response.connection.transport.write(frame)
            await closed(ws)
        assert ws.close_code == aiohttp.WSCloseCode.PROTOCOL_ERROR
    await still_speaks(server)


@pytest.mark.parametrize("path", ["v1/audio/speech", "v1/voices"])
async def test_a_compressed_body_is_not_inflated(tmp_path, path):
    bomb = gzip.compress(b'{"input": "' + bytes(LARGE) + b'"}')
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with serving(voices_dir=tmp_path) as server, aiohttp.ClientSession() as session:
        url = f"{server.url}/{path}"
        with little_memory():
            async with session.post(url, data=bomb, headers=headers) as answer:
                assert answer.status == 400
        await still_speaks(server)
        await server.settle()


async def test_a_message_that_grows_without_end_closes_the_socket(server):
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/v1/stream") as ws,
    ):
        transport = ws._response.connection.transport
        piece = b"\xff" + struct.pack(">Q", MIB) + bytes(4) + bytes(MIB)
        transport.write(b"\x01" + piece)
        for _ in range(64):
            if transport.is_closing():
                break
            transport.write(b"\x00" + piece)  # a continuation frame, never final
            await asyncio.sleep(0.01)
        await until(transport.is_closing, "the server closes it")
    await still_speaks(server)


async def still_speaks(server):
    async with EngineClient(server.url) as client:
        conversation = await client.conversation()
        assert speaks(await listen(await conversation.say(LINE)), LINE)
