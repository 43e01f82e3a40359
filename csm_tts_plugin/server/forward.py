"""Forwards HTTP requests from the router to an engine, and its answer to the client.

If an engine is full or dies before it answers, the next one is asked. If an engine's answer breaks
off, the client's connection is closed too.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress

import aiohttp
from aiohttp import hdrs, web

from ..errors import CsmError
from .access import require_key
from .edge import EDGE
from .fleet import FLEET, Fleet, Member
from .tunnel import no_engine

_GONE_POLL_S = 0.25
_ASKED = (
    hdrs.ACCEPT, hdrs.CONTENT_TYPE, hdrs.CONTENT_ENCODING, "traceparent", "tracestate",
)  # fmt: skip
"""Headers that are forwarded; the others concern the connection or were checked here."""
_KEPT_BACK = {
    hdrs.CONNECTION, hdrs.KEEP_ALIVE, hdrs.TRANSFER_ENCODING, hdrs.CONTENT_LENGTH, hdrs.DATE,
    hdrs.SERVER, hdrs.VARY, hdrs.UPGRADE,
}  # fmt: skip
"""Headers of an answer that are not forwarded: each connection has its own."""
SPEECH = "/v1/audio/speech"
_ONCE = (("POST", "/v1/voices"),)
"""Requests that are not repeated, because a lost engine may have executed them."""


async def forward(request: web.Request) -> web.StreamResponse:
    """Returns when the answer is sent or the client has left."""
    if request.path.startswith("/v1/"):
        require_key(request, request.app[EDGE].config)
    body = await request.read()
    work = asyncio.create_task(_forwarded(request, body), name="csm-forward")
    gone = asyncio.create_task(_gone(request), name="csm-forward-gone")
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else web.Response()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def to_all(request: web.Request) -> web.StreamResponse:
    """Sends a request to every engine: `DELETE /v1/voices/<id>`."""
    require_key(request, request.app[EDGE].config)
    fleet = request.app[FLEET]
    answers: list[web.Response] = []
    for member in fleet.members:  # in order: the first deletes the files, all drop the voice
        with suppress(OSError, aiohttp.ClientError, CsmError):
            async with _asked(fleet, member, request, b"") as answer:
                answers.append(await _whole(answer))
    if not answers:
        raise no_engine()
    return min(answers, key=lambda answer: answer.status)


async def _forwarded(request: web.Request, body: bytes) -> web.StreamResponse:
    fleet = request.app[FLEET]
    refusals: list[web.Response] = []
    for member in fleet.by_room():
        speaks = request.path == SPEECH and request.method == "POST"
        with member.account.giving() if speaks else nullcontext():
            try:
                answer = await _asked(fleet, member, request, body)
            except aiohttp.ClientConnectorError:
                await fleet.look(member)
                continue
            except (OSError, aiohttp.ClientError, CsmError):
                await fleet.look(member)
                if (request.method, request.path) in _ONCE:
                    break
                continue
            async with answer:
                if answer.status != 503:
                    return await _passed_on(request, answer)
                refusals.append(await _whole(answer))
                member.avoid()
    if not refusals:
        raise no_engine()
    return next((one for one in refusals if b'"busy"' in _body(one)), refusals[0])


def _asked(
    fleet: Fleet, member: Member, request: web.Request, body: bytes
) -> aiohttp.client._RequestContextManager:
    given = {name: request.headers[name] for name in _ASKED if name in request.headers}
    shown = fleet.authorization(request.headers.get(hdrs.AUTHORIZATION), member)
    method = "GET" if request.method == "HEAD" else request.method  # its length is then known
    return fleet.request(
        member, method, request.rel_url.raw_path_qs, headers={**given, **shown}, data=body or None
    )


async def _passed_on(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Sends a complete answer with its length, and a longer one in pieces as they arrive."""
    if answer.content_length is not None or answer.status == 204:
        return await _whole(answer)
    response = web.StreamResponse(status=answer.status, headers=_headers(answer))
    await response.prepare(request)
    stalled_s = request.app[EDGE].config.limits.stalled_reader_s
    try:
        async for piece in answer.content.iter_any():
            async with asyncio.timeout(stalled_s):
                await response.write(piece)
    except aiohttp.ClientError:  # the engine closed it: the part before is forwarded
        if request.transport is not None:
            request.transport.close()
    except OSError:  # a stalled or lost client
        if request.transport is not None:
            request.transport.abort()
    return response


async def _whole(answer: aiohttp.ClientResponse) -> web.Response:
    return web.Response(status=answer.status, headers=_headers(answer), body=await answer.read())


def _headers(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in _KEPT_BACK}


def _body(response: web.Response) -> bytes:
    return response.body if isinstance(response.body, bytes) else b""


async def _gone(request: web.Request) -> None:
    while request.transport is not None:  # noqa: ASYNC110  a handler is not told otherwise
        await asyncio.sleep(_GONE_POLL_S)
