"""Errors as clients get them: our own unchanged, others without details that may be private."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ..errors import CsmError, EngineError, RequestError
from .edge import EDGE

_STATUS = {
    "unauthorized": 401,
    "forbidden": 403,
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
    """`error` itself if it is a CsmError, else a general EngineError.

    Other errors are logged by type and place only, because their text may hold a caller's words.
    """
    if isinstance(error, CsmError):
        return error
    places = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s in the server:\n%s", type(error).__name__, places.rstrip())
    return EngineError("The engine failed inside; its log says where.")


def json_error(error: CsmError, status: int | None = None) -> web.Response:
    """`{"error": {...}}` with the error's HTTP status: our fields, and those that OpenAI's clients
    read (message, type, param, code).
    """
    status = status or _STATUS.get(error.code, 500)
    after = None if error.retry_after is None else max(1, math.ceil(error.retry_after))
    headers = {} if after is None else {"Retry-After": str(after)}
    return web.json_response(error_body(error, status), status=status, headers=headers)


def error_body(error: CsmError, status: int | None = None) -> dict[str, Any]:
    status = status or _STATUS.get(error.code, 500)
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "type": "server_error" if status >= 500 else "invalid_request_error",
            "param": None,
            "retryable": error.retryable,
            "retry_after": error.retry_after,
        }
    }


def _http_error(error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals (404, 405, ...) in the same JSON form as all other errors."""
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return json_error(RequestError("The body is too large."))
    if error.status == 404:
        what = "There is no such route; GET /openapi.json lists all routes."
    elif isinstance(error, web.HTTPMethodNotAllowed):
        what = f"This route takes {', '.join(sorted(error.allowed_methods))} only."
    else:
        what = f"This is not a request that the route takes ({error.reason})."
    answer = json_error(RequestError(what), error.status)
    if "Allow" in error.headers:
        answer.headers["Allow"] = error.headers["Allow"]
    return answer


@web.middleware
async def faults(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers errors of handlers as JSON. After a response has started the connection is closed."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _http_error(error)
    except Exception as error:
        told = as_csm_error(error, logger)
        request.app[EDGE].errors.labels(told.code).inc()
        return json_error(told)
