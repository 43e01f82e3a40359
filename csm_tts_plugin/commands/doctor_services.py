"""Checks of `doctor` over the network: LiveKit, engines, the hub, models at an endpoint.

Each request has a time limit. A key is sent only to its server and never shown.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from ..config import AgentConfig, EndpointConfig, HubConfig, TelemetryConfig
from ..errors import CsmError, install
from ..offline.names import check_names
from .finding import Finding, bad, note, ok

_PATIENCE_S = 5.0
_ANSWER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` 0: no HTTP answer."""

    status: int
    body: bytes = b""

    @property
    def json(self) -> dict[str, Any]:
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def ask(url: str, *, key: str | None = None, body: bytes | None = None) -> Answer:
    """GET, or POST of the JSON `body` if there is one; `key` is sent as a bearer token."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        request = urllib.request.Request(url, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return Answer(answer.status, answer.read(_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(_ANSWER_BYTES))
    except (OSError, ValueError, HTTPException):
        return Answer(0)


def reachable(url: str) -> bool:
    """Whether a TCP connection can be made."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or (443 if parts.scheme in ("https", "wss") else 80)
        with socket.create_connection((parts.hostname or "", port), _PATIENCE_S):
            return True
    except (OSError, ValueError):
        return False


def livekit(config: AgentConfig) -> Iterator[Finding]:
    """Whether the server is reachable and accepts the key."""
    url = config.livekit_url
    if url is None:
        yield note("LIVEKIT_URL is not set; `make call` runs a server of its own")
        return
    keys = {
        "LIVEKIT_API_KEY": config.livekit_api_key,
        "LIVEKIT_API_SECRET": config.livekit_api_secret,
    }
    missing = [name for name, value in keys.items() if not value]
    yield from (bad(f"{name} is not set; take it from the LiveKit server") for name in missing)
    if not reachable(url):
        yield bad(f"no LiveKit at {url}; start it, or correct LIVEKIT_URL")
    elif missing:
        yield ok(f"LiveKit answers at {url}")
    else:
        yield _key_of(url, str(config.livekit_api_key), str(config.livekit_api_secret))


def _key_of(url: str, key: str, secret: str) -> Finding:
    web = url.replace("wss://", "https://", 1).replace("ws://", "http://", 1).rstrip("/")
    token = _token(key, secret)
    answer = ask(f"{web}/twirp/livekit.RoomService/ListRooms", key=token, body=b'{"names": ["-"]}')
    if answer.status == 200:
        return ok(f"LiveKit at {url} accepts the key")
    if answer.status == 401:
        return bad(f"{url} refuses the key; check LIVEKIT_API_KEY and LIVEKIT_API_SECRET")
    said = f"answers {answer.status}" if answer.status else "does not speak HTTP"
    return bad(f"the server at {url} is not a LiveKit server ({said}); correct LIVEKIT_URL")


def _token(key: str, secret: str) -> str:
    """A LiveKit access token that may list rooms and is valid for one minute.

    LiveKit's own function is not installed on a machine that only runs an engine.
    """

    def part(value: Mapping[str, Any] | bytes) -> str:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    now = int(time.time())
    claims = {"iss": key, "nbf": now - 30, "exp": now + 60, "video": {"roomList": True}}
    head = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}"
    return f"{head}.{part(hmac.new(secret.encode(), head.encode(), hashlib.sha256).digest())}"


def engines(config: AgentConfig) -> Iterator[Finding]:
    """Whether each configured engine is reachable, ready and accepts the key."""
    for url in config.engine_urls:
        yield _engine(url.rstrip("/"), config)


def _engine(url: str, config: AgentConfig) -> Finding:
    web = url if "://" in url else f"http://{url}"
    web = web.replace("wss://", "https://", 1).replace("ws://", "http://", 1)
    status = ask(f"{web}/readyz")
    if not status.status:
        return bad(f"no engine at {url}; start it, or correct CSM_ENGINE_URL")
    if "slots" not in status.json:
        return bad(f"the server at {url} is not an engine; correct CSM_ENGINE_URL")
    if ask(f"{web}/metrics", key=config.engine_key).status == 401:
        return bad(f"the engine at {url} refuses the key; set CSM_ENGINE_KEY to its key")
    if not status.json.get("ready"):
        return bad(f"the engine at {url} is not ready: {status.json.get('detail')}; see its log")
    model, device = (status.json.get(name) for name in ("model", "device"))
    voice = config.voice_source
    if voice not in ("caller", "stock") and not _stored(web, config):
        return bad(f"the engine at {url} has no voice {voice}; add it, or correct VOICE_SOURCE")
    return ok(f"an engine is ready at {url}: {model} on {device}, {status.json['slots']} slots")


def _stored(web: str, config: AgentConfig) -> bool:
    listed = ask(f"{web}/v1/voices", key=config.engine_key).json.get("voices", [])
    return any(one.get("id") == config.voice_source for one in listed if isinstance(one, dict))


def hub(model: str, config: HubConfig) -> Iterator[Finding]:
    """Whether the checkpoint is downloaded, or could be."""
    if _downloaded(model, config):
        yield ok(f"model {model}, downloaded before")
        return
    answer = ask(f"{config.endpoint}/api/models/{model}", key=config.token)
    gated = bool(answer.json.get("gated"))
    if not answer.status:
        yield bad(
            f"model {model}: {config.endpoint} cannot be reached; set CSM_MODEL to a folder or to"
            " tiny, or HF_ENDPOINT to a mirror"
        )
    elif answer.status in (401, 403, 404):
        yield bad(
            f"model {model} is not available to you at {config.endpoint}; correct CSM_MODEL, or"
            " accept its terms there and set HF_TOKEN"
        )
    elif gated and not config.token:
        yield bad(f"model {model} is gated; accept its terms on the hub and set HF_TOKEN")
    else:
        yield ok(f"model {model}, from {config.endpoint}")
        yield ok("HF_TOKEN is set") if config.token else note("HF_TOKEN is not set")


def _downloaded(model: str, config: HubConfig) -> bool:
    folder = config.cache / f"models--{model.replace('/', '--')}" / "snapshots"
    return any(folder.glob("*/*.safetensors"))


def models(config: AgentConfig) -> Iterator[Finding]:
    """Speech-to-text and the LLM, as far as they can be checked without a call."""
    endpoint = EndpointConfig.from_env()
    try:
        check_names(config, {"OPENAI_BASE_URL": endpoint.url if endpoint.named else ""})
    except CsmError as error:
        yield bad(error.message)
        return
    for variable, name in (("AGENT_STT", config.stt), ("AGENT_LLM", config.llm)):
        if name == "offline":
            yield _offline(variable)
        elif name.startswith("openai:"):
            yield _endpoint(variable, name, endpoint)
        elif (config.livekit_url or "").rstrip("/").endswith(".livekit.cloud"):
            yield ok(f"{variable}={name}, by LiveKit Inference")
        else:
            yield note(
                f"{variable}={name}: LiveKit Inference needs the key of a LiveKit Cloud project"
            )


def _offline(variable: str) -> Finding:
    from ..offline.models import smollm2_file, whisper_folder

    find, package = {
        "AGENT_STT": (whisper_folder, "faster_whisper"),
        "AGENT_LLM": (smollm2_file, "xllamacpp"),
    }[variable]
    import importlib.util

    if importlib.util.find_spec(package) is None:
        return bad(f"{variable}=offline: {package} is missing; {install('offline')}")
    try:
        find()
    except CsmError as error:
        return bad(f"{variable}=offline: {error.message}")
    return ok(f"{variable}=offline, its model is installed")


def _endpoint(variable: str, name: str, endpoint: EndpointConfig) -> Finding:
    base = endpoint.url
    answer = ask(f"{base}/models", key=endpoint.key)
    if not answer.status:
        return bad(
            f"{variable}={name}: nothing answers at {base}; start it, or correct OPENAI_BASE_URL"
        )
    if answer.status in (401, 403):
        return bad(f"{variable}={name}: {base} refuses the key; correct OPENAI_API_KEY")
    listed = answer.json.get("data")
    known = {one.get("id") for one in listed if isinstance(one, dict)} if listed else set()
    model = name.removeprefix("openai:")
    if known and model not in known:
        return bad(f"{variable}={name}: {base} has no model {model}; it lists its own at /models")
    return ok(f"{variable}={name}, at {base}")


def telemetry(config: TelemetryConfig) -> Iterator[Finding]:
    if not config.wanted:
        return
    url = config.endpoint
    if reachable(url):
        yield ok(f"spans go to {url}")
    else:
        yield note(f"no collector at {url}; spans are dropped until there is one")
