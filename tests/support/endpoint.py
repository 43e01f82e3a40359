"""An OpenAI-compatible address of ours, for agents whose LLM is a script."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[bytes], bytes | None]
"""A request's body to the events of its answer; None is answered with status 500."""


def event(delta: dict, reason: str | None = None) -> bytes:
    """One chunk of a streamed chat completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "script"}
    return f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode()


def completion(deltas: list[dict], reason: str = "stop") -> bytes:
    """All chunks of one, with its end."""
    return b"".join([*map(event, deltas), event({}, reason), b"data: [DONE]\n\n"])


@contextmanager
def endpoint(answer: Answer) -> Iterator[str]:
    """Its address, while it answers."""

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(500 if body is None else 200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
