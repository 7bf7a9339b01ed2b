"""Google Cloud: the metadata server tells of preemption and host maintenance, by requests that are answered on a change.

A preempted machine has 30 s from the ACPI signal on; the metadata turns to TRUE with it, or before: 120 s where that was opted
in to, which nothing here tells, so that `--grace 120` has to. Paths and bodies: Compute
Engine's documentation, "About VM metadata" and "Monitor and plan for a host maintenance event".
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from outlast.notice.base import DEFAULT_GRACE_S, Polled
from outlast.notice.threaded import Found, NotHere, Standing
from outlast.notice.transport import TIMEOUT_S, Transport

ROOT = "/computeMetadata/v1/instance/"
PREEMPTED = "preempted"
MAINTENANCE = "maintenance-event"
HANG_S = 60
"""How long the server holds a request that waits for a change: also how soon a dead one is noticed."""
MIGRATE_CONFIDENCE = 0.3
"""A live migration is a pause; it rarely loses a machine."""
_FLAVOR = {"Metadata-Flavor": "Google"}


class GcpMetadata:
    """Waits for a change of one value of the instance: `PREEMPTED` or `MAINTENANCE`."""

    pause_s = 0.1  # also what a server that ignores wait_for_change is asked at

    def __init__(
        self, transport: Transport, value: str, *, is_gce: bool, grace_s: float = DEFAULT_GRACE_S
    ) -> None:
        self.name = f"Google Cloud {value}"
        self._transport = transport
        self._value = value
        self._is_gce = is_gce
        self._grace_s = grace_s
        self._etag: str | None = None
        self._standing = Standing()
        self._preempted_utc: datetime | None = None

    def look(self, now_s: float, now_utc: datetime) -> Polled:
        """Ask for the value: at once the first time, and when it has changed from then on."""
        path, timeout_s = ROOT + self._value, TIMEOUT_S
        if self._etag is not None:
            path += f"?wait_for_change=true&timeout_sec={HANG_S}&last_etag={self._etag}"
            timeout_s += HANG_S
        waited_from_s = time.monotonic()
        try:
            answer = self._transport.request("GET", path, _FLAVOR, timeout_s=timeout_s)
        except OSError as error:
            if self._etag is None and not self._is_gce:
                msg = f"Google Cloud notices are not heard: this is not Google Cloud ({error})"
                raise NotHere(msg) from error
            raise
        if answer.headers.get("metadata-flavor") != "Google":
            if not self._is_gce:
                msg = "Google Cloud notices are not heard: what answers is not Google's metadata server"
                raise NotHere(msg)
            msg = "what answers is not Google's metadata server (no Metadata-Flavor)"
            raise OSError(msg)
        if answer.status != 200:
            self._etag = None
            msg = f"{self._value} answered {answer.status}"
            raise OSError(msg)
        waited = timedelta(seconds=time.monotonic() - waited_from_s)
        self._etag = _plain(answer.headers.get("etag", ""))
        found = self._found(answer.body.strip().decode("ascii", "replace"), now_utc + waited)
        return Polled(self._standing.changes(found, now_s + waited.total_seconds(), now_utc + waited))

    def acknowledge(self, notice_id: str) -> None:
        """Google takes none."""

    def close(self) -> None:
        """End the request that waits."""
        self._transport.close()

    def _found(self, value: str, now_utc: datetime) -> tuple[Found, ...]:
        if self._value == PREEMPTED:
            if value not in {"TRUE", "FALSE"}:
                self._etag = None
                msg = f"{self._value} is {value[:40]!r}; expected TRUE or FALSE"
                raise OSError(msg)
            if value == "FALSE":
                self._preempted_utc = None
                return ()
            self._preempted_utc = self._preempted_utc or now_utc
            deadline = self._preempted_utc + timedelta(seconds=self._grace_s)
            return (Found("gcp-preempted", "Google Cloud preemption", "machine", deadline),)
        if value == "MIGRATE_ON_HOST_MAINTENANCE":
            return (Found("gcp-migrate", "Google Cloud live migration", "hint", None, MIGRATE_CONFIDENCE),)
        if value == "TERMINATE_ON_HOST_MAINTENANCE":
            return (Found("gcp-terminate", "Google Cloud host maintenance", "machine", None),)
        return ()


def _plain(etag: str) -> str | None:
    """An etag that may stand in a path as it is; None where it may not, and the value is asked for at intervals."""
    return etag if etag.isascii() and etag.isalnum() else None
