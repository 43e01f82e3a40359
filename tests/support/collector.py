"""An OpenTelemetry collector that keeps what it receives: OTLP over HTTP, as protobuf."""

from __future__ import annotations

import gzip
from contextlib import contextmanager

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.pages import Handler, answering


class Collector:
    def __init__(self) -> None:
        self.url = ""
        self.raw = b""
        """All received bytes, for tests of what must not be sent."""
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

    class Take(Handler):
        def do_POST(self):
            body = self.body()
            zipped = self.headers.get("Content-Encoding") == "gzip"
            collector.take(gzip.decompress(body) if zipped else body)
            self.answer(200, kind="application/x-protobuf")

    with answering(Take) as collector.url:
        yield collector
