"""A real HTTP server that plays the vendors' metadata services, with their documented bodies and faults.

What it is told is what the service says; what it was asked is kept in `asked`. It listens on 127.0.0.1 only. Bodies are those of
the vendors' documentation; only times and ids differ.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, get_args
from urllib.parse import parse_qs, urlsplit

Cloud = Literal["aws", "gcp", "azure", "alibaba", "tencent"]
Fault = Literal["404", "500", "slow", "token-expired", "cancelled", "sibling", "repeated", "moved-earlier"]
"""404, 500, slow: the next answers of the notice's path. token-expired: every token handed out is refused. sibling: another
machine's event stands beside (Azure). The others happen to the next notice, once it was answered: it is taken back, said again in
other bytes, or said first with a later deadline than the true one."""

AWS_ACTION = "/latest/meta-data/spot/instance-action"
AWS_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
AWS_MAINTENANCE = "/latest/meta-data/events/maintenance/scheduled"
AWS_LIFECYCLE = "/latest/meta-data/autoscaling/target-lifecycle-state"
TOKEN = "/latest/api/token"  # noqa: S105 - a path
GCP_PREEMPTED = "/computeMetadata/v1/instance/preempted"
GCP_MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"
AZURE_EVENTS = "/metadata/scheduledevents"
AZURE_NAME = "/metadata/instance/compute/name"
ALIBABA_TERMINATION = "/latest/meta-data/instance/spot/termination-time"
TENCENT_TERMINATION = "/latest/meta-data/spot/termination-time"

NOTICE: dict[Cloud, str] = {
    "aws": AWS_ACTION,
    "gcp": GCP_PREEMPTED,
    "azure": AZURE_EVENTS,
    "alibaba": ALIBABA_TERMINATION,
    "tencent": TENCENT_TERMINATION,
}
"""The path that each cloud announces the end at."""
ADDRESS: dict[Cloud, str] = {
    "aws": "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "gcp": "GCE_METADATA_HOST",
    "azure": "OUTLAST_AZURE_METADATA",
    "alibaba": "OUTLAST_ALIBABA_METADATA",
    "tencent": "OUTLAST_TENCENT_METADATA",
}
"""The variable that says where a cloud's service is."""
TOKEN_HEADER: dict[Cloud, str] = {"aws": "X-aws-ec2-metadata-token", "alibaba": "X-aliyun-ecs-metadata-token"}
"""Of the clouds that hand out tokens."""
FAULTS: dict[Fault, tuple[Cloud, ...]] = {
    **dict.fromkeys(get_args(Fault), get_args(Cloud)),
    "token-expired": tuple(TOKEN_HEADER),
    "sibling": ("azure",),
    "moved-earlier": ("aws", "azure", "alibaba", "tencent"),  # Google names no deadline
}
"""The clouds that each fault is one of."""
FAULTY_ANSWERS = 2
"""So many answers a fault of a path lasts."""
SLOW_S = 1.5
"""Near the 2 s after which nobody waits any longer."""
MOVED_S = 60.0
"""By so much a deadline is moved."""
TENCENT_ZONE = timezone(timedelta(hours=8))
VM = "vm0"
EVENT_ID = "C7061BAC-AFDC-4513-B24B-AA5F13A16123"


class MetadataService:
    """What the services say, by path.

    Attributes:
        url: of the server.
        vendor: whose `/latest/` this is; the paths of Google and Azure are always theirs.
        values: path -> body; a path that is not in it answers 404.
        faults: path -> status that it answers instead.
        slow: path -> event that is waited for before the answer.
        passing: path -> faults of the next answers, one each: a status, or seconds to wait.
        then: path -> bodies that follow, one after each answer; None is 404.
        asked: (method, path, query) of each request, in order.
        acknowledged: event ids that were sent to Azure.
        tokens: those that are accepted; clear it to expire them.
        armed: faults that happen to the next notice.
    """

    def __init__(self, url: str, vendor: Cloud) -> None:
        self.url = url
        self.vendor: Cloud = vendor
        self.values: dict[str, str] = {}
        self.faults: dict[str, int] = {}
        self.slow: dict[str, threading.Event] = {}
        self.passing: dict[str, list[int | float]] = {}
        self.then: dict[str, list[str | None]] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.acknowledged: list[str] = []
        self.tokens: set[str] = set()
        self.token_ttl_s = 21600
        self.needs_token = vendor in TOKEN_HEADER
        self.google_flavor = True
        self.armed: set[Fault] = set()
        self.sibling: dict[str, Any] | None = None
        self.closing = threading.Event()
        self.changed = threading.Condition()

    def say(self, path: str, body: object, then: list[str | None] | None = None) -> None:
        """From now on `path` answers `body`: text, or what becomes JSON. None: 404."""
        with self.changed:
            self.then[path] = then or []
            if body is None:
                self.values.pop(path, None)
            else:
                self.values[path] = body if isinstance(body, str) else json.dumps(body)
            self.changed.notify_all()

    def times_asked(self, path: str) -> int:
        """How often a path was asked."""
        return sum(asked == path for _, asked, _ in list(self.asked))

    def etag(self, path: str) -> str:
        """Of what a path says: other for every other body."""
        return self.values.get(path, "").encode().hex()[:16] or "0"

    def answered(self, path: str, body: str) -> None:
        """`path` has answered `body`: what is to follow is said from now on."""
        with self.changed:
            if self.then.get(path) and self.values.get(path) == body:
                following, *rest = self.then[path]
                self.say(path, following, rest)


def announce(service: MetadataService, cloud: Cloud, deadline_utc: datetime) -> None:
    """Have `cloud` say that this machine goes at `deadline_utc` (to the second before it), with the faults that are armed.

    Google names no deadline: there it is 30 s from now, whatever is given.
    """
    body, then = _announcement(service, cloud, deadline_utc), list[str | None]()
    if "moved-earlier" in service.armed:
        body, then = _announcement(service, cloud, deadline_utc + timedelta(seconds=MOVED_S)), [body]
    if "repeated" in service.armed:
        then.append(f"{_announcement(service, cloud, deadline_utc)}\n")
    if "cancelled" in service.armed:
        then.append(_nothing(service, cloud))
    service.armed.clear()
    service.say(NOTICE[cloud], body, then)


def cancel(service: MetadataService, cloud: Cloud) -> None:
    """Have `cloud` say that nothing is announced, or nothing any more."""
    service.say(NOTICE[cloud], _nothing(service, cloud))


def arm(service: MetadataService, cloud: Cloud, fault: Fault) -> None:
    """Have a fault happen, now or to the next notice: see `Fault`.

    Raises:
        ValueError: the fault is none of this cloud's.
    """
    if cloud not in FAULTS[fault]:
        msg = f"{fault} is no fault of {cloud}; expected one of {', '.join(f for f, clouds in FAULTS.items() if cloud in clouds)}"
        raise ValueError(msg)
    if fault in ("404", "500", "slow"):
        one = SLOW_S if fault == "slow" else int(fault)
        service.passing.setdefault(NOTICE[cloud], []).extend([one] * FAULTY_ANSWERS)
    elif fault == "token-expired":
        service.tokens.clear()
    elif fault == "sibling":
        soon = datetime.now(UTC) + timedelta(seconds=5)
        service.sibling = azure_event(
            "Preempt", azure_time(soon), id="F020BA2E-3BC0-4C40-A10B-86575A9EABD5", vm="vm1"
        )
        cancel(service, cloud)
    else:
        service.armed.add(fault)


def environment(service: MetadataService, cloud: Cloud) -> dict[str, str]:
    """The variables that make Outlast ask this server, and no other cloud."""
    return {"OUTLAST_NOTICE": cloud, ADDRESS[cloud]: service.url}


def azure_event(kind: str, not_before: str, *, id: str = EVENT_ID, vm: str = VM) -> dict[str, Any]:  # noqa: A002
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


def azure_events(*events: object) -> dict[str, Any]:
    """All events that Azure has scheduled."""
    return {"DocumentIncarnation": 1, "Events": list(events)}


def azure_time(at: datetime) -> str:
    """A time as Azure writes it."""
    return f"{at.astimezone(UTC):%a, %d %b %Y %H:%M:%S} GMT"


def _announcement(service: MetadataService, cloud: Cloud, at: datetime) -> str:
    if cloud == "gcp":
        return "TRUE"
    if cloud == "tencent":
        return f"{at.astimezone(TENCENT_ZONE):%Y-%m-%d %H:%M:%S}"
    if cloud == "azure":
        siblings = [service.sibling] if service.sibling else []
        return json.dumps(azure_events(*siblings, azure_event("Preempt", azure_time(at))))
    utc = f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return utc if cloud == "alibaba" else json.dumps({"action": "terminate", "time": utc})


def _nothing(service: MetadataService, cloud: Cloud) -> str | None:
    if cloud == "gcp":
        return "FALSE"
    if cloud == "azure":
        return json.dumps(azure_events(*([service.sibling] if service.sibling else [])))
    return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: MetadataService

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Quiet."""

    def do_PUT(self) -> None:
        self._body()
        path, _ = self._note()
        header = TOKEN_HEADER.get(self.service.vendor)
        if path != TOKEN or header is None:
            return self._send(404)
        if self._fault(path):
            return None
        ttl = f"{header}-ttl-seconds"
        if ttl not in self.headers:
            return self._send(400)
        token = f"AQAEA-{len(self.service.asked)}=="
        self.service.tokens.add(token)
        return self._send(200, token, {ttl: str(self.service.token_ttl_s)})

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
        if path.startswith("/computeMetadata/"):
            return None if self._fault(path) else self._google(path, query)
        if path.startswith("/metadata/") and self.headers.get("Metadata") != "true":
            return self._send(400, '{ "error": "Bad request. Required metadata header not specified" }')
        if path.startswith("/latest/") and self.service.needs_token:
            token = self.headers.get(TOKEN_HEADER[self.service.vendor])
            if token not in self.service.tokens:
                return self._send(401)
        return None if self._fault(path) else self._value(path)

    def _google(self, path: str, query: dict[str, str]) -> None:
        if self.headers.get("Metadata-Flavor") != "Google":
            return self._send(403)
        service = self.service
        if query.get("wait_for_change") == "true":
            last = query.get("last_etag")
            with service.changed:
                service.changed.wait_for(
                    lambda: service.closing.is_set() or service.etag(path) != last or path in service.faults,
                    float(query["timeout_sec"]),
                )
            if self._fault(path):
                return None
        headers = {"ETag": service.etag(path)}
        if service.google_flavor:
            headers["Metadata-Flavor"] = "Google"
        return self._value(path, headers)

    def _value(self, path: str, headers: dict[str, str] | None = None) -> None:
        body = self.service.values.get(path)
        if body is None:
            return self._send(404, "", headers)
        self._send(200, body, headers)
        return self.service.answered(path, body)

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
        with self.service.changed:
            passing = self.service.passing.get(path)
            one = passing.pop(0) if passing else None
        if isinstance(one, float):
            self.service.closing.wait(one)
        status = one if isinstance(one, int) else status
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

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no fault of the service."""


@contextmanager
def metadata_service(vendor: Cloud = "aws") -> Iterator[MetadataService]:
    """Serve on a port of this machine, in threads of this process, until the block ends; nothing is announced at first."""
    server = _Server(("127.0.0.1", 0), _Handler)
    service = MetadataService(f"http://127.0.0.1:{server.server_port}", vendor)
    service.say(GCP_PREEMPTED, "FALSE")
    service.say(GCP_MAINTENANCE, "NONE")
    service.say(AZURE_NAME, VM)
    service.say(AZURE_EVENTS, azure_events())
    server.RequestHandlerClass = type("Handler", (_Handler,), {"service": service})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        with service.changed:
            service.closing.set()
            service.changed.notify_all()
        for held in service.slow.values():
            held.set()
        server.shutdown()
        server.server_close()
        thread.join()
