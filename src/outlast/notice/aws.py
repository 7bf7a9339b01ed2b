"""AWS: the instance metadata service (IMDSv2) tells of spot interruptions, rebalancing, maintenance and scaling in.

The spot interruption comes 2 minutes ahead. Paths and bodies: AWS's EC2 user guide, "Instance metadata categories".
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

from outlast._types import settle
from outlast.notice.base import Polled
from outlast.notice.deadline import MAX_AHEAD_S
from outlast.notice.threaded import Found, NotHere, Standing, one_by_one
from outlast.notice.transport import Response, Transport

MAINTENANCE_PATH = "/latest/meta-data/events/maintenance/scheduled"
"""The one path that lists several things."""
TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path
TOKEN_TTL_S = 21600
"""The longest that the service grants."""
RENEW_AT = 0.9
"""Share of its life after which a token is renewed."""
OTHERS_EVERY_S = 5.0
"""Between looks at what is not the interruption itself: AWS asks for 5 s, and the interruption needs to be quicker."""
FAR_OFF_S = 600.0
"""Maintenance that is further away than this, 10 minutes, is only a hint: it is often moved or taken back."""
REBALANCE_CONFIDENCE = 0.3
"""A rebalance recommendation says "at elevated risk"; most are not followed by an interruption soon."""
_TTL = "x-aws-ec2-metadata-token-ttl-seconds"


class AwsMetadata:
    """Asks IMDSv2, with a token that is renewed before it ends.

    Args:
        transport: to the service.
        is_ec2: the machine says by itself that it is EC2: a service that does not answer is then a fault, not another place.
    """

    name = "AWS"
    pause_s = 0.5

    def __init__(self, transport: Transport, *, is_ec2: bool) -> None:
        self._transport = transport
        self._is_ec2 = is_ec2
        self._token = ""
        self._renew_at_s = 0.0
        self._others_at_s = 0.0
        self._standing = Standing()
        self._last: dict[str, dict[str, Found]] = {}

    def look(self, now_s: float, now_utc: datetime) -> Polled:
        """Ask for the interruption, and now and then for the rest; a path that fails leaves what it said last."""
        if now_s >= self._renew_at_s:
            self._renew(now_s)
        paths = list(_READERS)[:1]
        if now_s >= self._others_at_s:
            paths = list(_READERS)
            self._others_at_s = now_s + OTHERS_EVERY_S
        warnings = []
        for path in paths:
            try:
                self._last[path], complaints = self._read(path, now_s, now_utc)
            except OSError as error:
                complaints = (str(error),)
            warnings += [
                f"AWS metadata: {path}: {complaint}; asked again, until then nothing is heard of it"
                for complaint in complaints
            ]
        found = [one for last in self._last.values() for one in last.values()]
        return Polled(self._standing.changes(found, now_s, now_utc), tuple(warnings))

    def acknowledge(self, notice_id: str) -> None:
        """AWS takes none."""

    def close(self) -> None:
        """End a request that waits."""
        self._transport.close()

    def _read(self, path: str, now_s: float, now_utc: datetime) -> tuple[dict[str, Found], tuple[str, ...]]:
        answer = self._get(path)
        if answer.status == 401:
            self._renew(now_s)
            answer = self._get(path)
        if answer.status == 404:
            return {}, ()
        if answer.status != 200:
            msg = f"answered {answer.status}"
            raise OSError(msg)
        pieces = _events(answer.body) if path == MAINTENANCE_PATH else [answer.body]
        read = _READERS[path]
        return one_by_one(pieces, lambda piece: read(piece, now_utc), _key, self._last.get(path, {}))

    def _get(self, path: str) -> Response:
        return self._transport.request("GET", path, {"X-aws-ec2-metadata-token": self._token})

    def _renew(self, now_s: float) -> None:
        was_here = bool(self._token)
        try:
            answer = self._transport.request("PUT", TOKEN_PATH, {_TTL: str(TOKEN_TTL_S)}, b"")
        except TimeoutError as error:
            if self._is_ec2 and not was_here:
                msg = (
                    "this is an EC2 machine, but its metadata service gives no token: in a container that is the hop limit. Run: "
                    "aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2 --instance-id ..."
                )
                raise TimeoutError(msg) from error
            raise self._unreachable(error, was_here=was_here) from error
        except OSError as error:
            raise self._unreachable(error, was_here=was_here) from error
        token = answer.body.decode("ascii", "replace").strip()
        if answer.status == 403:
            msg = "AWS notices are not heard: the instance's metadata service is switched off (403)"
            raise NotHere(msg)
        if answer.status != 200:
            if answer.status < 500 and not was_here and not self._is_ec2:
                msg = f"AWS notices are not heard: this is not AWS (no token service: {answer.status})"
                raise NotHere(msg)
            msg = f"the token service answered {answer.status}"
            raise OSError(msg)
        if not token or not token.isprintable():
            msg = f"the token service answered {answer.body[:40]!r} instead of a token"
            raise OSError(msg)
        self._token = token
        granted = answer.headers.get(_TTL, "")
        life_s = min(float(granted), TOKEN_TTL_S) if granted.isdecimal() else TOKEN_TTL_S
        self._renew_at_s = now_s + RENEW_AT * life_s

    def _unreachable(self, error: OSError, *, was_here: bool) -> Exception:
        if was_here or self._is_ec2:
            return OSError(f"the token service does not answer ({error})")
        return NotHere(f"AWS notices are not heard: this is not AWS (no token service: {error})")


class _Action(msgspec.Struct):
    action: str
    time: datetime


class _Rebalance(msgspec.Struct):
    noticeTime: datetime  # noqa: N815 - AWS's name


class _Named(msgspec.Struct):
    event_id: str = msgspec.field(name="EventId")

    @property
    def key(self) -> str:
        return f"aws-{self.event_id[:100]}"


class _Maintenance(_Named):
    not_before: str = msgspec.field(name="NotBefore")
    code: str = msgspec.field(name="Code", default="maintenance")
    state: str = msgspec.field(name="State", default="active")


def _interruption(body: bytes, now_utc: datetime) -> Found:
    said = msgspec.json.decode(body, type=_Action)
    at = checked(said.time, now_utc)
    return Found("aws-instance-action", f"AWS spot {said.action[:20]}", "machine", at)


def _rebalance(body: bytes, now_utc: datetime) -> Found:  # noqa: ARG001 - as all readers
    said = msgspec.json.decode(body, type=_Rebalance)
    key = f"aws-rebalance-{said.noticeTime:%Y%m%dT%H%M%S}"
    return Found(key, "AWS rebalance recommendation", "hint", None, REBALANCE_CONFIDENCE)


def _events(body: bytes) -> list[bytes]:
    try:
        return [bytes(event) for event in msgspec.json.decode(body, type=list[msgspec.Raw])]
    except ValueError as error:
        msg = f"{body[:200]!r} is not as documented ({error})"
        raise OSError(msg) from error


def _key(body: bytes) -> str | None:
    """Of a maintenance event whose other fields cannot be read; None for what is none."""
    try:
        return msgspec.json.decode(body, type=_Named).key
    except ValueError:
        return None


def _maintenance(body: bytes, now_utc: datetime) -> Found | None:
    event = msgspec.json.decode(body, type=_Maintenance)
    if event.state != "active":
        return None
    at = checked(parse_date(event.not_before), now_utc, most_s=None)
    # One first seen after its time has come may begin at any moment of hours: a hint. One that was near stays an end (`Standing`).
    is_near = timedelta() <= at - now_utc <= timedelta(seconds=FAR_OFF_S)
    source = f"AWS maintenance {event.code[:40]}"
    return Found(event.key, source, "machine" if is_near else "hint", at)


def _lifecycle(body: bytes, now_utc: datetime) -> Found | None:  # noqa: ARG001 - as all readers
    if body.strip() != b"Terminated":
        return None
    return Found("aws-lifecycle", "AWS Auto Scaling terminates", "machine", None)


_READERS: dict[str, Callable[[bytes, datetime], Found | None]] = {
    "/latest/meta-data/spot/instance-action": _interruption,
    "/latest/meta-data/events/recommendations/rebalance": _rebalance,
    MAINTENANCE_PATH: _maintenance,
    "/latest/meta-data/autoscaling/target-lifecycle-state": _lifecycle,
}


def parse_date(text: str) -> datetime:
    """Read "21 Jan 2019 09:00:43 GMT" or "Mon, 19 Sep 2016 18:29:47 GMT".

    Raises:
        ValueError: it is neither.
    """
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(text)


def checked(at: datetime, now_utc: datetime, most_s: float | None = MAX_AHEAD_S) -> datetime:
    """Make a deadline aware of its zone, UTC where it names none, and refuse one that cannot be meant.

    Raises:
        ValueError: it is further from now than `most_s`.
    """
    aware = at if at.tzinfo else at.replace(tzinfo=UTC)
    away_s = (aware - now_utc).total_seconds()
    if most_s is not None and abs(away_s) > most_s:
        msg = f"{aware.isoformat()} is more than {most_s / 86400:.0f} days from now"
        raise ValueError(msg)
    return aware


settle(_Action, _Rebalance, _Named, _Maintenance)
