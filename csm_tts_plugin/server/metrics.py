"""Figures for operators in Prometheus' format. Labels hold codes and reasons, never names."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..engine.api import EngineStatus

_FIRST_AUDIO = (0.01, 0.025, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.0, 10.0)
_FRAME_GAP = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.16, 0.32, 0.64, 1.28, 2.56)


class Metrics:
    """One server's figures, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.first_audio = Histogram(
            "csm_first_audio_seconds",
            "From a sentence accepted to its first sound",
            buckets=_FIRST_AUDIO,
            registry=registry,
        )
        self.frame_gap = Histogram(
            "csm_frame_gap_seconds",
            "Between one piece of an utterance's sound and the next",
            buckets=_FRAME_GAP,
            registry=registry,
        )
        self.utterances = Counter(
            "csm_utterances", "Utterances ended, by reason", ["reason"], registry=registry
        )
        self.cancels = Counter("csm_cancels", "Utterances cancelled by a client", registry=registry)
        self.errors = Counter(
            "csm_errors", "Errors told to clients, by code", ["code"], registry=registry
        )
        self._ready = Gauge("csm_ready", "1 when the model can speak", registry=registry)
        self._gauges = {
            name: Gauge(f"csm_{name}", help, registry=registry)
            for name, help in (
                ("slots", "Utterances that can be spoken at the same time"),
                ("speaking", "Utterances being spoken"),
                ("queued", "Utterances waiting for a slot"),
                ("conversations", "Conversations open"),
            )
        }

    def heard(self, began: float, before: float | None) -> float:
        """Sound of an utterance said at `began` leaves, the last left at `before`; the moment."""
        now = time.monotonic()
        if before is None:
            self.first_audio.observe(now - began)
        else:
            self.frame_gap.observe(now - before)
        return now

    def render(self, status: EngineStatus) -> bytes:
        """The text of `/metrics`."""
        self._ready.set(status.ready)
        for name, gauge in self._gauges.items():
            gauge.set(getattr(status, name))
        return generate_latest(self._registry)
