"""`serve` with the real engine, and a record of its requests and events in order: one JSON array
per line in the file that ENGINE_EVENTS names.

A cancel or a close is recorded after the engine received it: at most the frame that was being
generated then may follow for its utterance.

Texts of the JSON array ENGINE_REHEARSED are generated once. When they are said again, all of that
sound is there at once, so that a machine too busy to generate in real time leaves no gap in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

from csm_tts_plugin.commands import serve
from csm_tts_plugin.commands.options import load_engine
from csm_tts_plugin.engine.api import Audio, Done, Reason

EVENTS, REHEARSED = "ENGINE_EVENTS", "ENGINE_REHEARSED"
REPEATED = "repeated-"
"""Begins the ids of utterances that were generated before."""


class Recorded:
    """A `SpeechEngine` that records its requests and events."""

    def __init__(self, engine, path, rehearsed=()):
        self._engine = engine
        self._rehearsed = {text: [] for text in rehearsed}
        """All events of a text, once it was spoken to its end."""
        self._numbers = itertools.count()
        self._file = open(path, "a", buffering=1)  # noqa: SIM115  open as long as the process runs
        self._lock = threading.Lock()

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def open(self, *args, **more):
        conversation = self._engine.open(*args, **more)
        self._note("open", conversation)
        return conversation

    def say(self, conversation, text, sink, **more):
        events = []

        def noted(event):
            self._note_event(event)
            sink(event)
            events.append(event)
            whole = isinstance(event, Done) and event.reason is Reason.END
            if whole and text in self._rehearsed:
                self._rehearsed[text] = events

        if known := self._rehearsed.get(text):
            return self._repeat(known, conversation, sink)

        with self._lock:  # so that none of its events is recorded before it
            utterance = self._engine.say(conversation, text, noted, **more)
            self._write("say", utterance, conversation)
        return utterance

    def _repeat(self, events, conversation, sink):
        utterance = f"{REPEATED}{next(self._numbers)}"
        with self._lock:
            self._write("say", utterance, conversation)
        for event in events:
            again = replace(event, utterance=utterance)
            self._note_event(again)
            sink(again)
        return utterance

    def cancel(self, utterance):
        self._engine.cancel(utterance)
        self._note("cancel", utterance)

    def close(self, conversation):
        self._engine.close(conversation)
        self._note("close", conversation)

    def _note_event(self, event):
        self._note("audio" if isinstance(event, Audio) else "ended", event.utterance)

    def _note(self, what, of):
        with self._lock:
            self._write(what, of)

    def _write(self, what, of, conversation=None):
        self._file.write(json.dumps([what, of, conversation]) + "\n")


class Events:
    """What such an engine has recorded so far."""

    def __init__(self, path):
        self._path = Path(path)

    def all(self):
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def of(self, what):
        return [of for kind, of, _ in self.all() if kind == what]

    @property
    def free(self):
        """Every conversation is closed and every utterance has ended."""
        ended, closed = set(self.of("ended")), set(self.of("close"))
        return set(self.of("say")) <= ended and set(self.of("open")) <= closed

    def frames_after_the_end_was_asked(self):
        """For each utterance that was cancelled, or whose conversation was closed."""
        home, over, late = {}, set(), {}
        for what, of, conversation in self.all():
            if what == "say":
                home[of] = conversation
            elif what in ("cancel", "close"):
                over.add(of)
            elif what == "audio" and ({of, home[of]} & over):
                late[of] = late.get(of, 0) + 1
        return late


def make_engine(config):
    rehearsed = json.loads(os.environ.get(REHEARSED, "[]"))
    return Recorded(load_engine(config), os.environ[EVENTS], rehearsed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    serve.add(parser)
    sys.exit(serve.run(parser.parse_args(), make_engine))
