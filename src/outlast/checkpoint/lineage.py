"""Metrics as they led to an attempt's state: read back, in the order of steps, from the events of the attempts before it.

An attempt that resumed from step S of another one goes on from what that one logged up to S. What the other logged later, and
attempts that nothing was resumed from, do not count: this is `events.kept_metrics` along one line, a few parts at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from outlast._errors import ObjectMissing
from outlast._types import Json, Logged
from outlast.checkpoint import catalog
from outlast.checkpoint.events import PART_READS, read_each
from outlast.checkpoint.manifest import events_folder, parse_checkpoint_name
from outlast.store.base import Store


def logged(
    store: Store,
    attempt: int,
    nonce: str,
    rank: int,
    *,
    after: int,
    upto: int,
    report: Callable[[str], None],
) -> Iterator[Logged]:
    """Yield what was logged at steps over `after`, up to `upto`, on the way to where an attempt is now.

    What is damaged is passed over; `report` is told a line about it.

    Raises:
        StoreError: the store is out of reach.
    """

    def records() -> Iterator[dict[str, Json]]:
        for folder, limit in _line(store, attempt, nonce, rank, after=after, report=report):
            keys = sorted((info.key for info in store.list(f"{folder}/")), key=lambda key: (len(key), key))
            for record in _metrics(store, keys[_first(store, keys, after) :], report):
                if after < record["step"] <= min(limit, upto):
                    yield record

    for step, same in groupby(records(), lambda record: record["step"]):
        together = list(same)
        values = {name: value for record in together for name, value in record["values"].items()}
        yield Logged(step, str(together[-1]["utc"]), values)


def _line(
    store: Store, attempt: int, nonce: str, rank: int, *, after: int, report: Callable[[str], None]
) -> list[tuple[str, float]]:
    """Events folders of the attempts that an attempt goes back to, oldest first, each with its last step that counts."""
    found: list[tuple[str, float]] = []
    limit: float = math.inf
    while limit > after:
        found.insert(0, (events_folder(attempt, nonce, rank), limit))
        try:
            record = catalog.read_attempt(store, attempt)
        except ObjectMissing:
            record = None
        if record is None:
            report(f"attempt {attempt}: its record is damaged, so what was logged before it is not found")
            break
        resumed = parse_checkpoint_name(record.resumed_from or "")
        if resumed is None:
            break
        attempt, nonce, limit = resumed.attempt, resumed.nonce, resumed.step
    return found


def _first(store: Store, keys: Sequence[str], after: int) -> int:
    """Index of a part before which nothing was logged at a step over `after`; looked for from the end, which is mostly near."""
    start = len(keys)
    while start > 0 and after >= 0:
        stop, start = start, max(start - PART_READS, 0)
        if any(record["step"] <= after for record in _metrics(store, keys[start:stop], lambda _: None)):
            return start
    return 0


def _metrics(store: Store, keys: Sequence[str], report: Callable[[str], None]) -> Iterator[dict[str, Json]]:
    """Records of metrics in these parts, in order; not many more parts are read than are asked for."""
    for start in range(0, len(keys), PART_READS):
        for _, found in read_each(store, keys[start : start + PART_READS], report):
            yield from (r for r in found if r.get("kind") == "metrics" and isinstance(r.get("values"), dict))
