"""Metrics in Prometheus' format. Labels hold codes and reasons, never names of callers or voices.

`docs/operations.md` lists the metrics; dashboards and alerts use these names.
"""

from __future__ import annotations

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from .. import telemetry
from ..config import FRAME_SECONDS
from ..engine.api import Done, EngineInfo, EngineStatus, Reason
from ..errors import CODES
from ..version import __version__

_FIRST_AUDIO = (0.01, 0.025, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.0, 10.0)
_FRAME_GAP = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.16, 0.32, 0.64, 0.72, 0.96, 1.28, 2.56)
_QUEUED = (0.001, 0.01, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_GAUGES = {
    "slots": ("slots", "Utterances that can be spoken at the same time"),
    "speaking": ("speaking", "Slots taken"),
    "queue_places": ("queue", "Conversations that may wait for a slot"),
    "queued": ("queued", "Conversations waiting for a slot"),
    "conversations": ("conversations", "Conversations open"),
    "context_positions": ("context_used", "Positions that all open conversations hold"),
    "context_fullest_ratio": ("context_fullest", "How full the fullest conversation is, 0 to 1"),
    "voices_cached": ("voices", "Cached reference voices"),
}
"""Metric without its prefix -> field of EngineStatus, help."""


class Metrics:
    """The metrics of one server, in a separate registry.

    `restarts`: how often a supervisor has restarted this engine.
    """

    def __init__(self, restarts: int = 0) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.first_audio = _histogram(
            registry, "first_audio", "From a sentence accepted to its first sound", _FIRST_AUDIO
        )
        self.frame_gap = _histogram(
            registry,
            "frame_gap",
            "Between one frame of an utterance's sound and the next; 0 within a chunk of the codec",
            _FRAME_GAP,
        )
        self.queue = _histogram(registry, "queue", "From a sentence accepted to its slot", _QUEUED)
        self.audio = Counter("csm_audio_seconds", "Speech made, in seconds", registry=registry)
        self.utterances = Counter(
            "csm_utterances", "Utterances ended, by reason", ["reason"], registry=registry
        )
        self.cancels = Counter("csm_cancels", "Utterances cancelled by a client", registry=registry)
        self.resumed = Counter(
            "csm_resumed", "Conversations that went on over another connection", registry=registry
        )
        self.errors = Counter(
            "csm_errors", "Errors told to clients, by code", ["code"], registry=registry
        )
        for reason in Reason:  # a rate needs the zero before the first event
            self.utterances.labels(str(reason))
        for code in CODES:
            self.errors.labels(code)
        Counter(
            "csm_engine_restarts", "Starts of this engine after its falls", registry=registry
        ).inc(restarts)
        self._info = Gauge(
            "csm_info",
            "1, with what runs",
            ["version", "model", "device", "dtype", "adapter", "watermark"],
            registry=registry,
        )
        self._ready = Gauge("csm_ready", "1 when it takes calls", registry=registry)
        self._draining = Gauge("csm_draining", "1 while it finishes its last", registry=registry)
        self._clients = Gauge("csm_clients", "Connections that speak or may", registry=registry)
        self._gauges = {
            field: Gauge(f"csm_{name}", help, registry=registry)
            for name, (field, help) in _GAUGES.items()
        }

    def heard(self, began: float | None, before: float | None) -> float:
        """Note that audio of an utterance is sent; returns the time.

        `began`: when the utterance was asked for; None if it waited for an earlier one of its reply
        and its first audio is no figure of the engine. `before`: when its last audio was sent.
        """
        now = time.monotonic()
        self.audio.inc(FRAME_SECONDS)
        if before is not None:
            self.frame_gap.observe(now - before)
        elif began is not None:
            self.first_audio.observe(now - began)
        return now

    def ended(self, done: Done, *, first: bool, parent: str | None = None) -> None:
        """Note that an utterance has ended for any reason. `first`: it was the first of its reply.
        `parent`: the client's trace span.
        """
        self.utterances.labels(str(done.reason)).inc()
        telemetry.utterance(
            parent=parent,
            reason=str(done.reason),
            frames=done.frames,
            queued=done.timings.queued,
            prefill=done.timings.prefill,
            first_audio=done.timings.first_audio,
            total=done.timings.total,
        )
        if first:
            self.queue.observe(done.timings.queued)

    def render(
        self, status: EngineStatus, info: EngineInfo | None, *, clients: int, draining: bool
    ) -> bytes:
        """The text of `/metrics`."""
        self._ready.set(status.ready and not draining)
        self._draining.set(draining)
        self._clients.set(clients)
        if info is not None:
            what = (info.model, info.device, info.dtype, info.adapter or "", info.watermark)
            self._info.labels(__version__, *what).set(1)
        for field, gauge in self._gauges.items():
            gauge.set(getattr(status, field))
        return generate_latest(self.registry)


def _histogram(
    registry: CollectorRegistry, name: str, help: str, buckets: tuple[float, ...]
) -> Histogram:
    return Histogram(f"csm_{name}_seconds", help, buckets=buckets, registry=registry)
