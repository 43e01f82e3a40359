"""Latency figures of each reply of a call, without any text of the conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .. import telemetry


class TurnFigures:
    """Matches each of the caller's turns with its reply and counts both in telemetry."""

    def __init__(self) -> None:
        self.llm: dict[str, float] = {}
        """Seconds of the current reply that `offline.endings.whole_sentences` measured."""
        self._turn = 0
        self._heard: Mapping[str, Any] | None = None

    def heard(self, metrics: Mapping[str, Any]) -> None:
        """The caller's turn has ended; `metrics`: LiveKit's metrics of its message."""
        self._turn += 1
        self._heard = metrics

    def replied(self, metrics: Mapping[str, Any], *, voice: str, interrupted: bool) -> str | None:
        """Figures of the reply to that turn as JSON, in seconds; None: it answers no turn.

        `metrics`: LiveKit's metrics of the reply's message; `voice`: the name of the reply's voice.
        """
        heard, self._heard = self._heard, None
        if heard is None:
            return None
        said = {**metrics, **self.llm}
        telemetry.turn(heard, said, interrupted=interrupted)
        figures = telemetry.turn_figures(heard, said)
        outcome = {"voice": voice, "interrupted": interrupted}
        return json.dumps({"turn": self._turn, **figures, **outcome})
