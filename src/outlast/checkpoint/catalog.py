"""What a run's store holds: the run, its attempts and its checkpoints.

Nothing here changes an object that exists. Where something is damaged, that is said; only what is read twice and
wrong twice counts as damaged, and a store that is out of reach says nothing about what it holds.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import msgspec

from outlast._errors import FormatTooNew, NotAStore, ObjectDamaged, ObjectMissing, StoreDenied
from outlast._types import FORMAT_VERSION
from outlast.checkpoint.events import check_part
from outlast.checkpoint.manifest import (
    DIGEST_ALGORITHM,
    AttemptRecord,
    CheckpointId,
    Commit,
    Manifest,
    RunRecord,
    TensorRecord,
    attempt_key,
    parse_attempt_key,
    parse_checkpoint_name,
    seal,
)
from outlast.checkpoint.merge import describes, merge
from outlast.checkpoint.reader import check_chunks
from outlast.checkpoint.sealed import read_record
from outlast.checkpoint.writer import commit
from outlast.store.base import Store

RUN_KEY = "run.json"
MANIFEST_READS = 8
"""Manifests read at once: they are small, so a store's latency is what counts."""
FOREIGN_NAMED = 3
"""How many foreign objects an error names."""

_CHOOSE = "Choose a place of the run's own, which may not exist yet."
_OURS = ("attempts/", "checkpoints/", "segments/", "events/", "output/", "pins/")
_TOLERATED = (".", "probe/", "lost+found/", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN/")
"""Left by file browsers, filesystems, and the probe that asks a store what it can do."""


class Loaded(msgspec.Struct, frozen=True):
    """A checkpoint's records: whole and consistent, its tensors' bytes not read yet."""

    commit: Commit
    manifests: tuple[Manifest, ...]
    """In the order of ranks."""


class Adopted(msgspec.Struct, frozen=True):
    """What `adopt` did."""

    committed: list[CheckpointId]
    """Newest first."""
    faults: list[str]
    """A line about each set that may be full and cannot be committed."""


def read_run(store: Store) -> RunRecord | None:
    """Return the run's record, or None where no run has begun.

    A `run.json` that is missing or damaged while commits or attempts exist never leads to a fresh start: the run is
    told from the newest of them that can be read (each names its run), and the damaged object is left as it is.

    Raises:
        NotAStore: there are objects, and they are not a run's.
        ObjectDamaged: `run.json` is damaged, or checkpoints stand without it, and nothing readable names the run.
        FormatTooNew: a newer Outlast wrote it.
    """
    try:
        return read_record(store, RUN_KEY, RunRecord)[0]
    except ObjectDamaged as error:
        damage: ObjectDamaged | None = error
    except ObjectMissing:
        damage = None
    recovered = _recover(store)
    if recovered is not None:
        return recovered
    if damage is not None:
        msg = (
            f"{store.url}: {damage}, and nothing else there names the run. Nothing was changed. "
            f"If no checkpoint is expected there, delete {RUN_KEY} and start again; otherwise choose another place."
        )
        raise ObjectDamaged(msg) from damage
    if RUN_KEY in _own_keys(store):  # another start has put it just now
        return read_record(store, RUN_KEY, RunRecord)[0]
    return None


def create_run(store: Store, run_id: str, created_utc: str, settle_s: float = 0.0) -> RunRecord:
    """Put the run's record if there is none; return the one that stands, which may be another starter's.

    Args:
        store: of the run.
        run_id: what to name it.
        created_utc: now, ISO 8601.
        settle_s: seconds to wait before it is read back, where create-if-absent is ignored: the last one put then stands.
    """
    record = RunRecord(format=FORMAT_VERSION, run_id=run_id, created_utc=created_utc)
    store.create(RUN_KEY, seal(record))
    if not store.honours_create:
        time.sleep(settle_s)
    return read_record(store, RUN_KEY, RunRecord)[0]


def attempts(store: Store) -> list[int]:
    """Return the numbers that were claimed, in order; also those whose record is damaged."""
    numbers = (parse_attempt_key(info.key) for info in store.list("attempts/"))
    return sorted(number for number in numbers if number is not None)


def read_attempt(store: Store, number: int) -> AttemptRecord | None:
    """Return an attempt's record; None if it is damaged (the number is claimed all the same)."""
    try:
        record, _ = read_record(store, attempt_key(number), AttemptRecord)
    except ObjectDamaged:
        return None
    return record if record.attempt == number else None


def committed(store: Store) -> list[CheckpointId]:
    """Return every checkpoint that has a commit, newest first; whether it is whole, `load` and `verify` tell."""
    return [id for id, names in folders(store).items() if "commit.json" in names]  # noqa: A001


def is_committed(store: Store, id: CheckpointId) -> bool:  # noqa: A002 - the field's name
    """Whether the checkpoint has a commit, still: a run deletes old ones while others look at them."""
    try:
        store.get(id.commit_key)
    except ObjectMissing:
        return False
    return True


def uncommitted(store: Store) -> list[CheckpointId]:
    """Return every checkpoint that was begun and has no commit, newest first."""
    return [id for id, names in folders(store).items() if "commit.json" not in names]  # noqa: A001


def adopt(store: Store, run_id: str) -> Adopted:
    """Commit the newest full set of manifests of each attempt that was left without a commit (rule 3).

    Whoever wrote it was killed between its last manifest and the commit: all bytes are durable. Sets that are not
    full were being written; they are garbage, and stay.
    """
    adopted: list[CheckpointId] = []
    faults: list[str] = []
    done: set[tuple[int, str]] = set()
    for id, names in folders(store).items():  # noqa: A001
        if (id.attempt, id.nonce) in done:
            continue
        if "commit.json" in names:
            done.add((id.attempt, id.nonce))
            continue
        try:
            first, _ = read_record(store, id.manifest_key(0), Manifest)
            if commit(store, id, run_id, first.world_size):
                done.add((id.attempt, id.nonce))
                adopted.append(id)
            elif first.run_id != run_id:
                faults.append(f"{id.name} is of run {first.run_id}, not of {run_id}")
        except ObjectMissing:
            pass
        except (ObjectDamaged, FormatTooNew) as error:
            faults.append(f"{id.name} was left without a commit: {error}")
    return Adopted(adopted, faults)


def load(store: Store, id: CheckpointId) -> Loaded:  # noqa: A002 - the field's name
    """Read a checkpoint's commit and manifests, all checked against each other.

    Raises:
        ObjectMissing: the commit, or a manifest that it names, is not there.
        ObjectDamaged: one of them is damaged, or is not what the others say.
        FormatTooNew: a newer Outlast wrote it.
    """
    head, _ = read_record(store, id.commit_key, Commit)
    names = [id.manifest_key(rank).rpartition("/")[2] for rank in range(len(head.manifests))]
    if (
        not describes(head, id)
        or len(names) != head.world_size
        or set(names) != set(head.manifests)
        or not names
    ):
        msg = f"{id.commit_key}: it does not say what the commit of {id.name} must say"
        raise ObjectDamaged(msg)
    with ThreadPoolExecutor(min(MANIFEST_READS, len(names)), "outlast-manifest") as pool:
        manifests = tuple(pool.map(lambda rank: _member(store, id, head, rank), range(len(names))))
    return Loaded(head, manifests)


def tensors(loaded: Loaded) -> tuple[TensorRecord, ...]:
    """Return the checkpoint's tensors with the slices of all ranks, checked before anything trusts them.

    Checked are: known dtype, possible sizes, boxes inside the tensor that cover it exactly once, chunks that add up
    to their box, keys that stay inside `segments/`. Boxes that several ranks hold with equal bytes count once.

    Raises:
        ObjectDamaged: naming the checkpoint, the tensor and what is wrong.
    """
    head = loaded.commit
    where = f"checkpoint {CheckpointId(head.attempt, head.step, head.repeat, head.nonce).name}"
    return merge(loaded.manifests, where)


def verify(store: Store, id: CheckpointId, *, events: bool = True) -> list[str]:  # noqa: A002 - the field's name
    """Read every byte of a checkpoint and return what is wrong with it; [] if it is whole. Needs bounded memory.

    Args:
        store: the run's store.
        id: the checkpoint's.
        events: also the ledger's part that it names, which no resume reads.

    Raises:
        StoreUnavailable, StoreDenied: the store cannot be read, which says nothing about the checkpoint.
        FormatTooNew: a newer Outlast wrote it.
    """
    try:
        loaded = load(store, id)
        records = tensors(loaded)
    except (ObjectMissing, ObjectDamaged) as error:
        return [str(error)]
    parts = sorted({manifest.events for manifest in loaded.manifests if manifest.events is not None})
    faults = [fault for part in parts for fault in check_part(store, part)] if events else []
    return faults + check_chunks(store, records)


def _member(store: Store, id: CheckpointId, head: Commit, rank: int) -> Manifest:  # noqa: A002
    key = id.manifest_key(rank)
    manifest, _ = read_record(store, key, Manifest, expect=head.manifests[key.rpartition("/")[2]])
    said = (manifest.run_id, manifest.rank, manifest.world_size)
    if not describes(manifest, id) or said != (head.run_id, rank, head.world_size):
        msg = f"{key}: it says that it is rank {manifest.rank} of {manifest.world_size} of run {manifest.run_id}"
        raise ObjectDamaged(msg)
    if manifest.digest_algorithm != DIGEST_ALGORITHM:
        msg = f"{key}: its digests are {manifest.digest_algorithm}; this Outlast knows {DIGEST_ALGORITHM}. Update it."
        raise FormatTooNew(msg)
    return manifest


def folders(store: Store) -> dict[CheckpointId, set[str]]:
    """Every folder under `checkpoints/` that is ours, newest first, with the names in it."""
    found: dict[CheckpointId, set[str]] = {}
    for info in store.list("checkpoints/"):
        _, folder, *rest = info.key.split("/")
        id = parse_checkpoint_name(folder)  # noqa: A001
        if id is not None and id.name == folder and len(rest) == 1:
            found.setdefault(id, set()).add(rest[0])
    return dict(sorted(found.items(), reverse=True))


def _recover(store: Store) -> RunRecord | None:
    """Tell which run this is from its newest commit or attempt that can be read; None if there is neither."""
    ids = committed(store)
    for id in ids:  # noqa: A001
        try:
            return _recovered(read_record(store, id.commit_key, Commit)[0].run_id, "")
        except (ObjectMissing, ObjectDamaged):
            continue
    for number in reversed(attempts(store)):
        record = read_attempt(store, number)
        if record is not None:
            return _recovered(record.run_id, record.claimed_utc)
    if ids:
        msg = (
            f"{store.url}: {RUN_KEY} cannot be read, and neither can any of the {len(ids)} commits there "
            f"(newest: {ids[0].name}). Nothing was changed."
        )
        raise ObjectDamaged(msg)
    return None


def _recovered(run_id: str, created_utc: str) -> RunRecord:
    return RunRecord(format=FORMAT_VERSION, run_id=run_id, created_utc=created_utc)


def _own_keys(store: Store) -> frozenset[str]:
    """Return the keys of all objects, none of which is foreign to a run.

    Raises:
        NotAStore: one is.
    """
    try:
        keys = [info.key for info in store.list()]
    except StoreDenied as error:  # with what no run holds: a symbolic link, a folder that may not be read
        msg = f"{store.url} is not an Outlast run: it holds no {RUN_KEY}, and {error}. {_CHOOSE}"
        raise NotAStore(msg) from error
    foreign = (key for key in keys if key != RUN_KEY and not f"{key}/".startswith((*_OURS, *_TOLERATED)))
    named = list(islice(foreign, FOREIGN_NAMED))
    if named:
        msg = f"{store.url} is not an Outlast run: it holds {', '.join(named)} and no {RUN_KEY}. {_CHOOSE}"
        raise NotAStore(msg)
    return frozenset(keys)
