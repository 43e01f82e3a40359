"""`/v1/voices`: stored voices over the network, where the engine has a folder for them.

`GET` lists, `POST` adds (a form or JSON), `DELETE /v1/voices/<id>` forgets: file, record, and what
the engine keeps of it.
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import asdict
from typing import Any

from aiohttp import BodyPartReader, web

from ..audio.reference import decode_reference
from ..config import SAMPLE_RATE, Limits
from ..errors import AudioError, CsmError, RequestError, VoiceError
from ..fields import Fields, read_object
from ..protocol import STOCK_VOICE
from ..voices.store import VoiceStore
from ..voices.voice import Consent, Voice, check_id
from .access import require_key
from .faults import json_error
from .state import STATE

_FIELD_BYTES = 16 * 2**10
"""Of one form field that is not the recording."""
_FIELDS_MAX = 16


async def list_voices(request: web.Request) -> web.Response:
    """`{"voices": [{id, speaker, date, seconds, band, problem}, ...]}`; `problem` is null where it
    can be used.
    """
    voices = await asyncio.to_thread(_store(request).list)
    return web.json_response({"voices": [asdict(voice) for voice in voices]})


async def add_voice(request: web.Request) -> web.Response:
    """201 with its id. `audio` (a file, or base64 in JSON), `transcript`, `consent` (speaker,
    statement, date); `id` and `name` may be left out.
    """
    store = _store(request)
    if request.content_type == "multipart/form-data":
        members = await _form(request, store.limits)
    else:
        members = await _json(request, store.limits)
    id = await asyncio.to_thread(_add, store, members)
    return web.json_response({"id": id}, status=201)


async def delete_voice(request: web.Request) -> web.Response:
    """204, or 404 where there is none.

    Conversations that speak in it keep it to their end, nobody else gets it again.
    """
    store, id = _store(request), check_id(request.match_info["id"])
    if not await asyncio.to_thread(store.has, id):
        missing = VoiceError(f"There is no voice {id}; list those there are.")
        return json_error(missing, status=404)
    key = await asyncio.to_thread(_remove, store, id)
    if key is not None:
        request.app[STATE].engine.forget_voice(key)
    return web.Response(status=204)


def _store(request: web.Request) -> VoiceStore:
    """Raises AuthError, VoiceError."""
    config = request.app[STATE].config
    require_key(request, config)
    if config.voices_dir is None:
        raise VoiceError("This engine keeps no voices; start it with CSM_VOICES_DIR.")
    return VoiceStore(config.voices_dir, limits=config.limits)


async def _json(request: web.Request, limits: Limits) -> dict[str, Any]:
    try:
        text = await request.text()
    except (UnicodeDecodeError, LookupError):
        raise RequestError("The body must be JSON in UTF-8.") from None
    return await asyncio.to_thread(read_object, text, limits)


async def _form(request: web.Request, limits: Limits) -> dict[str, Any]:
    """The form's fields as the JSON would have them; the consent's are `consent_speaker` and so on,
    or all in one field `consent` with JSON.
    """
    members: dict[str, Any] = {}
    consent: dict[str, Any] = {}
    try:
        async for part in await request.multipart():
            name = part.name if isinstance(part, BodyPartReader) else None
            if not isinstance(part, BodyPartReader) or name is None or name in members:
                raise RequestError("The form has a part without a name, or one twice.")
            if len(members) + len(consent) >= _FIELDS_MAX:
                raise RequestError(f"The form has more than {_FIELDS_MAX} fields.")
            if name == "audio":
                data = await _part(part, limits.reference_bytes)
                members[name] = base64.b64encode(data).decode("ascii")
                continue
            value = (await _part(part, _FIELD_BYTES)).decode()
            if name.startswith("consent_"):
                consent[name.removeprefix("consent_")] = value
            else:
                members[name] = json.loads(value) if name == "consent" else value
    except (ValueError, RecursionError, AssertionError):
        raise RequestError("The body is not a form that can be read.") from None
    return members | ({"consent": consent} if consent else {})


async def _part(part: BodyPartReader, most: int) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk():
        data += chunk
        if len(data) > most:
            raise AudioError(f"A part of the form has more than {most} bytes.")
    return bytes(data)


def _add(store: VoiceStore, members: dict[str, Any]) -> str:
    limits = store.limits
    fields = Fields(dict(members), "voice")
    audio = fields.audio("audio", limits)
    transcript = fields.speech("transcript", limits)
    consent = Consent.from_mapping(fields.object("consent"))
    name = fields.name("name", limits, default=consent.speaker)
    id = fields.string("id", default="") or None
    fields.finish()
    voice = Voice.from_audio(
        decode_reference(audio, limits=limits),
        SAMPLE_RATE,
        transcript=transcript,
        consent=consent,
        speaker=name,
        id=id,
    )
    if voice.id == STOCK_VOICE:
        raise VoiceError(f"{STOCK_VOICE} is nobody's voice; choose another id.")
    return store.add(voice)


def _remove(store: VoiceStore, id: str) -> str | None:
    """The engine's key of the voice, None where it could not be loaded and so was never spoken."""
    try:
        key: str | None = store.load(id).key
    except CsmError:
        key = None
    store.remove(id)
    return key
