"""An OpenAI-compatible endpoint for agents whose LLM is a script."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tests.support.pages import Handler, answering

Answer = Callable[[bytes], bytes | Iterable[bytes] | None]
"""Maps a request's body to the events of the response, complete or in parts that are sent when they
are known; None gives status 500."""
_EVENTS = "text/event-stream"


def event(delta: dict, reason: str | None = None) -> bytes:
    """One chunk of a streamed chat completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "script"}
    return f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode()


def completion(deltas: list[dict], reason: str = "stop") -> bytes:
    """All chunks of a completion, including its end."""
    return b"".join([*map(event, deltas), event({}, reason), b"data: [DONE]\n\n"])


@contextmanager
def endpoint(answer: Answer) -> Iterator[str]:
    """Yields its URL while it runs."""

    class Endpoint(Handler):
        def do_POST(self) -> None:
            told = answer(self.body())
            if told is None or isinstance(told, bytes):
                self.answer(500 if told is None else 200, told or b"", _EVENTS)
            else:
                self.stream(told, _EVENTS)

    with answering(Endpoint) as address:
        yield f"{address}/v1"
