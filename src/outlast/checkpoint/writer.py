"""Write one rank's part of a checkpoint, and commit the checkpoint once all ranks' parts are there.

The order is the promise (rule 1): segments, then the manifest that names them, then the commit that names the
manifests. A crash anywhere leaves objects that nothing refers to, never half a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import msgspec

from outlast._errors import ObjectMissing, OutlastError, UnsupportedValue
from outlast._types import FORMAT_VERSION, Json, Reason
from outlast.checkpoint.base import Base, find
from outlast.checkpoint.boxes import DTYPE_BYTES, is_inside
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
from outlast.checkpoint.packing import Packer, Piece, Placed, cut
from outlast.checkpoint.sealed import read_record
from outlast.checkpoint.writing import STEADY, Pace, Writing
from outlast.store.base import Store

SEGMENT_BYTES = 64 << 20
"""Most bytes of one segment. 64 to 256 MiB are written equally fast (2.5 GB/s measured); the smaller is sooner begun, sooner
given up for a save that matters more, and costs less to send again."""
HASH_THREADS = 2
"""Digests run at memory speed on one core (32 GB/s measured), so two threads keep ahead of any store."""

ALWAYS_WRITTEN = ("rng/", "head/")
"""Generators, a few kilobytes: no base is referred to for them. Often nothing draws from them, and no script has them live to mend
a bad byte with, so one byte of one copy that all checkpoints share would end the run."""


class Retake(Exception):
    """What the snapshot holds is not all of what the state was; it has to be taken again, whole."""


class NotTheLiveState(Retake):
    """Bytes in the arena are not those that the live tensor had at the safe point."""


@dataclass(frozen=True)
class Written:
    """What a save did.

    Attributes:
        manifest: the one that is durable now.
        bytes_written: in segments, by this call.
        chunks: how many chunks the manifest names.
        chunks_referenced: how many of them were durable before.
    """

    manifest: Manifest
    bytes_written: int
    chunks: int
    chunks_referenced: int


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
    store: Store,
    header: SaveHeader,
    placed: Sequence[Placed],
    arena: memoryview,
    *,
    saved_utc: str,
    bases: Sequence[Base] = (),
    first_segment: int = 0,
    done: set[str] | None = None,
    pace: Pace = STEADY,
) -> Written:
    """Make one rank's snapshot durable: its segments, then its manifest.

    Digests are taken, chunks that a base holds are referred to, and the others are packed and written, all at the same
    time. Saving the same snapshot under the same id again (a new agent that takes over from one that was killed) changes
    nothing; another snapshot under an id that has a manifest is refused, since a commit may name that one.

    Args:
        store: the run's store.
        header: what the manifest says beside its tensors.
        placed: the boxes and where their bytes lie in the arena; several boxes may belong to one tensor.
        arena: the snapshot's bytes; must not change until this returns. Nothing is copied from it.
        saved_utc: time of the save, ISO 8601.
        bases: checkpoints whose chunks may be referred to, the preferred one first; none: every byte is written.
        first_segment: the index that segments are counted from.
        done: keys of segments that an earlier try with the same arguments has made durable; added to.
        pace: how the threads behave.

    Raises:
        UnsupportedValue: a dtype that cannot be stored.
        NotTheLiveState: a chunk does not have the digest that was taken of the live tensor; names the tensor.
        Retake: a box was not copied, and no base holds its bytes.
        Abandoned: `pace` gave the save up.
        OutlastError: the id holds another snapshot already; trying again would not help.
        StoreError: the store failed.
        ObjectDamaged: the id holds a manifest that is damaged.
    """
    for box in placed:
        _check(box, len(arena))
    pieces = cut(placed, CHUNK_BYTES)
    packer = Packer(
        lambda index: header.id.segment_key(header.rank, first_segment + index), SEGMENT_BYTES, len(arena)
    )
    hashing = ThreadPoolExecutor(HASH_THREADS, "outlast-hash", pace.begin_thread)
    writing = Writing(store, arena, set() if done is None else done, pace)
    chunks: list[list[Chunk]] = [[] for _ in placed]
    referenced = 0
    try:
        batches = hashing.map(lambda batch: [_digest(p, placed, arena) for p in batch], _in_batches(pieces))
        digests = chain.from_iterable(batches)
        earlier = _earlier(store, header)
        for piece, value in zip(pieces, digests, strict=True):
            again = piece.start is not None and placed[piece.box].name.startswith(ALWAYS_WRITTEN)
            chunk = None if again else find(bases, (value, piece.nbytes))
            if chunk is not None:
                referenced += 1
            elif piece.start is not None:
                box = placed[piece.box]
                key, at, complete = packer.add(
                    piece.start, piece.nbytes, box_bytes=box.nbytes, stays=box.digests is not None
                )
                chunk = Chunk(key, at, piece.nbytes, value)
                if complete is not None and earlier is None:
                    writing.begin(complete)
            elif earlier is None:
                msg = f"tensor {placed[piece.box].name!r} was not copied, and no checkpoint that is known here holds it"
                raise Retake(msg)
            else:
                chunk = Chunk("", 0, piece.nbytes, value)  # compared by content only
            chunks[piece.box].append(chunk)
        if earlier is None:
            for segment in packer.finish():
                writing.begin(segment)
            writing.finish()
    finally:
        hashing.shutdown(cancel_futures=True)
        writing.stop()
    manifest = _manifest(header, placed, chunks, saved_utc, bases[0] if referenced else None)
    key = header.id.manifest_key(header.rank)
    if earlier is None:
        store.put(key, seal(manifest))
    elif _content(earlier) != _content(manifest):
        msg = (
            f"{key} at {store.url} holds another snapshot already, and what is saved is never changed. "
            f"Save under the next repeat of step {header.id.step}."
        )
        raise OutlastError(msg)
    return Written(earlier or manifest, writing.bytes_written, len(pieces), referenced)


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


def _in_batches(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Put small chunks together, so that a thread is not woken for a kilobyte."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        if batch and size + piece.nbytes > CHUNK_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.nbytes
    yield batch


def _digest(piece: Piece, placed: Sequence[Placed], arena: memoryview) -> str:
    """The chunk's digest, held against the one that was taken of the live tensor."""
    if piece.start is None:
        assert piece.claimed is not None
        return piece.claimed
    value = digest(arena[piece.start : piece.start + piece.nbytes])
    if piece.claimed not in (None, value):
        msg = (
            f"tensor {placed[piece.box].name!r}: what was copied is not what it was at the safe point (chunk "
            f"{piece.number}: {piece.claimed} there, {value} in the copy)"
        )
        raise NotTheLiveState(msg)
    return value


def _manifest(
    header: SaveHeader,
    placed: Sequence[Placed],
    chunks: Sequence[Sequence[Chunk]],
    saved_utc: str,
    base: Base | None,
) -> Manifest:
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
        saves_since_full=base.saves_since_full + 1 if base else 0,
        full_utc=base.full_utc if base else saved_utc,
        best=header.best,
    )


def _earlier(store: Store, header: SaveHeader) -> Manifest | None:
    """Return the manifest that this rank's key holds already; None if there is none."""
    try:
        return read_record(store, header.id.manifest_key(header.rank), Manifest)[0]
    except ObjectMissing:
        return None


def _content(manifest: Manifest) -> Json:
    """What a snapshot is, as it reads back; why and when it was saved and where its bytes lie may differ between tries."""
    tensors = [
        (t.name, t.dtype, t.shape, t.device, [(s.offset, s.shape, _contents(s)) for s in t.slices])
        for t in manifest.tensors
    ]
    what = (
        manifest.run_id,
        manifest.world_size,
        manifest.finished,
        manifest.tree,
        manifest.position,
        tensors,
    )
    return msgspec.json.decode(msgspec.json.encode(what))


def _contents(held: Slice) -> list[tuple[str, int]]:
    return [(chunk.digest, chunk.nbytes) for chunk in held.chunks]


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
        or (box.digests is None if box.at < 0 else box.at > arena_bytes - box.nbytes)
        or (box.digests is not None and len(box.digests) != -(-box.nbytes // CHUNK_BYTES))
    ):
        msg = f"{box!r} is no box of its tensor in an arena of {arena_bytes} bytes"
        raise ValueError(msg)
