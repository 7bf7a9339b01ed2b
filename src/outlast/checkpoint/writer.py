"""Write one rank's part of a checkpoint, and commit the checkpoint once all ranks' parts are there.

The order is the promise (rule 1): segments, then the manifest that names them, then the commit that names the
manifests. A crash anywhere leaves objects that nothing refers to, never half a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from mmap import PAGESIZE
from typing import Protocol

import msgspec

from outlast._errors import ObjectMissing, OutlastError, UnsupportedValue
from outlast._types import FORMAT_VERSION, Json, Reason
from outlast.checkpoint.boxes import DTYPE_BYTES, Dims, is_inside
from outlast.checkpoint.manifest import (
    CHUNK_BYTES,
    DIGEST_ALGORITHM,
    BestValue,
    CheckpointId,
    Chunk,
    Commit,
    Manifest,
    Slice,
    TensorRecord,
    digest,
    seal,
)
from outlast.checkpoint.merge import MAX_DIMS, describes
from outlast.checkpoint.sealed import read_record
from outlast.store.base import Store

SEGMENT_BYTES = 256 << 20
"""Most bytes of one segment. Large enough that requests do not count, small enough that a retry costs little."""
HASH_THREADS = 2
"""Digests run at memory speed on one core (32 GB/s measured), so two threads keep ahead of any store."""


class Placed(Protocol):
    """Where a box of a tensor lies in the arena: see `agent.protocol.Placed`."""

    @property
    def name(self) -> str: ...  # noqa: D102 - one line per field, as in the record
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> Dims: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def offset(self) -> Dims: ...  # noqa: D102
    @property
    def slice_shape(self) -> Dims: ...  # noqa: D102
    @property
    def at(self) -> int: ...  # noqa: D102
    @property
    def nbytes(self) -> int: ...  # noqa: D102


class SaveHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a manifest says beside its tensors."""

    run_id: str
    id: CheckpointId
    rank: int
    world_size: int
    reason: Reason
    pinned: bool
    finished: bool
    tree: Json
    position: Json
    settings: dict[str, Json]
    events: str | None
    best: BestValue | None


def write_rank(
    store: Store, header: SaveHeader, placed: Sequence[Placed], arena: memoryview, *, saved_utc: str
) -> None:
    """Make one rank's snapshot durable: its segments, then its manifest.

    Saving the same snapshot under the same id again (a new agent that takes over from one that was killed) changes
    nothing; another snapshot under an id that has a manifest is refused, since a commit may name that one.

    Args:
        store: the run's store.
        header: what the manifest says beside its tensors.
        placed: the boxes and where their bytes lie in the arena; several boxes may belong to one tensor.
        arena: the snapshot's bytes; must not change until this returns. Nothing is copied from it.
        saved_utc: time of the save, ISO 8601.

    Raises:
        UnsupportedValue: a dtype that cannot be stored.
        OutlastError: the id holds another snapshot already; trying again would not help.
        StoreError: the store failed, or the id holds a manifest that is damaged.
    """
    for box in placed:
        _check(box, len(arena))
    pieces, segments = _cut(header, placed)
    with ThreadPoolExecutor(HASH_THREADS, "outlast-hash") as pool:
        digests = pool.map(lambda piece: digest(arena[piece.start : piece.stop]), pieces)
        earlier = _earlier(store, header)
        if earlier is None:
            for key, parts in segments:
                store.write(key, [arena[start:stop] for start, stop in parts])
        manifest = _manifest(header, placed, pieces, list(digests), saved_utc)
    key = header.id.manifest_key(header.rank)
    if earlier is None:
        store.put(key, seal(manifest))
    elif _content(earlier) != _content(manifest):
        msg = (
            f"{key} at {store.url} holds another snapshot already, and what is saved is never changed. "
            f"Save under the next repeat of step {header.id.step}."
        )
        raise OutlastError(msg)


def commit(store: Store, id: CheckpointId, run_id: str, world_size: int) -> bool:  # noqa: A002 - the field's name
    """Commit a checkpoint if every rank's manifest is there; anyone may, and all put the same bytes (rule 3).

    Only manifests of this run, id and world size count. The commit's reason is the strongest of the manifests',
    `pinned` holds if any rank pinned, `finished` if all have finished.

    Returns:
        True if the commit exists now; False if the set is not full.

    Raises:
        ObjectDamaged: a manifest, or the commit that is there, is damaged.
    """
    try:
        existing, _ = read_record(store, id.commit_key, Commit)
    except ObjectMissing:
        pass
    else:
        return describes(existing, id) and existing.run_id == run_id and existing.world_size == world_size
    manifests: list[Manifest] = []
    digests: dict[str, str] = {}
    for rank in range(world_size):
        key = id.manifest_key(rank)
        try:
            manifest, digests[key.rpartition("/")[2]] = read_record(store, key, Manifest)
        except ObjectMissing:
            return False
        if not (
            describes(manifest, id)
            and (manifest.run_id, manifest.rank, manifest.world_size) == (run_id, rank, world_size)
        ):
            return False
        manifests.append(manifest)
    record = Commit(
        format=FORMAT_VERSION,
        run_id=run_id,
        attempt=id.attempt,
        nonce=id.nonce,
        step=id.step,
        repeat=id.repeat,
        world_size=world_size,
        reason=max((m.reason for m in manifests), key=lambda reason: reason.strength),
        pinned=any(m.pinned for m in manifests),
        finished=all(m.finished for m in manifests),
        manifests=digests,
    )
    store.put(id.commit_key, seal(record))
    return True


class _Piece(msgspec.Struct, frozen=True):
    """One chunk to be: bytes `start` to `stop` of the arena, at `at` of a segment."""

    box: int
    start: int
    stop: int
    segment: str
    at: int


def _cut(
    header: SaveHeader, placed: Sequence[Placed]
) -> tuple[list[_Piece], list[tuple[str, list[tuple[int, int]]]]]:
    """Cut the boxes into chunks and pack them into segments, each a list of arena ranges.

    A segment starts at a page, and gaps below a page go along, so that pages of the arena stay pages of the
    segment and direct I/O takes them as they lie.
    """
    pieces: list[_Piece] = []
    segments: list[tuple[str, list[tuple[int, int]]]] = []
    size = 0
    for index in sorted(range(len(placed)), key=lambda i: placed[i].at):
        box = placed[index]
        for start in range(box.at, box.at + box.nbytes, CHUNK_BYTES):
            stop = min(start + CHUNK_BYTES, box.at + box.nbytes)
            begin = segments[-1][1][-1][1] if segments else -1
            if not 0 <= start - begin < PAGESIZE:
                begin = start
            if not segments or size + stop - begin > SEGMENT_BYTES:
                segments.append((header.id.segment_key(header.rank, len(segments)), []))
                size, begin = 0, start - start % PAGESIZE
            key, parts = segments[-1]
            if parts and parts[-1][1] == begin:
                parts[-1] = (parts[-1][0], stop)
            else:
                parts.append((begin, stop))
            size += stop - begin
            pieces.append(_Piece(index, start, stop, key, size - (stop - start)))
    return pieces, segments


def _manifest(
    header: SaveHeader, placed: Sequence[Placed], pieces: list[_Piece], digests: list[str], saved_utc: str
) -> Manifest:
    chunks: list[list[Chunk]] = [[] for _ in placed]
    for piece, value in zip(pieces, digests, strict=True):
        chunks[piece.box].append(Chunk(piece.segment, piece.at, piece.stop - piece.start, value))
    tensors: dict[str, TensorRecord] = {}
    for box, its_chunks in zip(placed, chunks, strict=True):
        held = Slice(tuple(box.offset), tuple(box.slice_shape), tuple(its_chunks))
        record = TensorRecord(box.name, box.dtype, tuple(box.shape), box.device, (held,))
        known = tensors.setdefault(box.name, record)
        if known is not record:
            if (known.dtype, known.shape) != (record.dtype, record.shape):
                msg = f"tensor {box.name!r} was placed as {known.dtype}{known.shape} and {record.dtype}{record.shape}"
                raise ValueError(msg)
            tensors[box.name] = msgspec.structs.replace(known, slices=(*known.slices, held))
    return Manifest(
        format=FORMAT_VERSION,
        run_id=header.run_id,
        attempt=header.id.attempt,
        nonce=header.id.nonce,
        step=header.id.step,
        repeat=header.id.repeat,
        rank=header.rank,
        world_size=header.world_size,
        reason=header.reason,
        pinned=header.pinned,
        finished=header.finished,
        saved_utc=saved_utc,
        digest_algorithm=DIGEST_ALGORITHM,
        tree=header.tree,
        position=header.position,
        settings=header.settings,
        tensors=tuple(tensors.values()),
        events=header.events,
        saves_since_full=0,
        full_utc=saved_utc,
        best=header.best,
    )


def _earlier(store: Store, header: SaveHeader) -> Manifest | None:
    """Return the manifest that this rank's key holds already; None if there is none."""
    try:
        return read_record(store, header.id.manifest_key(header.rank), Manifest)[0]
    except ObjectMissing:
        return None


def _content(manifest: Manifest) -> Json:
    """What a snapshot is, as it reads back; why and when it was saved may differ from one try to the next."""
    what = (
        manifest.run_id,
        manifest.world_size,
        manifest.finished,
        manifest.tree,
        manifest.position,
        manifest.tensors,
    )
    return msgspec.json.decode(msgspec.json.encode(what))


def _check(box: Placed, arena_bytes: int) -> None:
    """Refuse what a reader would refuse."""
    if box.dtype not in DTYPE_BYTES:
        msg = (
            f"tensor {box.name!r} has dtype {box.dtype}, which cannot be stored. "
            f"Convert it to one of {', '.join(DTYPE_BYTES)}."
        )
        raise UnsupportedValue(msg)
    if len(box.shape) > MAX_DIMS:
        msg = f"tensor {box.name!r} has {len(box.shape)} dimensions; at most {MAX_DIMS} can be stored. Reshape it."
        raise UnsupportedValue(msg)
    if (
        not is_inside(box.offset, box.slice_shape, box.shape)
        or box.nbytes != math.prod(box.slice_shape) * DTYPE_BYTES[box.dtype]
        or not 0 <= box.at <= arena_bytes - box.nbytes
    ):
        msg = f"{box!r} is no box of its tensor in an arena of {arena_bytes} bytes"
        raise ValueError(msg)
