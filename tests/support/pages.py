"""A small HTTP server in a thread that stands in for an external service."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Its requests are not logged."""

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, body: bytes = b"", kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, parts: Iterable[bytes], kind: str) -> None:
        """Sends each part when it is known, to the end or until the client leaves."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        with suppress(ConnectionError):
            for part in parts:
                self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(handler: type[Handler]) -> Iterator[str]:
    """Yields its URL, without a slash at the end, while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
