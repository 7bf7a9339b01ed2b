"""What a run's store holds, as whoever deletes has to see it: which checkpoints there are, and which bytes each refers to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from outlast._errors import FormatTooNew, ObjectDamaged, ObjectMissing
from outlast._types import Best, Reason
from outlast.checkpoint import catalog
from outlast.checkpoint.manifest import CheckpointId, Manifest, parse_checkpoint_name
from outlast.checkpoint.pins import pinned
from outlast.checkpoint.sealed import read_record
from outlast.policy.retention import Fact
from outlast.store.base import Store

_SEGMENT_KEY = re.compile(r"\Asegments/(\d{5,})-([0-9a-z]{4})/(\d{12,})(?:\+(\d+))?-\d{5,}-\d{3,}\.bin\Z")


@dataclass(frozen=True)
class Flight:
    """What saves need that are under way or wait: checkpoints by name, and whatever belongs to the saves themselves."""

    checkpoints: frozenset[str] = frozenset()
    saves: frozenset[CheckpointId] = frozenset()


@dataclass(frozen=True)
class Contents:
    """A checkpoint whose records are whole. Whether it is known or pinned by a person is not in its records."""

    fact: Fact
    segments: frozenset[str]


@dataclass(frozen=True)
class Seen:
    """The store at one moment.

    Attributes:
        segments: key -> size in bytes, of every segment.
        folders: checkpoint -> names of the objects in its folder, oldest first.
        whole: the checkpoints that have a commit and whose records are whole.
        damaged: those that have a commit, and records that are missing, damaged or too new.
        loose: manifests without a commit, by key: the segments that each refers to, None if it is damaged.
        pins: what people pinned.
        flight: what saves needed, after the segments were listed and before the records were.
    """

    segments: Mapping[str, int]
    folders: Mapping[CheckpointId, frozenset[str]]
    whole: Mapping[CheckpointId, Contents]
    damaged: frozenset[CheckpointId]
    loose: Mapping[CheckpointId, Mapping[str, frozenset[str] | None]]
    pins: frozenset[CheckpointId]
    flight: Flight


class Holdings:
    """Looks at the store again and again, and reads each record once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[CheckpointId, Contents | None] = {}
        self._loose: dict[str, frozenset[str] | None] = {}

    def wrote(self, id: CheckpointId, manifest: Manifest) -> None:  # noqa: A002 - the field's name
        """A checkpoint of one rank became durable, so that it need not be read. Thread-safe."""
        if manifest.world_size == 1:
            about = (manifest.reason, manifest.pinned, manifest.finished)
            self._read[id] = _contents(id, about, (manifest,))

    def remembered(self, id: CheckpointId) -> frozenset[str] | None:  # noqa: A002 - the field's name
        """Segments that a checkpoint refers to, or did before it was deleted; None where its records were never read."""
        contents = self._read.get(id)
        return contents.segments if contents else None

    def look(self, in_flight: Callable[[], Flight]) -> Seen:
        """List the store and read what is new there.

        The order matters: a segment that is listed belongs to a save that is in flight, to one that has left its records
        by the time that these are listed, or to none that will ever need it.

        Raises:
            StoreUnavailable, StoreDenied: the store cannot be read now.
        """
        segments = {info.key: info.size_bytes for info in self._store.list("segments/")}
        flight = in_flight()
        folders = {id: frozenset(names) for id, names in sorted(catalog.folders(self._store).items())}  # noqa: A001
        whole, damaged, loose = dict[CheckpointId, Contents](), set[CheckpointId](), {}
        for id, names in folders.items():  # noqa: A001
            if "commit.json" not in names:
                loose[id] = {key: self._manifest(key) for key in _manifest_keys(id, names)}
            elif (contents := self._contents(id)) is not None:
                whole[id] = contents
            else:
                damaged.add(id)
        return Seen(segments, folders, whole, frozenset(damaged), loose, pinned(self._store), flight)

    def forget_all_but(self, seen: Seen) -> None:
        """Drop what was read, but for what was there when it was seen, what saves needed then, and what came since."""
        needed = seen.folders.keys() | named(seen.flight.checkpoints)
        newest = max(seen.folders, default=None)
        for id in list(self._read):  # noqa: A001
            if id not in needed and newest is not None and id <= newest:
                del self._read[id]
        self._loose.clear()

    def _contents(self, id: CheckpointId) -> Contents | None:  # noqa: A002
        if id not in self._read:
            try:
                loaded = catalog.load(self._store, id)
            except (ObjectMissing, ObjectDamaged, FormatTooNew):
                self._read[id] = None
            else:
                head = loaded.commit
                about = (head.reason, head.pinned, head.finished)
                self._read[id] = _contents(id, about, loaded.manifests)
        return self._read[id]

    def _manifest(self, key: str) -> frozenset[str] | None:
        if key not in self._loose:
            try:
                self._loose[key] = _segments((read_record(self._store, key, Manifest)[0],))
            except ObjectMissing:
                return frozenset()
            except (ObjectDamaged, FormatTooNew):
                self._loose[key] = None
        return self._loose[key]


def owner_of(segment: str) -> CheckpointId | None:
    """Return the checkpoint that a segment was written for; None if the key is not one of ours."""
    match = _SEGMENT_KEY.match(segment)
    if match is None:
        return None
    attempt, nonce, step, repeat = match.groups()
    return CheckpointId(int(attempt), int(step), int(repeat or 0), nonce)


def named(names: frozenset[str]) -> frozenset[CheckpointId]:
    """Return the checkpoints of these names; what is no name is left out."""
    return frozenset(id for name in names if (id := parse_checkpoint_name(name)) is not None)  # noqa: A001


def _manifest_keys(id: CheckpointId, names: frozenset[str] | set[str]) -> list[str]:  # noqa: A002
    return [f"checkpoints/{id.name}/{name}" for name in sorted(names)]


def _segments(manifests: tuple[Manifest, ...]) -> frozenset[str]:
    return frozenset(
        chunk.segment
        for manifest in manifests
        for tensor in manifest.tensors
        for held in tensor.slices
        for chunk in held.chunks
    )


def _contents(
    id: CheckpointId,  # noqa: A002
    about: tuple[Reason, bool, bool],
    manifests: tuple[Manifest, ...],
) -> Contents:
    reason, is_pinned, finished = about
    best = next((m.best for m in manifests if m.best is not None), None)
    saved_s = max(_seconds(manifest.saved_utc) for manifest in manifests)
    fact = Fact(
        name=id.name,
        order=(id.attempt, id.step, id.repeat),
        reason=reason,
        pinned=is_pinned,
        finished=finished,
        known=False,
        saved_s=saved_s,
        full_s=min(_seconds(m.full_utc) if m.saves_since_full else saved_s for m in manifests),
        best=(Best(best.metric, best.mode), best.value) if best else None,
    )
    return Contents(fact, _segments(manifests))


def _seconds(utc: str) -> float:
    """Seconds since the epoch; 0 for what is no time: it then counts as saved before anything else."""
    try:
        return datetime.fromisoformat(utc).timestamp()
    except ValueError:
        return 0.0
