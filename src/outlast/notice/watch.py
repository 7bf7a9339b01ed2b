"""Merges the sources: what changed, what stands, and which notice is the most urgent."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from outlast._errors import ConfigError
from outlast.notice.base import Notice, NoticeSource
from outlast.notice.command import CommandMetadata, arguments
from outlast.notice.detect import NAMES, clouds, metadata_sources
from outlast.notice.file import FileSource
from outlast.notice.grace import Grace, grace, system
from outlast.notice.signals import KINDS, SignalSource
from outlast.notice.threaded import ThreadedSource
from outlast.policy.restart import StandingNotice, settled


@dataclass(frozen=True)
class Changes:
    """What one poll found.

    Attributes:
        new: notices that were not known before.
        moved: known ones whose deadline changed.
        cancelled: known ones that do not hold any more.
        warnings: lines for the user.
    """

    new: tuple[Notice, ...] = ()
    moved: tuple[Notice, ...] = ()
    cancelled: tuple[Notice, ...] = ()
    warnings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.new or self.moved or self.cancelled or self.warnings)


class Watch:
    """All sources of this machine, polled together; remembers what they said until `forget_settled`.

    A notice that was cancelled takes only itself back: another source's stands. Where hints are to be left on, they are told
    as such.

    Attributes:
        says: a line for whoever starts it: what is listened to.
    """

    def __init__(
        self, sources: Sequence[NoticeSource], *, says: str = "", leaves_on_hints: bool = False
    ) -> None:
        self.says = says
        self._sources = tuple(sources)
        self._leaves_on_hints = leaves_on_hints
        self._notices: dict[str, Notice] = {}
        self._heard_from: dict[str, NoticeSource] = {}

    @property
    def filenos(self) -> tuple[int, ...]:
        """Descriptors that become readable when a poll is worth it; also poll every 0.2 s."""
        return tuple(fd for fd in (source.fileno() for source in self._sources) if fd is not None)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Every notice heard, in its latest state, cancelled ones too."""
        return tuple(self._notices.values())

    def forget_settled(self, now_s: float) -> None:
        """Forget what was cancelled or outlived: called before a relaunch, which starts with a clean slate."""
        self._notices = {
            key: notice for key, notice in self._notices.items() if not settled(for_policy(notice, now_s))
        }

    def poll(self, now_s: float | None = None) -> Changes:
        """Ask every source; `now_s` is `time.monotonic()`, read here if not given."""
        now_s = time.monotonic() if now_s is None else now_s
        now_utc = datetime.now(UTC)
        new: list[Notice] = []
        moved: list[Notice] = []
        cancelled: list[Notice] = []
        warnings: list[str] = []
        for source in self._sources:
            polled = source.poll(now_s, now_utc)
            warnings += polled.warnings
            for told in polled.notices:
                leaves = self._leaves_on_hints and told.kind == "hint"
                notice = replace(told, kind="leave") if leaves else told
                known = self._notices.get(notice.id)
                if notice == known or (notice.cancelled and known is None):
                    continue
                self._notices[notice.id] = notice
                self._heard_from[notice.id] = source
                (cancelled if notice.cancelled else new if known is None else moved).append(notice)
        return Changes(tuple(new), tuple(moved), tuple(cancelled), tuple(warnings))

    def acknowledge(self, id: str) -> None:  # noqa: A002 - the field's name
        """What notice `id` was for is done: tell its source, where that is one that can be told."""
        acknowledge = getattr(self._heard_from.get(id), "acknowledge", None)
        if acknowledge is not None:
            acknowledge(id)

    def close(self) -> None:
        """Close every source."""
        for source in self._sources:
            source.close()


def most_urgent(notices: Iterable[Notice], now_s: float) -> Notice | None:
    """The notice that leaves the least time; None if none holds, or the machine outlived each."""
    holding = (notice for notice in notices if not settled(for_policy(notice, now_s)))
    return min(holding, key=_urgency, default=None)


def for_policy(notice: Notice, now_s: float) -> StandingNotice:
    """What `policy.restart.decide` wants to know of a notice."""
    past_s = None if notice.deadline_s is None else now_s - notice.deadline_s
    return StandingNotice(notice.kind, notice.cancelled, past_s)


def watch_machine(env: Mapping[str, str]) -> Watch:
    """Watch everything that this machine offers: SIGTERM, SIGUSR2, its cloud's metadata service, and what is named.

    Named are `$OUTLAST_NOTICE_FILE` and `$OUTLAST_NOTICE_COMMAND`; `$OUTLAST_NOTICE` names the clouds in place of what the
    machine says that it is, and `$OUTLAST_ON_REBALANCE` whether hints are left on. Called in the main thread.

    Raises:
        ConfigError: `$OUTLAST_GRACE_S` is no number of seconds, or `$OUTLAST_NOTICE` names a place that is not known,
            or `$OUTLAST_NOTICE_COMMAND` leaves a quote open, or `$OUTLAST_ON_REBALANCE` is neither save nor leave.
    """
    leaves = grace(env)
    command = arguments(env)
    on_hints = leaves_on_hints(env)
    sources = metadata_sources(env)
    if command:
        sources.append(ThreadedSource(CommandMetadata(command)))
    if env.get("OUTLAST_NOTICE_FILE"):
        sources.append(FileSource(Path(env["OUTLAST_NOTICE_FILE"]), leaves.seconds))
    sources.append(SignalSource(tuple(KINDS), leaves.seconds))
    return Watch(sources, says=_listening(env, leaves), leaves_on_hints=on_hints)


def leaves_on_hints(env: Mapping[str, str]) -> bool:
    """Whether `$OUTLAST_ON_REBALANCE` is leave; save if not given.

    Raises:
        ConfigError: it is neither.
    """
    said = env.get("OUTLAST_ON_REBALANCE") or "save"
    if said not in ("save", "leave"):
        msg = f"OUTLAST_ON_REBALANCE is {said!r}; expected save (save once and train on) or leave (save, and end with 75)"
        raise ConfigError(msg)
    return said == "leave"


def _listening(env: Mapping[str, str], leaves: Grace) -> str:
    """Such as "notices are heard from AWS and signals, under Slurm; grace 30 s: ...".

    A place that turns out not to be here is said later, by its source.
    """
    told = [NAMES[cloud] for cloud in clouds(env)]
    if env.get("OUTLAST_NOTICE_FILE"):
        told.append("the notice file")
    if env.get("OUTLAST_NOTICE_COMMAND"):
        told.append("the notice command")
    by = f"{', '.join(told)} and signals" if told else "signals"
    runs = system(env)
    under = f", under {runs}" if runs else ""
    return f"notices are heard from {by}{under}; grace {leaves.seconds:g} s: {leaves.why}"


def _urgency(notice: Notice) -> float:
    return float("inf") if notice.deadline_s is None else notice.deadline_s
