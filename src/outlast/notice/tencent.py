"""Tencent Cloud: the metadata service of a CVM instance names the time at which a spot instance is taken back, 2 minutes ahead.

Path and body: Tencent Cloud's documentation, "Querying Spot Instance Repossession Status". The time names no zone; it is UTC+8.
"""

from __future__ import annotations

from datetime import datetime

from outlast.notice.aws import checked
from outlast.notice.base import Polled
from outlast.notice.threaded import Found, NotHere, Standing
from outlast.notice.transport import Transport

TERMINATION_PATH = "/latest/meta-data/spot/termination-time"
ZONE = "+0800"


class TencentMetadata:
    """Asks for the time at which this instance is taken back."""

    name = "Tencent Cloud"
    pause_s = 0.5

    def __init__(self, transport: Transport, *, is_cvm: bool) -> None:
        self._transport = transport
        self._is_cvm = is_cvm
        self._is_known = False
        self._standing = Standing()

    def look(self, now_s: float, now_utc: datetime) -> Polled:
        """Ask for the time: 404 until there is one."""
        try:
            answer = self._transport.request("GET", TERMINATION_PATH, {})
        except OSError as error:
            if not self._is_known and not self._is_cvm:
                msg = f"Tencent Cloud notices are not heard: this is not Tencent Cloud ({error})"
                raise NotHere(msg) from error
            raise
        if answer.status not in (200, 404):
            msg = f"{TERMINATION_PATH} answered {answer.status}"
            raise OSError(msg)
        self._is_known = True
        found = [_repossession(answer.body, now_utc)] if answer.status == 200 else []
        return Polled(self._standing.changes(found, now_s, now_utc))

    def acknowledge(self, notice_id: str) -> None:
        """Tencent Cloud takes none."""

    def close(self) -> None:
        """End a request that waits."""
        self._transport.close()


def _repossession(body: bytes, now_utc: datetime) -> Found:
    try:
        said = f"{body.decode('ascii').strip()} {ZONE}"
        at = checked(datetime.strptime(said, "%Y-%m-%d %H:%M:%S %z"), now_utc)
    except (ValueError, OverflowError) as error:
        msg = (
            f"{TERMINATION_PATH} holds {body[:200]!r}; expected a time such as 2018-08-18 12:05:33 ({error})"
        )
        raise OSError(msg) from error
    return Found("tencent-repossession", "Tencent Cloud spot repossession", "machine", at)
