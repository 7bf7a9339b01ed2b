"""Events: the run's ledger and its metrics, in immutable parts `events/<attempt>-<nonce>-<rank>/000017.jsonl`.

A part is JSON lines, one record each; its last line is `{"digest": "xxh3-128:..."}` over the bytes before it. Every
record has `kind`, `utc`, `attempt` and `step`:

    attempt    claimed               resume      checkpoint, guarantee, why   save     checkpoint, reason, seconds, bytes...
    notice     source, deadline_utc  warning     cause, message               metrics  values: {name: number}
    store-lost error                 store-back  seconds                      alive    agent: ProcessId
    exception  text, trace: as Python prints it
    end        outcome               deleted     checkpoints, bytes
    decision   what, why, then, and the figures that it was made from        leaving  left_s: before the deadline
    interval   seconds (or steps), bound, and the figures that it was decided from
    notice-cancelled, notice-outcome: source, durable, checkpoint, seconds from the notice

Floats that JSON does not know are written as `{"$float": "nan"}`, so that a loss of NaN reads back as one.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from outlast._errors import ObjectDamaged, ObjectMissing
from outlast._types import Json
from outlast.checkpoint.manifest import DIGEST_ALGORITHM, digest, events_folder
from outlast.store.base import Store

PART_READS = 16
"""Parts read at once: an attempt puts one every 30 s, and a store's latency is what counts."""

Report = Callable[[str], None]

_PART = re.compile(r"\Aevents/(\d{5,})-([0-9a-z]{4})-(\d{5,})/(\d{6,})\.jsonl\Z")
_DIGEST_LINE = re.compile(rb'\{"digest":"xxh3-128:([0-9a-f]{32})"\}\n\Z')
_DIGEST_LINE_BYTES = 55
_PARTS_TAKEN_OVER = 8
"""Of an agent that was killed: it says after each flush what is durable, and one flush puts few."""
_FLOAT = "$float"
_ENVELOPE = ("kind", "utc", "attempt", "step")


class EventLog:
    """Where one agent writes the events of one rank in one attempt. Thread-safe; `add` never waits for the store."""

    def __init__(self, store: Store, attempt: int, nonce: str, rank: int) -> None:
        self._store = store
        self._attempt = attempt
        self._folder = events_folder(attempt, nonce, rank)
        self._lines: list[bytes] = []
        self._lines_lock = threading.Lock()
        self._flush_lock = threading.Lock()
        self._part: bytes | None = None
        self._number: int | None = None
        self._last: str | None = None
        self._there: set[bytes] = set()
        """Lines that an earlier agent of this attempt put: it may have been killed before it could say so, and is told them again."""

    def add(self, record: dict[str, Json]) -> None:
        """Keep a record for the next part; `attempt` is filled in. It is encoded now, so it may change afterwards.

        Raises:
            TypeError: it holds something that is not JSON.
        """
        line = msgspec.json.encode(_plain({**record, "attempt": self._attempt})) + b"\n"
        with self._lines_lock:
            self._lines.append(line)

    def flush(self) -> str | None:
        """Put what was added since the last flush as a new part, durable once this returns.

        After a `StoreError` nothing is lost: the same part is put again by the next flush, under the same name, so
        that a put that did arrive is not doubled.

        Returns:
            The key of the last part of this rank and attempt, whoever put it; None if there is none.
        """
        with self._flush_lock:
            if self._number is None:
                self._take_over()
            while self._part is not None or self._lines:
                self._put_part()
            return self._last

    def _put_part(self) -> None:
        if self._part is None:
            with self._lines_lock:
                lines, self._lines = self._lines, []
            self._seal(lines)
        if self._part is None:
            return
        number = self._number or 0
        key = f"{self._folder}/{number:06d}.jsonl"
        other = None if self._store.create(key, self._part) else self._store.get(key)
        self._number = number + 1
        if other is None or other == self._part:
            self._last, self._part = key, None
            return
        # Put by an earlier agent that was being killed, and arrived only now.
        self._there.update(_lines(other))
        self._seal(_lines(self._part)[:-1])

    def _seal(self, lines: Sequence[bytes]) -> None:
        """Make the next part of these lines, without those that are there."""
        body = b"".join(line for line in lines if line not in self._there)
        self._part = seal_part(body) if body else None

    def _take_over(self) -> None:
        """Find the part that an earlier agent of this attempt put last, and what it and those before it hold."""
        keys = [info.key for info in self._store.list(f"{self._folder}/")]
        numbers = {int(match.group(4)): key for key in keys if (match := _PART.match(key))}
        newest = sorted(numbers)[-_PARTS_TAKEN_OVER:]
        self._there.update(line for number in newest for line in _lines(self._store.get(numbers[number])))
        self._last, self._number = (numbers[newest[-1]], newest[-1] + 1) if newest else (None, 0)


def _lines(part: bytes) -> list[bytes]:
    return part.splitlines(keepends=True)


def seal_part(body: bytes) -> bytes:
    """Return the part that holds these lines: they and their digest."""
    return body + f'{{"digest":"{DIGEST_ALGORITHM}:{digest(body)}"}}\n'.encode()


def read_parts(
    store: Store, attempt: int | None = None, report: Report | None = None
) -> Iterator[dict[str, Json]]:
    """Yield the records of all parts, or of one attempt's, in the order of (attempt, rank, part).

    A damaged part is passed over; `report` is told a line about it.
    """
    keys = [part.key for part in list_parts(store) if attempt in (None, part.attempt)]
    for _, records in read_each(store, keys, report):
        yield from records


class Part(msgspec.Struct, frozen=True, order=True):
    """Where one part lies. Ordered as they were written."""

    attempt: int
    nonce: str
    rank: int
    number: int
    key: str


def list_parts(store: Store) -> list[Part]:
    """Return every part there is, in the order of (attempt, rank, part)."""
    matches = (_PART.match(info.key) for info in store.list("events/"))
    return sorted(
        Part(int(match[1]), match[2], int(match[3]), int(match[4]), match[0])
        for match in matches
        if match is not None
    )


def read_each(
    store: Store, keys: Sequence[str], report: Report | None = None
) -> Iterator[tuple[str, list[dict[str, Json]]]]:
    """Yield (key, records) of these parts, in this order; a damaged one has none, and `report` is told of it."""
    with ThreadPoolExecutor(PART_READS, "outlast-events") as pool:
        for key, found in zip(keys, pool.map(lambda key: _read_part(store, key), keys), strict=True):
            if isinstance(found, str) and report is not None:
                report(found)
            yield key, [] if isinstance(found, str) else found


def check_part(store: Store, key: str) -> list[str]:
    """Return what is wrong with one part, [] if nothing: its key comes from a manifest."""
    if _PART.match(key) is None:
        return [f"{key!r} is no key of an events part"]
    fault = _read_part(store, key)
    return [fault] if isinstance(fault, str) else []


def metrics(store: Store, report: Report | None = None) -> list[dict[str, Json]]:
    """Return the metrics as the run kept them, in the order of steps; see `kept_metrics`."""
    return kept_metrics(read_parts(store, report=report))


def kept_metrics(records: Iterable[dict[str, Json]]) -> list[dict[str, Json]]:
    """Of a run's records, return the metrics that count: what a later attempt undid is left out (rule 12).

    A newer attempt that starts from step S undoes all that older ones logged after S. At S itself both may have
    logged (training before the save, validation after the resume), and the newer one's value of a name counts.
    """
    records = [record for record in records if _is_placed(record)]
    logged = [record for record in records if record.get("kind") == "metrics"]
    starts: dict[int, int] = {}
    for record in [record for record in records if record.get("kind") == "resume"] + logged:
        starts.setdefault(record["attempt"], record["step"])
    undone_after = {
        number: min((s for n, s in starts.items() if n > number), default=None) for number in starts
    }
    logged_first: dict[int, set[str]] = {number: set() for number in starts}
    for record in logged:
        if record["step"] == starts[record["attempt"]]:
            logged_first[record["attempt"]].update(_values(record))
    kept = []
    for record in logged:
        attempt, step, values = record["attempt"], record["step"], _values(record)
        limit = undone_after[attempt]
        if limit is not None and step > limit:
            continue
        if step == limit:
            again = [logged_first[n] for n, start in starts.items() if n > attempt and start == step]
            values = {
                name: value for name, value in values.items() if not any(name in names for names in again)
            }
        if values:
            kept.append({**{name: record[name] for name in _ENVELOPE if name in record}, "values": values})
    return sorted(kept, key=lambda record: (record["step"], record["attempt"]))


def _read_part(store: Store, key: str) -> list[dict[str, Json]] | str:
    """Read a part, or say what is wrong with it; the second read decides whether it is damaged."""
    try:
        try:
            return _decode(store.get(key), key)
        except ObjectDamaged:
            return _decode(store.get(key), key)
    except (ObjectMissing, ObjectDamaged) as error:
        return str(error)


def _decode(data: bytes, key: str) -> list[dict[str, Json]]:
    match = _DIGEST_LINE.search(data[-_DIGEST_LINE_BYTES:])
    body = data[: len(data) - _DIGEST_LINE_BYTES]
    if match is None or digest(body) != match.group(1).decode():
        msg = f"{key}: its digest does not fit its {len(data)} bytes: the part is cut or was changed"
        raise ObjectDamaged(msg)
    try:
        records = [_exact(msgspec.json.decode(line)) for line in body.splitlines()]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        msg = f"{key}: a line is not JSON: {error}"
        raise ObjectDamaged(msg) from error
    return [record for record in records if isinstance(record, dict)]


def _is_placed(record: dict[str, Json]) -> bool:
    return isinstance(record.get("attempt"), int) and isinstance(record.get("step"), int)


def _values(record: dict[str, Json]) -> dict[str, Json]:
    values = record.get("values")
    return values if isinstance(values, dict) else {k: v for k, v in record.items() if k not in _ENVELOPE}


def _plain(value: Any) -> Json:
    """Return the value with floats that JSON does not know in writing."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _exact(value: Json) -> Any:
    """Undo `_plain`."""
    if isinstance(value, dict):
        if value.keys() == {_FLOAT}:
            return float(value[_FLOAT])
        return {name: _exact(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_exact(item) for item in value]
    return value
