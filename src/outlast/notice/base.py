"""The contract of a notice source: what tells that this machine goes away at a time.

A source is polled from the agent's loop, never blocks and never raises: a source that fails says so once by
`warnings` of its poll, since a fault while listening must not end a training run.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

Kind = Literal["signal", "warning", "machine", "hint", "leave"]
"""What a notice announces; `policy/emergency.py` decides what follows.

signal: whoever sent it (SIGTERM) ends this process too. warning: sent before the end (SIGUSR2), and this process may still be
left alone. machine: this machine goes away at a time, and may be spared. hint: it may go, pause or move, nobody says when
for certain (rebalance, freeze, live migration, far-off maintenance). leave: a hint where `--on-rebalance leave` says not to wait
whether it does.
"""

DEFAULT_GRACE_S = 30.0
"""From notice to power-off where the source names no time: GCP and Kubernetes give 30 s, Slurm's KillWait is 30 s."""


@dataclass(frozen=True)
class Notice:
    """This machine goes away at a time.

    Attributes:
        id: the same for every report of one notice, other for every other one.
        source: where from, as people name it: "SIGTERM", "file /run/notice".
        kind: see `Kind`.
        confidence: how likely the machine really goes, 0 to 1: 1 is a certainty.
        deadline_s: when, on this process's monotonic clock; None if unknown.
        deadline_utc: the same for the ledger.
        cancelled: the notice `id` does not hold any more.
    """

    id: str
    source: str
    kind: Kind
    deadline_s: float | None
    deadline_utc: datetime | None
    confidence: float = 1.0
    cancelled: bool = False


@dataclass(frozen=True)
class Polled:
    """What a source has to say since its last poll: notices that are new or changed, and lines of warning."""

    notices: tuple[Notice, ...] = ()
    warnings: tuple[str, ...] = ()


class NoticeSource(Protocol):
    """One place that notices come from. Final implementations, one file each."""

    def poll(self, now_s: float, now_utc: datetime) -> Polled:
        """Report what is new at `now_s` (`time.monotonic()`), which is `now_utc` (aware). Must not block."""

    def fileno(self) -> int | None:
        """A descriptor that becomes readable when a poll is worth it; None: poll at intervals."""

    def close(self) -> None:
        """Give back what the source holds."""
