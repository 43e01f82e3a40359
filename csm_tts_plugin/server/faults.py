"""Errors on their way to a client: ours as they are, others without what they may give away."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Awaitable, Callable

from aiohttp import web

from ..errors import CsmError, EngineError, RequestError
from .state import STATE

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

logger = logging.getLogger("csm_tts_plugin.server")

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


def json_error(error: CsmError, status: int | None = None) -> web.Response:
    """`{"error": {...}}` with the status that fits: our fields, and those that OpenAI's clients
    read (message, type, param, code).
    """
    status = status or _STATUS.get(error.code, 500)
    after = None if error.retry_after is None else max(1, math.ceil(error.retry_after))
    body = {
        "code": error.code,
        "message": error.message,
        "type": "server_error" if status >= 500 else "invalid_request_error",
        "param": None,
        "retryable": error.retryable,
        "retry_after": error.retry_after,
    }
    headers = {} if after is None else {"Retry-After": str(after)}
    return web.json_response({"error": body}, status=status, headers=headers)


@web.middleware
async def faults(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error of a handler as JSON; the connection of a started stream is just cut."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return json_error(RequestError("The body is too large."))
    except web.HTTPException:
        raise
    except Exception as error:
        told = as_csm_error(error, logger)
        request.app[STATE].metrics.errors.labels(told.code).inc()
        return json_error(told)
