"""`POST /v1/audio/detect`: whether a recording has the watermark of synthetic speech."""

from __future__ import annotations

from aiohttp import BodyPartReader, web

from ..config import Limits
from ..errors import RequestError
from .access import require_key
from .forms import read_part
from .state import STATE


async def detect(request: web.Request) -> web.Response:
    """Takes the recording as the body or as the field `file` of a form, in any format of reference
    audio.

    Answers `{"marked", "confidence", "seconds", "length", "watermark"}`: confidences from 0 to 1 of
    the whole and of each second (null for digital silence).
    """
    state = request.app[STATE]
    require_key(request, state.config)
    limits = state.config.limits
    form = request.content_type == "multipart/form-data"
    data = await _file_of_form(request, limits) if form else await request.read()
    return web.json_response(await state.detections.detect(data, limits))


async def _file_of_form(request: web.Request, limits: Limits) -> bytes:
    try:
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and part.name == "file":
                return await read_part(part, limits.reference_bytes)
    except (ValueError, AssertionError):
        raise RequestError("The body is not a form that can be read.") from None
    raise RequestError("The form has no field `file`: send the recording in it, or as the body.")
