"""Stand-in for the OpenTelemetry collector: takes OTLP over HTTP, writes one JSON document a line."""

import gzip
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

TRACES = Path("/var/lib/otel/traces.jsonl")


class Receiver(BaseHTTPRequestHandler):
    """Appends the name, the trace and the service of each span to ``TRACES``."""

    def do_POST(self) -> None:
        """Take the spans of one request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with TRACES.open("a", encoding="utf-8") as file:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    told = {"name": span.name, "trace": span.trace_id.hex()}
                    file.write(json.dumps(told | {"service": attributes["service.name"]}) + "\n")
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 4318), Receiver).serve_forever()
