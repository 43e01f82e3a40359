"""An OpenTelemetry collector that keeps what it is sent: OTLP over HTTP, as protobuf."""

from __future__ import annotations

import gzip
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    def __init__(self) -> None:
        self.url = ""
        self.raw = b""
        """All that was received, for tests that look for what must not be there."""
        self._requests: list[ExportTraceServiceRequest] = []

    def take(self, body: bytes) -> None:
        self.raw += body
        self._requests.append(ExportTraceServiceRequest.FromString(body))

    def spans(self, name: str, service: str | None = None) -> list:
        return [
            span
            for request in list(self._requests)
            for resource in request.resource_spans
            if service in (None, *(a.value.string_value for a in resource.resource.attributes))
            for scope in resource.scope_spans
            for span in scope.spans
            if span.name == name
        ]


def attributes(span) -> dict:
    """Name -> value."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def seconds(span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


@contextmanager
def collecting():
    collector = Collector()

    class Take(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
