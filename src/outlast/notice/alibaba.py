"""Alibaba Cloud: the metadata service of an ECS instance names the time at which a spot instance is released, 5 minutes ahead.

Path, token and body: Alibaba Cloud's documentation, "Instance metadata" and "Detect spot instance interruption events".
"""

from __future__ import annotations

from datetime import datetime

from outlast.notice.aws import checked
from outlast.notice.base import Polled
from outlast.notice.threaded import Found, NotHere, Standing
from outlast.notice.transport import Response, Transport

TERMINATION_PATH = "/latest/meta-data/instance/spot/termination-time"
TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path
TOKEN_TTL_S = 21600
"""The longest that the service grants."""
_TOKEN = "X-aliyun-ecs-metadata-token"  # noqa: S105 - a header's name


class AlibabaMetadata:
    """Asks for the time of release, with a token ("security hardening mode") where the service gives one."""

    name = "Alibaba Cloud"
    pause_s = 0.5

    def __init__(self, transport: Transport, *, is_ecs: bool) -> None:
        self._transport = transport
        self._is_ecs = is_ecs
        self._headers: dict[str, str] | None = None
        self._standing = Standing()

    def look(self, now_s: float, now_utc: datetime) -> Polled:
        """Ask for the time of release: 404 until there is one."""
        if self._headers is None:
            self._headers = self._renew(is_first=True)
        answer = self._get(self._headers)
        if answer.status in (401, 403):  # how it refuses a token that has ended is not documented
            self._headers = self._renew()
            answer = self._get(self._headers)
        if answer.status not in (200, 404):
            msg = f"{TERMINATION_PATH} answered {answer.status}"
            raise OSError(msg)
        found = [_release(answer.body, now_utc)] if answer.status == 200 else []
        return Polled(self._standing.changes(found, now_s, now_utc))

    def acknowledge(self, notice_id: str) -> None:
        """Alibaba Cloud takes none."""

    def close(self) -> None:
        """End a request that waits."""
        self._transport.close()

    def _get(self, headers: dict[str, str]) -> Response:
        return self._transport.request("GET", TERMINATION_PATH, headers)

    def _renew(self, *, is_first: bool = False) -> dict[str, str]:
        """The headers to ask with: none where the service knows no tokens."""
        try:
            answer = self._transport.request(
                "PUT", TOKEN_PATH, {f"{_TOKEN}-ttl-seconds": str(TOKEN_TTL_S)}, b""
            )
        except OSError as error:
            if is_first and not self._is_ecs:
                msg = f"Alibaba Cloud notices are not heard: this is not Alibaba Cloud ({error})"
                raise NotHere(msg) from error
            raise
        if answer.status >= 500:
            msg = f"the token service answered {answer.status}"
            raise OSError(msg)
        token = answer.body.decode("ascii", "replace").strip()
        return {_TOKEN: token} if answer.status == 200 and token.isprintable() else {}


def _release(body: bytes, now_utc: datetime) -> Found:
    try:
        at = checked(datetime.fromisoformat(body.decode("ascii").strip()), now_utc)
    except (ValueError, OverflowError) as error:
        msg = (
            f"{TERMINATION_PATH} holds {body[:200]!r}; expected a time such as 2015-01-05T18:02:00Z ({error})"
        )
        raise OSError(msg) from error
    return Found("alibaba-release", "Alibaba Cloud spot release", "machine", at)
