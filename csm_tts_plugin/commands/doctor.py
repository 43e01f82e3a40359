"""`doctor`: checks this machine; one line per finding, each with what to do.

Of a key it reports only whether it is set and accepted, never its value.
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
from ..engine.files import fault_of
from ..errors import CsmError, install
from ..wire.load import rows_for
from . import doctor_services as services
from .finding import Finding, Mark, bad, note, ok

if TYPE_CHECKING:
    import torch

_PACKAGES = ("aiohttp", "numpy", "soxr", "soundfile", "prometheus-client")
_ENGINE_PACKAGES = ("torch", "transformers", "safetensors")
_MODEL_GB = 8.0
"""Free space that CSM-1B's download needs."""
_WEIGHTS_GB, _ROW_GB = 4.0, 1 / 16
"""Estimated memory of CSM-1B in bfloat16: the weights with buffers, and one row of the KV cache."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="port of the engine that must be free"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """1 if something must be fixed, else 0."""
    blocked, told = False, set()
    for finding in examine(args.port):
        if finding in told:
            continue
        told.add(finding)
        blocked |= finding.mark is Mark.BAD
        print(f"{finding.mark:<5}{finding.text}", flush=True)
    print("something must be fixed: see BAD above" if blocked else "nothing must be fixed")
    return int(blocked)


def examine(port: int) -> Iterator[Finding]:
    """Yields each finding as soon as it is known. A check that raises CsmError gives one too."""
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
    """torch is not needed with remote engines, and LiveKit is not needed without a worker."""
    here, worker = not config.engine_urls, config.livekit_url is not None
    yield from (_package(name, needed=True) for name in _PACKAGES)
    yield from (_package(name, needed=here, extra="engine") for name in _ENGINE_PACKAGES)
    yield _package("livekit-agents", needed=worker)
    yield _package("livekit-plugins-openai", needed=worker, extra="agent")


def _package(name: str, *, needed: bool, extra: str = "") -> Finding:
    try:
        return ok(f"{name} {version(name)}")
    except PackageNotFoundError:
        if needed:
            return bad(f"{name} is missing; {install(extra)}")
        return note(f"{name} is not installed, and not needed with these settings")


def _engine_here(agent: AgentConfig, config: EngineConfig, port: int) -> Iterator[Finding]:
    """Requirements of an engine on this machine; nothing if remote engines are configured."""
    if agent.engine_urls:
        return
    yield from _devices(config)
    yield from _model(config)
    yield _watermark(config)
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
        yield _kernels(config)
    else:
        yield from _no_card(config, torch.version.cuda)


def _no_card(config: EngineConfig, cuda: str | None) -> Iterator[Finding]:
    if config.device.startswith("cuda"):
        yield bad(f"CSM_DEVICE={config.device}, but torch finds no CUDA device; set it to auto")
    if shutil.which("nvidia-smi") is not None:
        made = f"for CUDA {cuda}" if cuda else "without CUDA"
        yield bad(f"there is an NVIDIA driver, but torch, built {made}, cannot use it; update one")
    yield note(f"no CUDA device; {os.cpu_count()} CPU cores can run tiny, but not CSM-1B")
    yield note("CUDA graphs: none on a CPU")
    yield _c_kernels(config)


def _c_kernels(config: EngineConfig) -> Finding:
    """Whether the C kernels can be built; the engine decides at start-up whether it uses them."""
    from ..engine.native.build import BuildError, load

    if not config.kernels:
        return note("own kernels: turned off by CSM_KERNELS=0; frames take longer")
    if config.dtype == "bfloat16" or config.eight_bit_depth:
        return note("own kernels: none on a CPU in bfloat16 or 8 bits; frames take longer")
    try:
        load()
    except BuildError as error:
        return note(f"own kernels: {error}; PyTorch's are used, frames take about twice as long")
    return ok("own kernels: the C compiler builds them; /readyz tells whether they are used")


def _room(config: EngineConfig, size_gb: float) -> Iterator[Finding]:
    if config.model == "tiny":
        return
    wanted = _WEIGHTS_GB + rows_for(config.slots) * _ROW_GB
    if wanted > size_gb:
        yield bad(
            f"CSM-1B with {config.slots} slots needs about {wanted:.0f} GiB, more than there is;"
            " lower CSM_SLOTS, or give `serve` a smaller --max-context"
        )


def _graphs(config: EngineConfig) -> Finding:
    """Captures and replays a CUDA graph, which fails with some drivers and containers."""
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


def _kernels(config: EngineConfig) -> Finding:
    """Whether our kernels can be compiled; the engine decides at start-up whether it uses them."""
    if not config.kernels:
        return note("own kernels: turned off by CSM_KERNELS=0; frames take longer")
    if importlib.util.find_spec("triton") is None:
        return note("own kernels: Triton is not installed; PyTorch's are used, frames take longer")
    if not any(map(shutil.which, ("gcc", "clang"))):
        return note(
            "own kernels: Triton finds no C compiler; install gcc, or PyTorch's are used and "
            "frames take longer"
        )
    return ok("own kernels: Triton and a C compiler are installed; /readyz tells which are used")


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
        yield ok("model tiny, included in this package")
    elif Path(config.model).exists() or config.model.startswith((".", "/", "~")):
        yield _folder(Path(config.model).expanduser())
    else:
        yield from services.hub(config.model, HubConfig.from_env())
        yield from _disk()


def _watermark(config: EngineConfig) -> Finding:
    if config.watermark == "off":
        return note("speech is not watermarked: CSM_WATERMARK=off")
    return ok(f"speech is watermarked ({config.watermark})")


def _folder(folder: Path) -> Finding:
    fault = fault_of(folder)
    return bad(fault) if fault else ok(f"model folder {folder}")


def _disk() -> Iterator[Finding]:
    cache = HubConfig.from_env().cache
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free / 2**30
    if free < _MODEL_GB:
        yield note(f"{free:.0f} GiB are free; CSM-1B's download takes 6")


def _voices(config: ServerConfig, agent: AgentConfig) -> Iterator[Finding]:
    """The stored voices on this machine; not those of remote engines."""
    wanted = agent.voice_source if agent.voice_source not in ("caller", "stock") else None
    folder = config.voices_dir
    if folder is None:
        if wanted and not agent.engine_urls:
            yield bad(f"VOICE_SOURCE={wanted}, but CSM_VOICES_DIR is not set; set it to its folder")
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
    """Other requirements of a worker, if LiveKit is configured."""
    if config.livekit_url is None:
        return
    yield from services.models(config)
    yield _port(config.health, "the worker's health page", "AGENT_HEALTH")
    if config.metrics_port:
        address = (config.health[0], config.metrics_port)
        yield _port(address, "the worker's metrics", "AGENT_METRICS_PORT")


def _port(address: tuple[str, int], whose: str, setting: str) -> Finding:
    """A port in use is only a note, because its own process may use it."""
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return note(f"port {port} of {host} is taken; if not by {whose}, choose with {setting}")
    return ok(f"port {port} is free for {whose}")
