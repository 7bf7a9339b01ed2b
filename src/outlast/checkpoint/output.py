"""What a script has printed: blocks `output/<attempt>-<nonce>-<rank>/000017-0003.jsonl`, a bounded number of them.

Each object is a part as the events are (JSON lines and their digest) and holds a block whole: version 3 of block 17 is version 2 and what
came since, and the one before it is deleted once it is durable. So a line is on the store seconds after it was printed, and a
run of weeks leaves few objects. Of one attempt the first and the last blocks stay. They lie apart from the events: whoever
looks for metrics or for a sign of life need not read them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import msgspec

from outlast._errors import StoreError
from outlast._types import settle
from outlast.checkpoint.events import read_each, seal_part
from outlast.checkpoint.manifest import output_folder
from outlast.store.base import Store

BLOCK_BYTES = 64 << 10
"""A block that is so large is followed by another one."""
FIRST_BLOCKS = 4
"""How a script began, with its settings, mostly stands in its first 256 KiB."""
LAST_BLOCKS = 16
"""1 MiB: thousands of lines before the end."""

_KEY = re.compile(r"\Aoutput/(\d{5,})-([0-9a-z]{4})-(\d{5,})/(\d{6,})-(\d{4,})\.jsonl\Z")


class Output(msgspec.Struct, frozen=True, kw_only=True, tag="output", tag_field="kind"):
    r"""Some text that a script printed.

    Attributes:
        utc: when it was read.
        stream: `stdout`, `stderr`, or `both` where both go to the same place.
        at: bytes that this attempt had printed before it, on all streams.
        nbytes: bytes that the script printed; progress that was written over is not in `text` any more.
        text: what it printed, as UTF-8; bytes that are none are written `\xff`.
    """

    utc: str
    attempt: int
    rank: int
    stream: str
    at: int
    nbytes: int
    text: str


class Key(msgspec.Struct, frozen=True, order=True):
    """Where one version of a block lies. Ordered as they were written."""

    attempt: int
    nonce: str
    rank: int
    block: int
    version: int
    name: str


class OutputLog:
    """Where one agent writes what one rank prints in one attempt. Used by one thread at a time."""

    def __init__(self, store: Store, attempt: int, nonce: str, rank: int) -> None:
        self._store = store
        self._attempt = attempt
        self._rank = rank
        self._folder = output_folder(attempt, nonce, rank)
        self._waiting: list[Output] = []
        self._lines: list[bytes] = []
        self._is_new = False
        self._block: int | None = None
        self._version = 0
        self._durable: str | None = None
        self._closed: dict[int, str] = {}
        self._gone: list[str] = []
        self._before_bytes = 0

    def add(self, *, utc: str, stream: str, at: int, nbytes: int, text: str) -> None:
        """Keep a text for the next flush. `at` counts from this agent's first."""
        self._waiting.append(
            Output(utc=utc, attempt=self._attempt, rank=self._rank, stream=stream, at=at, nbytes=nbytes, text=text)
        )  # fmt: skip

    def flush(self) -> None:
        """Put what was added; durable once this returns.

        After a `StoreError` nothing is lost: the next flush puts the block under its next version, so that a put that did
        arrive is not doubled.
        """
        while self._waiting or self._is_new:
            if self._block is None:
                self._block = self._find_last()
            while self._waiting and sum(map(len, self._lines)) < BLOCK_BYTES:
                output = self._waiting.pop(0)
                output = msgspec.structs.replace(output, at=output.at + self._before_bytes)
                self._lines.append(msgspec.json.encode(output) + b"\n")
                self._is_new = True
            self._put(self._block)
            if sum(map(len, self._lines)) >= BLOCK_BYTES:
                self._block = self._begin_next(self._block)
        self._delete()

    def _put(self, block: int) -> None:
        name = f"{self._folder}/{block:06d}-{self._version:04d}.jsonl"
        self._version += 1
        self._gone.append(name)  # unless it becomes durable: a put that failed may arrive all the same
        self._store.put(name, seal_part(b"".join(self._lines)))
        self._gone.remove(name)
        if self._durable is not None:
            self._gone.append(self._durable)
        self._durable, self._is_new = name, False

    def _begin_next(self, block: int) -> int:
        assert self._durable is not None
        self._closed[block] = self._durable
        for old in sorted(self._closed)[FIRST_BLOCKS:-LAST_BLOCKS]:
            self._gone.append(self._closed.pop(old))
        self._lines, self._durable, self._version = [], None, 0
        return block + 1

    def _delete(self) -> None:
        """Delete what nobody needs; what cannot be now, goes the next time."""
        if not self._gone:
            return
        try:
            self._store.delete(self._gone)
        except StoreError:
            return
        self._gone.clear()

    def _find_last(self) -> int:
        """The block after those that an earlier agent of this attempt has put."""
        for key in _keys(self._store, f"{self._folder}/"):
            self._closed[key.block] = key.name  # of the versions of a block the last one stays
        last = max(self._closed, default=None)
        if last is None:
            return 0
        for _, records in read_each(self._store, [self._closed[last]]):
            self._before_bytes = max((o.at + o.nbytes for o in _outputs(records)), default=0)
        return last + 1


def list_output(store: Store) -> list[Key]:
    """Return the newest version of each block, in the order of (attempt, rank, block)."""
    return _newest(_keys(store, "output/"))


def read_output(store: Store, keys: Iterable[Key], report: Callable[[str], None]) -> Iterator[Output]:
    """Yield what was printed, in order; `report` is told a line about each block that is damaged.

    A block of an attempt that goes on printing may be replaced meanwhile: then its newest version is read.
    """
    keys = list(keys)
    faults: list[str] = []
    read = read_each(store, [key.name for key in keys], faults.append)
    for key, (_, records) in zip(keys, read, strict=True):
        if faults:
            records = _read_again(store, key, faults.pop(), report)  # noqa: PLW2901 - the same, found elsewhere
        yield from _outputs(records)


def fold(text: str) -> str:
    """Leave out what was written over in its line, as progress bars do: all before the last carriage return."""
    lines = text.split("\n")
    return "\n".join(
        _folded(line, number == 0, number == len(lines) - 1) for number, line in enumerate(lines)
    )


def _folded(line: str, is_first: bool, is_last: bool) -> str:
    """One line. What came before the first one, or comes after the last, may belong to it."""
    body = line.rstrip("\r")
    _, carriage_return, rest = body.rpartition("\r")
    end = "\r" if is_last and body != line else ""
    return (carriage_return if is_first else "") + rest + end


def _read_again(store: Store, key: Key, fault: str, report: Callable[[str], None]) -> list[dict[str, object]]:
    """Read another version of a block, the newest first, after one could not be read."""
    folder = output_folder(key.attempt, key.nonce, key.rank)
    others = [k for k in _keys(store, f"{folder}/") if k.block == key.block and k.version != key.version]
    for other in sorted(others, reverse=True):
        faults: list[str] = []
        ((_, records),) = read_each(store, [other.name], faults.append)
        if not faults:
            if other.version < key.version:
                report(f"{fault}; what was printed until a moment before is in {other.name}")
            return records
    report(fault)
    return []


def _outputs(records: Iterable[object]) -> list[Output]:
    outputs = []
    for record in records:
        try:
            outputs.append(msgspec.convert(record, Output))
        except msgspec.ValidationError:
            continue  # of a kind that this version does not know
    return outputs


def _newest(keys: Iterable[Key]) -> list[Key]:
    """Of the versions of each block the last one."""
    blocks = groupby(sorted(keys), lambda key: (key.attempt, key.nonce, key.rank, key.block))
    return [list(versions)[-1] for _, versions in blocks]


def _keys(store: Store, prefix: str) -> list[Key]:
    matches = (_KEY.match(info.key) for info in store.list(prefix))
    return [
        Key(int(match[1]), match[2], int(match[3]), int(match[4]), int(match[5]), match[0])
        for match in matches
        if match is not None
    ]


settle(Output)
