"""`doctor`: looks for what is missing or wrong on this machine, one line each with what to do.

Keys are told by whether they are there and taken, never by what they are.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import (
    DEFAULT_PORT,
    AgentConfig,
    EngineConfig,
    HubConfig,
    ServerConfig,
    TelemetryConfig,
)
from ..errors import CsmError
from ..load import rows_for
from . import doctor_services as services
from .finding import Finding, Mark, bad, note, ok

if TYPE_CHECKING:
    import torch

_PACKAGES = ("aiohttp", "numpy", "soxr", "soundfile", "prometheus-client")
_ENGINE_PACKAGES = ("torch", "transformers", "safetensors")
_WORKER_PACKAGES = ("livekit-agents", "livekit-plugins-openai")
_MODEL_GB = 8.0
"""Free space that CSM-1B's download wants."""
_WEIGHTS_GB, _ROW_GB = 4.0, 1 / 16
"""CSM-1B in bfloat16, by arithmetic: weights with what surrounds them; a row of keys and values."""
_MODEL_FILES = ("config.json", "tokenizer.json")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="the engine's, to be free")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """1 when something stands in the way, else 0."""
    blocked, told = False, set()
    for finding in examine(args.port):
        if finding in told:
            continue
        told.add(finding)
        blocked |= finding.mark is Mark.BAD
        print(f"{finding.mark:<5}{finding.text}", flush=True)
    print("something is in the way: see BAD above" if blocked else "nothing is in the way")
    return int(blocked)


def examine(port: int) -> Iterator[Finding]:
    """Every finding, as it is made. A check that cannot be done is a finding too."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        lambda: _packages(AgentConfig.from_env()),
        lambda: _engine_here(AgentConfig.from_env(), EngineConfig.from_env(), port),
        lambda: services.engines(AgentConfig.from_env()),
        lambda: _voices(ServerConfig.from_env(), AgentConfig.from_env()),
        lambda: services.livekit(AgentConfig.from_env()),
        lambda: _worker(AgentConfig.from_env()),
        lambda: services.telemetry(TelemetryConfig.from_env()),
    ]
    for check in checks:
        try:
            yield from check()
        except CsmError as error:
            yield bad(error.message)


def _python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield ok(f"Python {found}") if good else bad(f"Python {found}; 3.11 or newer is needed")


def _packages(config: AgentConfig) -> Iterator[Finding]:
    """torch is not needed where others run the engine, nor LiveKit where only an engine runs."""
    yield from (_package(name, needed=True) for name in _PACKAGES)
    yield from (_package(name, needed=not config.engine_urls) for name in _ENGINE_PACKAGES)
    worker = config.livekit_url is not None
    yield from (_package(name, needed=worker) for name in _WORKER_PACKAGES)


def _package(name: str, *, needed: bool) -> Finding:
    try:
        return ok(f"{name} {version(name)}")
    except PackageNotFoundError:
        if needed:
            return bad(f"{name} is missing; `pip install -r requirements.txt`")
        return note(f"{name} is not installed, and not needed with these settings")


def _engine_here(agent: AgentConfig, config: EngineConfig, port: int) -> Iterator[Finding]:
    """What an engine on this machine needs; nothing of it where another one is named."""
    if agent.engine_urls:
        return
    yield from _devices(config)
    yield from _model(config)
    yield _port(("127.0.0.1", port), "`serve`", "--port")


def _devices(config: EngineConfig) -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(cards):
        card = torch.cuda.get_device_properties(index)
        size = card.total_memory / 2**30
        yield ok(f"cuda:{index} is a {card.name} with {size:.0f} GiB")
        yield from _room(config, size)
    if cards:
        yield _graphs(config)
    else:
        yield from _no_card(config, torch.version.cuda)


def _no_card(config: EngineConfig, cuda: str | None) -> Iterator[Finding]:
    if config.device.startswith("cuda"):
        yield bad(f"CSM_DEVICE={config.device}, but torch finds no CUDA device; set it to auto")
    if shutil.which("nvidia-smi") is not None:
        made = f"for CUDA {cuda}" if cuda else "without CUDA"
        yield bad(f"there is an NVIDIA driver, but torch, made {made}, cannot use it; update one")
    yield note(f"no CUDA device; {os.cpu_count()} CPU cores speak tiny, not CSM-1B")
    yield note("CUDA graphs: none on a CPU")


def _room(config: EngineConfig, size_gb: float) -> Iterator[Finding]:
    if config.model == "tiny":
        return
    wanted = _WEIGHTS_GB + rows_for(config.slots) * _ROW_GB
    if wanted > size_gb:
        yield bad(
            f"CSM-1B with {config.slots} slots wants some {wanted:.0f} GiB, more than there is;"
            " lower CSM_SLOTS, or give `serve` a smaller --max-context"
        )


def _graphs(config: EngineConfig) -> Finding:
    """Captures and replays one, for drivers and containers exist where that fails."""
    import torch

    if not config.cuda_graphs:
        return note("CUDA graphs: turned off by CSM_CUDA_GRAPHS=0; frames take longer")
    try:
        right = _captured(torch.device("cuda"))
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        return bad(f"CUDA graphs: capturing fails ({why}); update the driver, or CSM_CUDA_GRAPHS=0")
    return (
        ok("CUDA graphs: one was captured and replayed")
        if right
        else bad(
            "CUDA graphs: a replay gives wrong numbers; update the driver, or set CSM_CUDA_GRAPHS=0"
        )
    )


def _captured(device: torch.device) -> bool:
    import torch

    value = torch.zeros(8, device=device)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value += 1
    value.zero_()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    return bool((value == 3).all())


def _model(config: EngineConfig) -> Iterator[Finding]:
    if config.model == "tiny":
        yield ok("model tiny, which is part of this package")
    elif Path(config.model).is_dir():
        yield _folder(Path(config.model))
    elif config.model.startswith((".", "/", "~")):
        yield bad(f"model folder {config.model} is not there; correct CSM_MODEL")
    else:
        yield from services.hub(config.model, HubConfig.from_env())
        yield from _disk()


def _folder(folder: Path) -> Finding:
    missing = [name for name in _MODEL_FILES if not (folder / name).is_file()]
    missing += _missing_weights(folder)
    if missing:
        return bad(
            f"model folder {folder} lacks {', '.join(missing)}; download the checkpoint again"
        )
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (ValueError, OSError, TypeError, AttributeError):
        return bad(f"config.json in {folder} cannot be read; download the checkpoint again")
    if kind != "csm":
        return bad(
            f"model folder {folder} holds a model of type {kind}, not csm; correct CSM_MODEL"
        )
    return ok(f"model folder {folder}")


def _missing_weights(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [] if any(folder.glob("*.safetensors")) else ["model.safetensors"]
    try:
        parts = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, OSError, KeyError, TypeError, AttributeError):
        return [index.name]
    return sorted(part for part in parts if not (folder / str(part)).is_file())


def _disk() -> Iterator[Finding]:
    cache = HubConfig.from_env().cache
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free / 2**30
    if free < _MODEL_GB:
        yield note(f"{free:.0f} GiB are free; CSM-1B's download takes 6")


def _voices(config: ServerConfig, agent: AgentConfig) -> Iterator[Finding]:
    """Stored voices of this machine; those of engines elsewhere are theirs."""
    wanted = agent.voice_source if agent.voice_source not in ("caller", "stock") else None
    folder = config.voices_dir
    if folder is None:
        if wanted and not agent.engine_urls:
            yield bad(
                f"VOICE_SOURCE={wanted}, but CSM_VOICES_DIR is not set; say where it is stored"
            )
        yield note("CSM_VOICES_DIR is not set; only callers' own voices can be used")
        return
    if not folder.is_dir():
        yield bad(f"voices folder {folder} is not there; make it, or correct CSM_VOICES_DIR")
        return
    from ..voices.store import VoiceStore

    voices = VoiceStore(folder).list()
    yield ok(f"{len(voices)} voices in {folder}")
    for voice in voices:
        if voice.problem:
            yield bad(f"voice {voice.id}: {voice.problem}")
    if wanted and not agent.engine_urls and wanted not in {voice.id for voice in voices}:
        yield bad(f"VOICE_SOURCE={wanted}: no such voice in {folder}; add it, or correct the name")


def _worker(config: AgentConfig) -> Iterator[Finding]:
    """What the worker needs beside LiveKit and an engine, where there is a LiveKit to serve."""
    if config.livekit_url is None:
        return
    yield from services.models(config)
    yield _port(config.health, "the worker's health page", "AGENT_HEALTH")
    if config.metrics_port:
        address = (config.health[0], config.metrics_port)
        yield _port(address, "the worker's metrics", "AGENT_METRICS_PORT")


def _port(address: tuple[str, int], whose: str, setting: str) -> Finding:
    """A port that is taken may well be taken by what it is for, so that is no fault."""
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return note(f"port {port} of {host} is taken; if not by {whose}, choose with {setting}")
    return ok(f"port {port} is free for {whose}")
