"""`GET /openapi.json`: the HTTP routes as OpenAPI 3.1. The sockets are described in `wire/`.

Written by hand; a test runs schemathesis to compare it with the handlers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..audio.encoding import CONTENT_TYPES
from ..config import Limits, ServerConfig
from ..errors import CODES
from ..version import __version__
from ..wire.fields import WHOLE_MAX
from ..wire.protocol import VOICE_ID
from .voices import OPENAI_VOICES

Json = dict[str, Any]

_WORDS = {"pattern": r"[A-Za-z]{2}"}
"""Pattern of texts to be spoken, for test generators. Words of any script are accepted."""


def description(config: ServerConfig, voices: Sequence[str]) -> Json:
    """The document for a server with this configuration and these voices."""
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "csm_tts_plugin",
            "version": __version__,
            "description": "Speech by CSM, in stored and consented voices. Conversations go over"
            " the WebSocket /v1/stream, which this document does not cover.",
        },
        "paths": _paths() | (_kept_voices() if config.voices_dir is not None else {}),
        "components": {"schemas": _schemas(config.limits, voices), "responses": _responses()},
    }
    if config.keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _paths() -> Json:
    return {
        "/healthz": {"get": _get("alive", "200 while the process answers", "Health", open=True)},
        "/readyz": {
            "get": _get("ready", "Whether it can speak, and how full it is", "Ready", open=True)
            | {"responses": {"200": _json("Ready"), "503": _json("Ready"), **_errors("403")}}
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "Prometheus' text format",
                "responses": {
                    "200": {
                        "description": "The figures",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    },
                    **_errors("401", "403"),
                },
            }
        },
        "/openapi.json": {"get": _get("openapi", "This document", "Anything", open=True)},
        "/v1/models": {"get": _get("listModels", "The model of this engine", "Models", "503")},
        "/v1/models/{id}": {
            "get": {"parameters": [_name("id", {"type": "string", "minLength": 1})]}
            | _get("showModel", "One model", "Model", "404", "503")
        },
        "/v1/audio/voices": {"get": _get("listNames", "Voices by name", "Names", "400")},
        "/v1/audio/speech": {"post": _speech()},
        "/v1/audio/detect": {"post": _detect()},
    }


def _kept_voices() -> Json:
    """Routes of a server that has a folder of voices."""
    return {
        "/v1/voices": {
            "get": _get("listVoices", "Stored voices", "Voices", "400"),
            "post": _add_voice(),
        },
        "/v1/voices/{id}": {"delete": _delete_voice()},
    }


def _get(id: str, summary: str, schema: str, *errors: str, open: bool = False) -> Json:
    refusals = _errors(*errors, *(("403",) if open else ("401", "403")))
    operation: Json = {
        "operationId": id,
        "summary": summary,
        "responses": {"200": _json(schema), **refusals},
    }
    return operation | ({"security": []} if open else {})


def _speech() -> Json:
    sound = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _KINDS}
    return {
        "operationId": "speak",
        "summary": "Speak a text, streamed as it is generated",
        "requestBody": _body("Speech"),
        "responses": {
            "200": {
                "description": "The sound; as events where stream_format is sse",
                "content": {**sound, "text/event-stream": {"schema": _ref("Event")}},
            },
            **_errors("400", "401", "403", "500", "503", "504"),
        },
    }


def _detect() -> Json:
    file = {"schema": {"type": "string", "format": "binary"}}
    return {
        "operationId": "detect",
        "summary": "Whether a recording carries the watermark of made speech",
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": file},
        },
        "responses": {"200": _json("Detection"), **_errors("400", "401", "403", "503")},
    }


def _add_voice() -> Json:
    operation: Json = {
        "operationId": "addVoice",
        "summary": "Keep a recording as a voice, with its speaker's consent; also as a form",
        "requestBody": _body("NewVoice"),
        "responses": {"201": _json("Added"), **_errors("400", "401", "403")},
    }
    return operation


def _delete_voice() -> Json:
    return {
        "operationId": "deleteVoice",
        "summary": "Forget a voice: recording, record of consent, and what the engine keeps",
        "parameters": [_name("id", {"type": "string", "pattern": VOICE_ID.pattern})],
        "responses": {
            "204": {"description": "It is gone"},
            **_errors("400", "401", "403", "404"),
        },
    }


_KINDS = tuple(dict.fromkeys(CONTENT_TYPES.values()))


def _name(name: str, schema: Json) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _body(schema: str) -> Json:
    return {"required": True, "content": {"application/json": {"schema": _ref(schema)}}}


def _json(schema: str) -> Json:
    return {"description": schema, "content": {"application/json": {"schema": _ref(schema)}}}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _errors(*statuses: str) -> Json:
    return {status: {"$ref": f"#/components/responses/E{status}"} for status in sorted(statuses)}


_REFUSALS = {
    "400": "The request cannot be done; the message says why",
    "401": "The key is missing or wrong",
    "403": "A web page that may not, or a voice without consent",
    "404": "There is no such thing",
    "500": "The engine failed",
    "503": "Full, or not ready: Retry-After says when to come again",
    "504": "No audio in time",
}


def _responses() -> Json:
    return {
        f"E{status}": {
            "description": what,
            "content": {"application/json": {"schema": _ref("Error")}},
        }
        for status, what in _REFUSALS.items()
    }


def _schemas(limits: Limits, voices: Sequence[str]) -> Json:
    consent = {
        "speaker": _text(limits.name_chars),
        "statement": _text(limits.text_chars),
        "date": {"type": "string", "format": "date"},
    }
    return {
        "Anything": {"type": "object"},
        "Error": _error(),
        "Detection": _detection(),
        "Health": _object({"status": {"const": "ok"}, "version": {"type": "string"}}),
        "Ready": _ready(),
        "Model": _model(),
        "Models": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
        "Names": _object(
            {"voices": _list(_object({"id": {"type": "string"}, "name": {"type": "string"}}))}
        ),
        "Voices": _object({"voices": _list(_stored())}),
        "Added": _object({"id": {"type": "string", "pattern": VOICE_ID.pattern}}),
        "Event": _object(
            {
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "description": "Of type speech.audio.delta with `audio` in base64, then one"
                    " speech.audio.done with `usage` (characters, frames of 80 ms); or error",
                }
            }
        ),
        "Speech": _speech_request(limits, voices),
        "NewVoice": _closed(
            {
                "audio": {
                    "type": "string",
                    "contentEncoding": "base64",
                    "description": "WAV, FLAC, OGG, MP3, M4A or WebM in base64",
                },
                "transcript": _text(limits.text_chars),
                "consent": _object(consent),
                "name": {"anyOf": [_text(limits.name_chars), {"type": "null"}]},
                "id": {"type": ["string", "null"], "pattern": VOICE_ID.pattern},
            },
            "audio",
            "transcript",
            "consent",
        ),
    }


def _speech_request(limits: Limits, voices: Sequence[str]) -> Json:
    stock = [name for name in OPENAI_VOICES if name not in voices]
    voice: Json = {"enum": [*voices]}
    alias: Json = {"enum": stock, "description": "Names of OpenAI's: the stock voice"}
    either = {"enum": [*voices, *stock]}
    nothing = {"type": "null"}
    number, whole = {"type": ["number", "null"]}, {"type": ["integer", "null"]}
    return _closed(
        {
            "model": {"type": ["string", "null"], "description": "Any: an engine has one"},
            "input": {"type": "string", "maxLength": limits.speech_chars} | _WORDS,
            "voice": {"anyOf": [voice, alias, _closed({"id": either}, "id"), nothing]}
            | {"default": "stock"},
            "response_format": {"enum": [*CONTENT_TYPES, None], "default": "mp3"},
            "stream_format": {"enum": ["audio", "sse", None], "default": "audio"},
            "speed": {"enum": [1, None]},
            "instructions": {"enum": ["", None]},
            "temperature": number | {"minimum": 0, "maximum": limits.temperature_max},
            "top_k": whole | {"minimum": 1, "maximum": limits.top_k_max},
            "seed": whole | {"minimum": 0, "maximum": WHOLE_MAX},
        },
        "input",
    )


def _error() -> Json:
    nothing_or = {"type": ["number", "null"]}
    body = {
        "code": {"enum": [*CODES]},
        "message": {"type": "string"},
        "type": {"enum": ["invalid_request_error", "server_error"]},
        "param": {"type": "null"},
        "retryable": {"type": "boolean"},
        "retry_after": nothing_or,
    }
    return _object({"error": _object(body)})


def _ready() -> Json:
    counts = ("slots", "speaking", "queued", "queue", "conversations")
    names = ("model", "device", "dtype", "path", "adapter", "watermark", "follows")
    return _object(
        {
            "ready": {"type": "boolean"},
            "detail": {"type": "string"},
            **{name: {"type": "integer", "minimum": 0} for name in counts},
            **{name: {"type": ["string", "null"]} for name in names},
            "clones": {"type": ["boolean", "null"]},
        }
    )


def _detection() -> Json:
    likely = {"type": "number", "minimum": 0, "maximum": 1}
    each = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
    return _object(
        {
            "marked": {"type": "boolean"},
            "confidence": likely,
            "seconds": _list(each),
            "length": {"type": "number"},
            "watermark": {"type": "string"},
        }
    )


def _model() -> Json:
    return _object(
        {
            "id": {"type": "string"},
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": {"type": "string"},
        }
    )


def _stored() -> Json:
    names = ("id", "speaker", "date", "band")
    return _object(
        {
            **{name: {"type": "string"} for name in names},
            "seconds": {"type": "number", "minimum": 0},
            "problem": {"type": ["string", "null"]},
        }
    )


def _text(most: int) -> Json:
    return {"type": "string", "minLength": 1, "maxLength": most} | _WORDS


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _object(members: Json) -> Json:
    """An object with all of these members; later versions may add some."""
    return {"type": "object", "properties": members, "required": [*members]}


def _closed(members: Json, *required: str) -> Json:
    """An object with no other members than these."""
    return {
        "type": "object",
        "properties": members,
        "required": [*required],
        "additionalProperties": False,
    }
