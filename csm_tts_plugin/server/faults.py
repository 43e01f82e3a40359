"""Errors on their way to a client: ours as they are, others without what they may give away."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable

from aiohttp import web

from ..errors import CsmError, EngineError

_STATUS = {
    "unauthorized": 401,
    "no_consent": 403,
    "bad_request": 400,
    "bad_text": 400,
    "bad_audio": 400,
    "bad_voice": 400,
    "busy": 503,
    "unavailable": 503,
    "timeout": 504,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def as_csm_error(error: Exception, logger: logging.Logger) -> CsmError:
    """`error` itself if it is one of ours.

    Others are logged by type and place only: their text may hold what a caller said.
    """
    if isinstance(error, CsmError):
        return error
    places = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s in the server:\n%s", type(error).__name__, places.rstrip())
    return EngineError("The engine failed inside; its log says where.")


def json_error(error: CsmError) -> web.Response:
    """`{"error": {code, message, retryable, retry_after}}` with the status that fits."""
    headers = {} if error.retry_after is None else {"Retry-After": f"{error.retry_after:.0f}"}
    body = {
        "code": error.code,
        "message": error.message,
        "retryable": error.retryable,
        "retry_after": error.retry_after,
    }
    return web.json_response({"error": body}, status=_STATUS.get(error.code, 500), headers=headers)


@web.middleware
async def faults(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error of a handler as JSON; the connection of a started stream is just cut."""
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception as error:
        return json_error(as_csm_error(error, logging.getLogger("csm_tts_plugin.server")))
