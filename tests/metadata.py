"""A real HTTP server that plays the vendors' metadata services, with their documented bodies and faults.

What a test sets is what the service says; what it was asked is kept in `asked`. Each vendor has its own paths, so one server
plays all.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

AWS_ACTION = "/latest/meta-data/spot/instance-action"
AWS_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
AWS_MAINTENANCE = "/latest/meta-data/events/maintenance/scheduled"
AWS_LIFECYCLE = "/latest/meta-data/autoscaling/target-lifecycle-state"
AWS_TOKEN = "/latest/api/token"
GCP_PREEMPTED = "/computeMetadata/v1/instance/preempted"
GCP_MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"
AZURE_EVENTS = "/metadata/scheduledevents"
AZURE_NAME = "/metadata/instance/compute/name"


class MetadataService:
    """What the services say, by path.

    Attributes:
        url: of the server.
        values: path -> body; a path that is not in it answers 404.
        faults: path -> status that it answers instead.
        slow: path -> event that is waited for before the answer.
        asked: (method, path, query) of each request, in order.
        acknowledged: event ids that were sent to Azure.
        tokens: those that AWS accepts; clear it to expire them.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.values: dict[str, str] = {}
        self.faults: dict[str, int] = {}
        self.slow: dict[str, threading.Event] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.acknowledged: list[str] = []
        self.tokens: set[str] = set()
        self.token_ttl_s = 21600
        self.google_flavor = True
        self.closing = False
        self.changed = threading.Condition()

    def say(self, path: str, body: object) -> None:
        """From now on `path` answers `body`: text, or what becomes JSON. None: 404."""
        with self.changed:
            if body is None:
                self.values.pop(path, None)
            else:
                self.values[path] = body if isinstance(body, str) else json.dumps(body)
            self.changed.notify_all()

    def times_asked(self, path: str) -> int:
        return sum(asked == path for _, asked, _ in list(self.asked))

    def etag(self, path: str) -> str:
        return self.values.get(path, "").encode().hex()[:16] or "0"


def azure_event(
    kind: str, not_before: str, *, id: str = "C7061BAC-AFDC-4513-B24B-AA5F13A16123", vm: str = "vm0"
):  # noqa: A002
    """One event as Azure documents it."""
    return {
        "EventId": id,
        "EventStatus": "Scheduled" if not_before else "Started",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": [vm],
        "NotBefore": not_before,
        "Description": "Virtual machine is being paused because of a memory-preserving Live Migration operation.",
        "EventSource": "Platform",
        "DurationInSeconds": 5,
    }


def azure_events(*events: object) -> dict:
    return {"DocumentIncarnation": 1, "Events": list(events)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: MetadataService

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_PUT(self) -> None:
        self._body()
        path, _ = self._note()
        if path != AWS_TOKEN or self._fault(path):
            return None if path == AWS_TOKEN else self._send(404)
        if "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
            return self._send(400)
        token = f"AQAEA-{len(self.service.asked)}=="
        self.service.tokens.add(token)
        return self._send(200, token, {"X-aws-ec2-metadata-token-ttl-seconds": str(self.service.token_ttl_s)})

    def do_POST(self) -> None:
        body = self._body()
        path, _ = self._note()
        if self._fault(path):
            return None
        if path != AZURE_EVENTS or self.headers.get("Metadata") != "true":
            return self._send(400)
        ids = [event["EventId"] for event in json.loads(body)["StartRequests"]]
        self.service.acknowledged += ids
        return self._send(200, "{}")

    def do_GET(self) -> None:
        path, query = self._note()
        if self._fault(path):
            return None
        if path.startswith("/computeMetadata/"):
            return self._google(path, query)
        if path.startswith("/metadata/") and self.headers.get("Metadata") != "true":
            return self._send(400, '{ "error": "Bad request. Required metadata header not specified" }')
        if (
            path.startswith("/latest/")
            and self.headers.get("X-aws-ec2-metadata-token") not in self.service.tokens
        ):
            return self._send(401)
        body = self.service.values.get(path)
        return self._send(404) if body is None else self._send(200, body)

    def _google(self, path: str, query: dict[str, str]) -> None:
        if self.headers.get("Metadata-Flavor") != "Google":
            return self._send(403)
        service = self.service
        if query.get("wait_for_change") == "true":
            last = query.get("last_etag")
            with service.changed:
                service.changed.wait_for(
                    lambda: service.closing or service.etag(path) != last or path in service.faults,
                    float(query["timeout_sec"]),
                )
            if self._fault(path):
                return None
        headers = {"ETag": service.etag(path)}
        if service.google_flavor:
            headers["Metadata-Flavor"] = "Google"
        body = service.values.get(path)
        return self._send(404, "", headers) if body is None else self._send(200, body, headers)

    def _note(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.service.asked.append((self.command, parts.path, query))
        return parts.path, query

    def _fault(self, path: str) -> bool:
        held = self.service.slow.get(path)
        if held is not None:
            held.wait(60)
        status = self.service.faults.get(path)
        if status is not None:
            is_google = path.startswith("/computeMetadata/")
            self._send(status, "", {"Metadata-Flavor": "Google"} if is_google else None)
        return status is not None

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, body: str = "", headers: dict[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the one who asked did not wait


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no fault of the service."""


@contextmanager
def metadata_service():
    """Serve on a port of this machine until the block ends."""
    server = _Server(("127.0.0.1", 0), _Handler)
    service = MetadataService(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("Handler", (_Handler,), {"service": service})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        with service.changed:
            service.closing = True
            service.changed.notify_all()
        for held in service.slow.values():
            held.set()
        server.shutdown()
        server.server_close()
        thread.join()
