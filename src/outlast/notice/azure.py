"""Azure: Scheduled Events tell of evictions, reboots and freezes of this machine, and take back what is cancelled.

An eviction comes at least 30 s ahead. An event is acknowledged (`StartRequests`) once what it was for is done. Bodies: Azure's
documentation, "Scheduled Events for Linux VMs".
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from outlast._types import settle
from outlast.notice.aws import checked, parse_date
from outlast.notice.base import Kind, Polled
from outlast.notice.threaded import Found, NotHere, Standing, one_by_one
from outlast.notice.transport import TIMEOUT_S, Response, Transport

EVENTS_PATH = "/metadata/scheduledevents?api-version=2020-07-01"
NAME_PATH = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
WARM_UP_S = 130.0
"""The first question of a machine switches the service on, which takes up to 2 minutes."""
FREEZE_CONFIDENCE = 0.3
"""A freeze is a pause of seconds; the machine stays."""
_HEADERS = {"Metadata": "true"}


class AzureMetadata:
    """Asks for the scheduled events twice a second (Azure allows five requests), and heeds those that name this machine."""

    name = "Azure"
    pause_s = 0.5

    def __init__(self, transport: Transport, *, is_azure: bool) -> None:
        self._transport = transport
        self._is_azure = is_azure
        self._machine: str | None = None
        self._is_warm = False
        self._standing = Standing()
        self._last: dict[str, Found] = {}

    def look(self, now_s: float, now_utc: datetime) -> Polled:
        """Ask for the events, and first of all for this machine's name."""
        if self._machine is None:
            self._machine = self._own_name()
        answer = self._get(EVENTS_PATH, TIMEOUT_S if self._is_warm else WARM_UP_S)
        self._is_warm = True
        try:
            events = msgspec.json.decode(answer.body, type=_Events).events
        except ValueError as error:
            msg = f"the events are {answer.body[:200]!r}, which is not as documented ({error})"
            raise OSError(msg) from error
        self._last, complaints = one_by_one(
            map(bytes, events), lambda event: self._found(event, now_utc), _key, self._last
        )
        warnings = tuple(f"Azure metadata: the event {complaint}" for complaint in complaints)
        return Polled(self._standing.changes(self._last.values(), now_s, now_utc), warnings)

    def acknowledge(self, notice_id: str) -> None:
        """Let the event begin, now that nothing is lost by it."""
        key = self._standing.key_of(notice_id)
        if key is None:
            return
        body = msgspec.json.encode({"StartRequests": [{"EventId": key.removeprefix("azure-")}]})
        answer = self._transport.request(
            "POST", EVENTS_PATH, {**_HEADERS, "Content-Type": "application/json"}, body
        )
        if answer.status != 200:
            msg = f"StartRequests answered {answer.status}"
            raise OSError(msg)

    def close(self) -> None:
        """End a request that waits."""
        self._transport.close()

    def _own_name(self) -> str:
        try:
            name = self._get(NAME_PATH, TIMEOUT_S).body.decode("utf-8", "replace").strip()
        except OSError as error:
            if not self._is_azure:
                msg = f"Azure notices are not heard: this is not Azure ({error})"
                raise NotHere(msg) from error
            raise
        if not name:
            msg = "the machine's name is empty"
            raise OSError(msg)
        return name

    def _get(self, path: str, timeout_s: float) -> Response:
        answer = self._transport.request("GET", path, _HEADERS, timeout_s=timeout_s)
        if answer.status != 200:
            msg = f"{path.partition('?')[0]} answered {answer.status}"
            raise OSError(msg)
        return answer

    def _found(self, body: bytes, now_utc: datetime) -> Found | None:
        event = msgspec.json.decode(body, type=_Event)
        if self._machine not in event.resources or event.status == "Completed" or event.type not in _KINDS:
            return None
        key = f"azure-{event.id}"
        if event.not_before:
            at = checked(parse_date(event.not_before), now_utc)
        else:  # it has begun, and names no time any more
            known = self._last.get(key)
            at = (known and known.deadline_utc) or now_utc
        confidence = FREEZE_CONFIDENCE if _KINDS[event.type] == "hint" else 1.0
        return Found(key, f"Azure {event.type}", _KINDS[event.type], at, confidence)


def _key(body: bytes) -> str | None:
    """Of an event whose other fields cannot be read."""
    try:
        return f"azure-{msgspec.json.decode(body, type=_Named).id}"
    except ValueError:
        return None


_KINDS: dict[str, Kind] = {
    "Preempt": "machine",
    "Terminate": "machine",
    "Reboot": "machine",
    "Redeploy": "machine",
    "Freeze": "hint",
}


class _Named(msgspec.Struct):
    id: str = msgspec.field(name="EventId")


class _Event(_Named):
    type: str = msgspec.field(name="EventType")
    resources: list[str] = msgspec.field(name="Resources")
    status: str = msgspec.field(name="EventStatus")
    not_before: str | None = msgspec.field(name="NotBefore", default=None)


class _Events(msgspec.Struct):
    events: list[msgspec.Raw] = msgspec.field(name="Events")


settle(_Named, _Event, _Events)
