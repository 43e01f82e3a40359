"""`/v1/voices`: manages stored voices, if the engine has a folder for them.

`GET` lists, `POST` adds (a form or JSON), `DELETE /v1/voices/<id>` deletes the file, its consent
record and the engine's cached prefix.
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
from ..errors import CsmError, RequestError, VoiceError
from ..voices.store import VoiceStore
from ..voices.voice import Consent, Voice, check_id
from ..wire.fields import Fields, read_object
from ..wire.protocol import STOCK_VOICE
from .access import require_key
from .faults import json_error
from .forms import read_part
from .state import STATE

_FIELD_BYTES = 16 * 2**10
"""The most bytes of a form field that is not the recording."""
_FIELDS_MAX = 16


async def list_voices(request: web.Request) -> web.Response:
    """`{"voices": [{id, speaker, date, seconds, band, problem}, ...]}`; `problem` is null for a
    usable voice.
    """
    voices = await asyncio.to_thread(_store(request).list)
    return web.json_response({"voices": [asdict(voice) for voice in voices]})


async def add_voice(request: web.Request) -> web.Response:
    """Takes `audio` (a file, or base64 in JSON), `transcript`, `consent` (speaker, statement, date)
    and optionally `id` and `name`. Answers 201 with the id.
    """
    store = _store(request)
    if request.content_type == "multipart/form-data":
        members = await _form(request, store.limits)
    else:
        members = await _json(request, store.limits)
    id = await asyncio.to_thread(_add, store, members)
    return web.json_response({"id": id}, status=201)


async def delete_voice(request: web.Request) -> web.Response:
    """Answers 204, or 404 if there is no such voice; the engine drops it from its cache either way.

    Open conversations with this voice keep it to their end.
    """
    store, id = _store(request), check_id(request.match_info["id"])
    state = request.app[STATE]
    there = await asyncio.to_thread(store.has, id)
    keys = await asyncio.to_thread(_remove, store, id) if there else set()
    for key in keys | state.voice_keys.pop(id, set()):
        state.engine.forget_voice(key)
    if not there:
        missing = VoiceError(f"There is no voice {id}; list the stored voices.")
        return json_error(missing, status=404)
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
    """The form's fields in the structure of the JSON body. Consent is given in fields
    `consent_speaker` and so on, or as JSON in one field `consent`.
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
                data = await read_part(part, limits.reference_bytes)
                members[name] = base64.b64encode(data).decode("ascii")
                continue
            value = (await read_part(part, _FIELD_BYTES)).decode()
            if name.startswith("consent_"):
                consent[name.removeprefix("consent_")] = value
            else:
                members[name] = json.loads(value) if name == "consent" else value
    except (ValueError, RecursionError, AssertionError):
        raise RequestError("The body is not a form that can be read.") from None
    return members | ({"consent": consent} if consent else {})


def _add(store: VoiceStore, members: dict[str, Any]) -> str:
    limits = store.limits
    fields = Fields(dict(members), "voice")
    audio = fields.audio("audio", limits)
    transcript = fields.speech("transcript", limits)
    consent = Consent.from_mapping(fields.object("consent"))
    name = fields.name("name", limits, default=consent.speaker)
    id = fields.string("id", default="") or None
    fields.finish(named=True)
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


def _remove(store: VoiceStore, id: str) -> set[str]:
    """Deletes a voice; returns the engine's key of it, nothing if it could not be loaded."""
    try:
        keys = {store.load(id).key}
    except CsmError:
        keys = set()
    store.remove(id)
    return keys
