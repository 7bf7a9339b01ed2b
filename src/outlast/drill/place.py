"""What surrounds a run: where its checkpoints are, what becomes of its machine's disk, and who announces its ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from outlast.drill.bucket import bucket
from outlast.drill.throttle import Throttle
from outlast.drill.warned import Announcer, Notices, announcer


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What an interrupted run has to live with.

    Attributes:
        notices: what is announced, instead of the nine kinds of interruption.
        lose_disk: every start of `outlast run` finds a new disk; all that is left is a bucket on an S3 server.
        throttle_bytes_per_s: how fast that server takes what is uploaded; None: as fast as it can.
    """

    notices: Notices | None = None
    lose_disk: bool = False
    throttle_bytes_per_s: int | None = None


@dataclass(frozen=True)
class Place:
    """Where one run lives.

    Attributes:
        url: of its store.
        folder: where the store's objects lie as files, which a drill reads.
        env: with which the store is reached.
        throttle: counts what goes to the store; None where nothing does.
        disk: a folder for the machine's own disk, which is new at each start; None: it has the caller's.
        tell: announces its ends; None where nothing is announced.
    """

    url: str
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    throttle: Throttle | None = None
    disk: Path | None = None
    tell: Announcer | None = None


def quiet(home: Path) -> Place:
    """The place of a run that is left alone."""
    return Place(str(home / "store"), home / "store")


@contextlib.contextmanager
def place(home: Path, conditions: Conditions) -> Iterator[Place]:
    """The place of a run under these conditions, below `home`, which exists."""
    with contextlib.ExitStack() as stack:
        notices = conditions.notices
        tell = stack.enter_context(announcer(notices.sources)) if notices else None
        if not conditions.lose_disk:
            yield replace(quiet(home), tell=tell)
            return
        served = stack.enter_context(bucket(home, conditions.throttle_bytes_per_s))
        yield Place(served.url, served.folder, served.env, served.throttle, home / "disk", tell)
