"""All settings and limits, as frozen dataclasses. The environment is read here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ConfigError

SAMPLE_RATE = 24_000
"""CSM's own rate in Hz; Mimi knows no other."""

FRAME_SAMPLES = 1_920
"""Samples of one frame (80 ms) at `SAMPLE_RATE`."""

FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE

OUTPUT_RATES = (8_000, 16_000, 24_000, 48_000)
"""Rates in Hz that speech can be asked for."""

DEFAULT_MODEL = "eustlb/csm-1b"
DEFAULT_PORT = 8090


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may cost. Every bound on input from outside stands here."""

    text_chars: int = 2_000
    """Characters of one sentence or turn."""
    speech_chars: int = 4_096
    """Characters of one request that is spoken sentence by sentence."""
    name_chars: int = 64
    """Characters of a speaker's name."""
    speech_seconds_max: float = 600.0
    """The longest utterance that can be asked for."""
    temperature_max: float = 4.0
    top_k_max: int = 65_536
    reference_seconds_min: float = 0.5
    reference_seconds_max: float = 60.0
    reference_bytes: int = 16 * 2**20
    """Bytes of one encoded audio file, before base64."""
    message_bytes: int = 24 * 2**20
    """Bytes of one WebSocket message or HTTP body: a reference in base64 and some room."""
    utterances_per_conversation: int = 64
    """Sentences of one conversation that may wait to be spoken."""
    conversations_per_place: int = 16
    """Open conversations for each slot and each place in the queue; most of them are quiet."""
    key_share: float = 0.75
    """Of the places, and of the conversations, that one key may hold where there are several."""
    open_s: float = 10.0
    """A socket that has not opened a conversation by then is dropped."""
    session_idle_s: float = 3_600.0
    answer_s: float = 60.0
    """A sentence whose turn it is, and that has no sound by then, is given up; clients may ask for
    less with its `deadline`."""
    heartbeat_s: float = 15.0
    """Between pings; half of it without an answer, and the peer is taken for dead."""
    drain_s: float = 30.0
    """What still speaks may finish within this when the server is told to stop."""
    stalled_reader_s: float = 30.0
    """A client that reads nothing for this long is dropped."""
    output_buffer_s: float = 120.0
    """Speech kept for a slow reader; past it the stream ends with an error."""
    output_messages: int = 256
    """Other messages kept for a slow reader; past them nothing more is read from it."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One engine: which model, on what, for how many."""

    model: str = DEFAULT_MODEL
    """Hub id, folder, or `tiny`."""
    revision: str | None = None
    device: str = "auto"
    """`auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:1`."""
    dtype: str = "auto"
    """`auto` (bfloat16 on CUDA, float32 on a CPU), `float32`, `bfloat16`."""
    slots: int = 8
    """Utterances spoken at the same time."""
    queue: int = 16
    """Utterances that may wait for a slot."""
    cuda_graphs: bool = True
    max_context: int | None = None
    """Positions of one conversation; None: as many as the model has."""
    max_lead_s: float = 2.0
    """A live stream is made at most this far ahead of its playing: what a barge-in throws away."""
    threads: int | None = None
    """CPU threads of torch; None: one for a small model, else one a core."""
    eight_bit_depth: bool = False
    """The depth decoder's layers in 8 bits: fewer bytes a frame, slightly other codes."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> EngineConfig:
        default = cls()
        return cls(
            model=_text(env, "CSM_MODEL", DEFAULT_MODEL),
            revision=env.get("CSM_REVISION") or None,
            device=_text(env, "CSM_DEVICE", "auto"),
            dtype=_text(env, "CSM_DTYPE", "auto"),
            slots=_integer(env, "CSM_SLOTS", default.slots, low=1),
            queue=_integer(env, "CSM_QUEUE", default.queue, low=0),
            cuda_graphs=_flag(env, "CSM_CUDA_GRAPHS", True),
        )


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where the engine listens, and who may speak to it."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    key: str | None = field(default=None, repr=False)
    """What clients must show; several keys with commas between them."""
    voices_dir: Path | None = None
    limits: Limits = field(default_factory=Limits)
    restarts: int = 0
    """How often the engine's supervisor has started it again."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that opens it; none: it is open to all who reach it."""
        return split_keys(self.key)

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> ServerConfig:
        voices = env.get("CSM_VOICES_DIR")
        return cls(
            key=env.get("CSM_ENGINE_KEY") or None,
            voices_dir=Path(voices).expanduser() if voices else None,
        )


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """The worker: LiveKit, ears, mind and voice."""

    livekit_url: str | None = None
    livekit_api_key: str | None = field(default=None, repr=False)
    livekit_api_secret: str | None = field(default=None, repr=False)
    agent_name: str = ""
    """Empty: the worker takes every new room; else it waits to be dispatched by this name."""
    stt: str = "offline"
    llm: str = "offline"
    voice_source: str = "caller"
    engine_urls: tuple[str, ...] = ()
    engine_key: str | None = field(default=None, repr=False)
    health: tuple[str, int] = ("127.0.0.1", 8081)
    """Where the worker's health page listens; port 0: any free one."""
    phone_lead_in_s: float = 0.25
    """Silence before the first word of a telephone call, whose media path opens late; 0: none."""
    metrics_port: int = 0
    """Where the worker's Prometheus figures are served, beside the health page; 0: nowhere."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> AgentConfig:
        default = cls()
        urls = env.get("CSM_ENGINE_URL", "")
        return cls(
            livekit_url=env.get("LIVEKIT_URL") or None,
            livekit_api_key=env.get("LIVEKIT_API_KEY") or None,
            livekit_api_secret=env.get("LIVEKIT_API_SECRET") or None,
            agent_name=env.get("AGENT_NAME", ""),
            stt=_text(env, "AGENT_STT", default.stt),
            llm=_text(env, "AGENT_LLM", default.llm),
            voice_source=_text(env, "VOICE_SOURCE", default.voice_source),
            engine_urls=tuple(url.strip() for url in urls.split(",") if url.strip()),
            engine_key=next(iter(split_keys(env.get("CSM_ENGINE_KEY"))), None),
            health=_address(env, "AGENT_HEALTH", default.health),
            metrics_port=_metrics_port(env),
        )


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """Whether spans are exported, by OpenTelemetry's own variables; its library reads the rest."""

    wanted: bool = False
    names_service: bool = False
    endpoint: str = "http://localhost:4318"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> TelemetryConfig:
        """Off unless an OTLP endpoint is named. Raises ConfigError for OTLP over gRPC."""
        otlp = "OTEL_EXPORTER_OTLP_"
        exporter = env.get("OTEL_TRACES_EXPORTER", "").strip().lower()
        named = env.get(f"{otlp}TRACES_ENDPOINT") or env.get(f"{otlp}ENDPOINT")
        wanted = exporter == "otlp" or (exporter == "" and bool(named))
        if not wanted or _flag(env, "OTEL_SDK_DISABLED", False):
            return cls()
        name = f"{otlp}TRACES_PROTOCOL" if env.get(f"{otlp}TRACES_PROTOCOL") else f"{otlp}PROTOCOL"
        if (protocol := _text(env, name, "http/protobuf")) != "http/protobuf":
            raise ConfigError(
                f"{name}={protocol} is not spoken here; take http/protobuf, and the collector's"
                " port for it, mostly 4318."
            )
        attributes = env.get("OTEL_RESOURCE_ATTRIBUTES", "")
        named_service = bool(env.get("OTEL_SERVICE_NAME")) or "service.name=" in attributes
        return cls(True, named_service, named or cls().endpoint)


@dataclass(frozen=True, slots=True)
class HubConfig:
    """Where checkpoints come from, by the hub's own variables; its library reads them itself."""

    endpoint: str = "https://huggingface.co"
    token: str | None = field(default=None, repr=False)
    cache: Path = Path.home() / ".cache/huggingface/hub"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> HubConfig:
        home = env.get("HF_HOME")
        cache = env.get("HF_HUB_CACHE") or (f"{home}/hub" if home else cls().cache)
        endpoint = _text(env, "HF_ENDPOINT", cls().endpoint)
        return cls(endpoint, env.get("HF_TOKEN") or None, Path(cache).expanduser())


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """The endpoint of `openai:<model>`, by the variables that its client reads itself."""

    url: str = "https://api.openai.com/v1"
    key: str | None = field(default=None, repr=False)
    named: bool = False
    """Whether anything of it is set."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> EndpointConfig:
        url, key = env.get("OPENAI_BASE_URL"), env.get("OPENAI_API_KEY") or None
        return cls((url or cls().url).rstrip("/"), key, bool(url or key))


def figures_folder(env: Mapping[str, str] = os.environ) -> Path | None:
    """Where Prometheus' library keeps the figures of several processes, by its own variable."""
    folder = env.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


def split_keys(text: str | None) -> tuple[str, ...]:
    """The keys of `CSM_ENGINE_KEY`: one, or several with commas; a client shows the first."""
    return tuple(key.strip() for key in (text or "").split(",") if key.strip())


def _text(env: Mapping[str, str], name: str, default: str) -> str:
    return env.get(name, "").strip() or default


def _address(env: Mapping[str, str], name: str, default: tuple[str, int]) -> tuple[str, int]:
    raw = env.get(name, "").strip()
    if not raw:
        return default
    host, _, port = raw.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"{name} must be host:port such as 127.0.0.1:8081, got {raw!r}.")
    return host, int(port)


def _metrics_port(env: Mapping[str, str]) -> int:
    port = _integer(env, "AGENT_METRICS_PORT", 0, low=0)
    if port and figures_folder(env) is None:
        raise ConfigError(
            "AGENT_METRICS_PORT needs PROMETHEUS_MULTIPROC_DIR, a folder in which each call's"
            " process leaves its figures; set it in the environment, not in .env."
        )
    return port


def _integer(env: Mapping[str, str], name: str, default: int, *, low: int) -> int:
    raw = env.get(name, "").strip()
    if not raw:
        return default
    try:
        value = int(raw)
    except ValueError:
        raise ConfigError(f"{name} must be a whole number, got {raw!r}.") from None
    if value < low:
        raise ConfigError(f"{name} must be at least {low}, got {value}.")
    return value


def _flag(env: Mapping[str, str], name: str, default: bool) -> bool:
    raw = env.get(name, "").strip().lower()
    if not raw:
        return default
    if raw in {"1", "true", "yes", "on"}:
        return True
    if raw in {"0", "false", "no", "off"}:
        return False
    raise ConfigError(f"{name} must be 1 or 0, got {raw!r}.")
