"""All settings and limits, as frozen dataclasses. The environment is only read in this module."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ConfigError

SAMPLE_RATE = 24_000
"""CSM's sample rate in Hz, the only one of the codec Mimi."""

FRAME_SAMPLES = 1_920
"""Samples of one frame (80 ms) at `SAMPLE_RATE`."""

FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE

OUTPUT_RATES = (8_000, 16_000, 24_000, 48_000)
"""Sample rates in Hz in which speech can be requested."""

WATERMARKS = ("perth", "off")
"""Kinds of watermark."""

WATERMARK_LEAD_S = 0.4
"""Seconds of lead from which a live stream may be held back for the watermark: five frames."""

DEFAULT_MODEL = "eustlb/csm-1b"
DEFAULT_PORT = 8090


def cache_folder(env: Mapping[str, str] = os.environ) -> Path:
    """The user's folder for files that can be rebuilt. Raises RuntimeError if there is no home."""
    return Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "csm_tts_plugin"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for requests: all bounds on external input."""

    text_chars: int = 2_000
    """The most characters of one sentence or turn."""
    speech_chars: int = 4_096
    """The most characters of a request that is spoken sentence by sentence."""
    name_chars: int = 64
    """The most characters of a speaker's name."""
    speech_seconds_max: float = 600.0
    """The longest utterance that can be requested."""
    temperature_max: float = 4.0
    top_k_max: int = 65_536
    reference_seconds_min: float = 0.5
    reference_seconds_max: float = 60.0
    reference_bytes: int = 16 * 2**20
    """The most bytes of one encoded audio file, before base64."""
    detect_seconds_max: float = 600.0
    """The longest recording for watermark detection."""
    detections: int = 4
    """The most detections that may run or wait; they run one after the other."""
    message_bytes: int = 24 * 2**20
    """The most bytes of a WebSocket message or HTTP body: a reference in base64 and some room."""
    utterances_per_conversation: int = 64
    """The most sentences of one conversation that may wait to be spoken."""
    conversations_per_place: int = 16
    """The most open conversations for each slot and each place in the queue; most are silent."""
    key_share: float = 0.75
    """The share of places and of conversations that one of several keys may use."""
    open_s: float = 10.0
    """A socket without an open conversation is closed after this time."""
    session_idle_s: float = 3_600.0
    answer_s: float = 60.0
    """A sentence that is next to speak and has no audio after this time is given up. Clients may
    ask for less with its `deadline`."""
    heartbeat_s: float = 15.0
    """Time between pings; if there is no answer within half of it the connection is lost."""
    keep_s: float = 10.0
    """How long a conversation survives a lost socket if the client asked for it, and how long sent
    messages are kept to be sent again."""
    drain_s: float = 30.0
    """Time for utterances to finish when the server is told to stop."""
    stalled_reader_s: float = 30.0
    """A client that reads nothing for this time is disconnected."""
    output_buffer_s: float = 120.0
    """The most speech buffered for a slow client; beyond it the stream ends with an error."""
    output_messages: int = 256
    """The most other messages buffered for a slow client; beyond it nothing is read from it."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of an engine: model, device, capacity."""

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
    """Conversations that may wait for a slot."""
    cuda_graphs: bool = True
    max_context: int | None = None
    """Positions of one conversation; None: as many as the model has."""
    max_lead_s: float = 2.0
    """The most lead of a live stream over playback, which a barge-in discards."""
    threads: int | None = None
    """CPU threads of torch; None: one for a small model, otherwise one per core."""
    adapter: str | None = None
    """A LoRA adapter, merged into the model: a folder or a hub id."""
    watermark: str = "perth"
    """`perth`: the engine's speech is watermarked; `off`: it is not."""
    kernels: bool = True
    """Use our own kernels if they are correct and faster at start-up; else PyTorch's."""
    eight_bit_depth: bool = False
    """The depth decoder's layers in 8 bits: fewer bytes per frame, slightly different codes."""
    whole_context: bool = False
    """Ignore the limits of context in the model's folder (`csm_context`)."""
    devices: tuple[str, ...] = ()
    """For `serve`: one engine on each device, behind one port; `("all",)`: on every card."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> EngineConfig:
        default = cls()
        return cls(
            model=_text(env, "CSM_MODEL", DEFAULT_MODEL),
            revision=env.get("CSM_REVISION") or None,
            device=_text(env, "CSM_DEVICE", "auto"),
            devices=split_devices(env.get("CSM_DEVICES"), "CSM_DEVICES"),
            dtype=_text(env, "CSM_DTYPE", "auto"),
            slots=_integer(env, "CSM_SLOTS", default.slots, low=1),
            queue=_integer(env, "CSM_QUEUE", default.queue, low=0),
            cuda_graphs=_flag(env, "CSM_CUDA_GRAPHS", True),
            kernels=_flag(env, "CSM_KERNELS", True),
            adapter=env.get("CSM_ADAPTER", "").strip() or None,
            watermark=_watermark(env),
            whole_context=_flag(env, "CSM_WHOLE_CONTEXT", False),
        )


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of the server: its address, and who may use it."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    key: str | None = field(default=None, repr=False)
    """The key that clients must send; several keys separated by commas."""
    voices_dir: Path | None = None
    limits: Limits = field(default_factory=Limits)
    allowed_origins: tuple[str, ...] = ()
    """Web pages that may use it, as `https://page.example`; `*` only with a key."""
    restarts: int = 0
    """How often the supervisor has restarted the engine."""

    @property
    def keys(self) -> tuple[str, ...]:
        """All valid keys; empty: no key is needed."""
        return split_keys(self.key)

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> ServerConfig:
        voices = env.get("CSM_VOICES_DIR")
        return cls(
            key=env.get("CSM_ENGINE_KEY") or None,
            voices_dir=Path(voices).expanduser() if voices else None,
            allowed_origins=tuple(
                origin.rstrip("/") for origin in split_keys(env.get("CSM_ALLOWED_ORIGINS"))
            ),
        )


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Settings of the worker: LiveKit, speech-to-text, LLM and voice."""

    livekit_url: str | None = None
    livekit_api_key: str | None = field(default=None, repr=False)
    livekit_api_secret: str | None = field(default=None, repr=False)
    agent_name: str = ""
    """Empty: the worker joins every new room; otherwise it is dispatched by this name."""
    stt: str = "offline"
    llm: str = "offline"
    instructions: str = (
        "You are a friendly voice on the phone. Answer in one or two short sentences."
    )
    """The LLM's."""
    greeting: str = "Hello, nice to hear from you. What is on your mind?"
    """What the agent says first."""
    voice_source: str = "caller"
    engine_urls: tuple[str, ...] = ()
    engine_key: str | None = field(default=None, repr=False)
    health: tuple[str, int] = ("127.0.0.1", 8081)
    """Where the worker's health page listens; port 0: any free one."""
    phone_lead_in_s: float = 0.25
    """Silence before the first word of a telephone call, whose media path opens late; 0: none."""
    metrics_port: int = 0
    """Port of the worker's Prometheus metrics, on the health page's host; 0: none."""

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
            instructions=_text(env, "AGENT_INSTRUCTIONS", default.instructions),
            greeting=_text(env, "AGENT_GREETING", default.greeting),
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
    """The source of checkpoints: the hub's own variables, which its library reads too."""

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
    """The endpoint of `openai:<model>`: the variables that OpenAI's client reads too."""

    url: str = "https://api.openai.com/v1"
    key: str | None = field(default=None, repr=False)
    named: bool = False
    """Whether one of its variables is set."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> EndpointConfig:
        url, key = env.get("OPENAI_BASE_URL"), env.get("OPENAI_API_KEY") or None
        return cls((url or cls().url).rstrip("/"), key, bool(url or key))


def load_env_file(path: str | Path) -> None:
    """Set the variables of a `.env` in the environment, except those that are set already.

    Raises ConfigError for a file that is not UTF-8 or cannot be read. The file may be missing.
    """
    from dotenv import load_dotenv

    file = Path(path)
    if not str(path) or not file.exists():
        return
    try:
        with file.open(encoding="utf-8-sig") as stream:
            if "\0" in stream.read():
                raise UnicodeError
            stream.seek(0)
            load_dotenv(stream=stream)
    except UnicodeError:
        raise ConfigError(
            f"{file.name} is not UTF-8, perhaps Latin-1 or UTF-16: save it again as UTF-8."
        ) from None
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise ConfigError(f"{file.name} cannot be read ({cause}); check what it is.") from None


def figures_folder(env: Mapping[str, str] = os.environ) -> Path | None:
    """The folder in which Prometheus' library keeps the metrics of several processes."""
    folder = env.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


def split_devices(text: str | None, name: str) -> tuple[str, ...]:
    """`cuda:0,cuda:1`, or `all`; none where the setting `name` is not set. Raises ConfigError."""
    if not (text or "").strip():
        return ()
    found = tuple(part.strip() for part in (text or "").split(","))
    if not all(found) or ("all" in found and len(found) > 1):
        raise ConfigError(
            f"{name} is a list such as cuda:0,cuda:1, with a device before and after each comma, or"
            " the word all."
        )
    return found


def split_keys(text: str | None) -> tuple[str, ...]:
    """The keys in `CSM_ENGINE_KEY`, separated by commas; a client uses the first."""
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


def _watermark(env: Mapping[str, str]) -> str:
    value = _text(env, "CSM_WATERMARK", "perth").lower()
    if value not in WATERMARKS:
        raise ConfigError(f"CSM_WATERMARK must be one of {', '.join(WATERMARKS)}, got {value!r}.")
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
