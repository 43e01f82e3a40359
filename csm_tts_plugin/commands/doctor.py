"""`doctor`: looks for what is missing or wrong on this machine, one line each with what to do.

Keys are told by whether they are there, never by what they are.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from ..config import DEFAULT_PORT, AgentConfig, EngineConfig, HubConfig, ServerConfig
from ..errors import CsmError

_CONNECT_S = 3.0
_PACKAGES = ("torch", "transformers", "livekit-agents", "aiohttp", "numpy", "soxr", "soundfile")
_MODEL_GB = 8.0
"""Free space that CSM-1B's download wants."""


class Mark(StrEnum):
    OK = "ok"
    NOTE = "note"
    BAD = "BAD"


@dataclass(frozen=True, slots=True)
class Finding:
    mark: Mark
    text: str


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="the engine's, to be free")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """1 when something stands in the way, else 0."""
    blocked = False
    for finding in examine(args.port):
        blocked |= finding.mark is Mark.BAD
        print(f"{finding.mark:<5}{finding.text}", flush=True)
    print("something is in the way: see BAD above" if blocked else "nothing is in the way")
    return int(blocked)


def examine(port: int) -> Iterator[Finding]:
    """Every finding, as it is made. A check that cannot be done is a finding too."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        _packages,
        _devices,
        lambda: _model(EngineConfig.from_env()),
        lambda: _livekit(AgentConfig.from_env()),
        lambda: _engine(AgentConfig.from_env(), port),
        lambda: _voices(ServerConfig.from_env()),
    ]
    for check in checks:
        try:
            yield from check()
        except CsmError as error:
            yield Finding(Mark.BAD, error.message)


def _python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding(Mark.OK if good else Mark.BAD, f"Python {found}" + ("" if good else "; 3.11 up"))


def _packages() -> Iterator[Finding]:
    for name in _PACKAGES:
        try:
            yield Finding(Mark.OK, f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding(Mark.BAD, f"{name} is missing; `pip install -r requirements.txt`")


def _devices() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        size = f"{card.total_memory / 2**30:.0f} GiB"
        yield Finding(Mark.OK, f"cuda:{index} is a {card.name} with {size}")
    if not torch.cuda.is_available():
        yield Finding(
            Mark.NOTE, f"no CUDA device; {os.cpu_count()} CPU cores speak tiny, not CSM-1B"
        )


def _model(config: EngineConfig) -> Iterator[Finding]:
    if config.model == "tiny":
        yield Finding(Mark.OK, "model tiny, which is part of this package")
    elif Path(config.model).is_dir():
        good = (Path(config.model) / "config.json").is_file()
        advice = "" if good else " without config.json; download the checkpoint again"
        yield Finding(Mark.OK if good else Mark.BAD, f"model folder {config.model}{advice}")
    else:
        yield from _hub(config.model)


def _hub(model: str) -> Iterator[Finding]:
    hub = HubConfig.from_env()
    endpoint = hub.endpoint
    if _reachable(endpoint):
        yield Finding(Mark.OK, f"model {model}, from {endpoint}")
    else:
        yield Finding(
            Mark.BAD,
            f"model {model}: {endpoint} is out of reach; set CSM_MODEL to a folder or to tiny",
        )
    if hub.token_set:
        yield Finding(Mark.OK, "HF_TOKEN is set")
    else:
        yield Finding(Mark.NOTE, "HF_TOKEN is not set; gated models need one")
    free = shutil.disk_usage(Path.home()).free / 2**30
    if free < _MODEL_GB:
        yield Finding(Mark.NOTE, f"{free:.0f} GiB are free; CSM-1B's download takes 6")


def _livekit(config: AgentConfig) -> Iterator[Finding]:
    keys = {
        "LIVEKIT_API_KEY": config.livekit_api_key,
        "LIVEKIT_API_SECRET": config.livekit_api_secret,
    }
    if config.livekit_url is None:
        yield Finding(Mark.NOTE, "LIVEKIT_URL is not set; `make call` runs a server of its own")
        return
    if _reachable(config.livekit_url):
        yield Finding(Mark.OK, f"LiveKit answers at {config.livekit_url}")
    else:
        yield Finding(
            Mark.BAD, f"no LiveKit at {config.livekit_url}; start it, or correct LIVEKIT_URL"
        )
    for name, value in keys.items():
        yield Finding(*((Mark.OK, f"{name} is set") if value else (Mark.BAD, f"set {name}")))


def _engine(config: AgentConfig, port: int) -> Iterator[Finding]:
    for url in config.engine_urls:
        good = _reachable(url)
        advice = "" if good else "; start it, or correct CSM_ENGINE_URL"
        what = f"an engine answers at {url}" if good else f"no engine at {url}{advice}"
        yield Finding(Mark.OK if good else Mark.BAD, what)
    if config.engine_urls:
        return
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            yield Finding(Mark.OK, f"port {port} is free for `serve`")
        except OSError:
            yield Finding(Mark.NOTE, f"port {port} is taken; give `serve` another with --port")


def _voices(config: ServerConfig) -> Iterator[Finding]:
    folder = config.voices_dir
    if folder is None:
        yield Finding(Mark.NOTE, "CSM_VOICES_DIR is not set; only callers' own voices can be used")
    elif not folder.is_dir():
        yield Finding(Mark.BAD, f"voices folder {folder} is not there; make it")
    else:
        from ..voices.store import VoiceStore

        voices = VoiceStore(folder).list()
        yield Finding(Mark.OK, f"{len(voices)} voices in {folder}")
        for voice in voices:
            if voice.problem:
                yield Finding(Mark.BAD, f"voice {voice.id}: {voice.problem}")


def _reachable(url: str) -> bool:
    """Whether anything takes a connection there."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or (443 if parts.scheme in ("https", "wss") else 80)
        with socket.create_connection((parts.hostname or "", port), _CONNECT_S):
            return True
    except (OSError, ValueError):
        return False
