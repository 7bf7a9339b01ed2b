"""Bring the manifests of all ranks together, and check what they say before anything is allocated or read."""

from __future__ import annotations

import math
import re

import msgspec

from outlast._errors import ObjectDamaged
from outlast.checkpoint.boxes import DTYPE_BYTES, intersect, is_inside
from outlast.checkpoint.manifest import (
    CHUNK_BYTES,
    CheckpointId,
    Chunk,
    Commit,
    Manifest,
    Slice,
    TensorRecord,
)

MAX_DIMS = 31
"""NumPy 1.26 has up to 32 dimensions, and one is needed for the bytes of an element."""
MAX_BYTES = 2**63 - 1
"""Largest size and offset that the readers (numpy, file offsets, HTTP ranges) count in signed 64-bit words."""

_SEGMENT_KEY = re.compile(r"\Asegments/\d{5,}-[0-9a-z]{4}/\d{12,}(?:\+\d+)?-\d{5,}-\d{3,}\.bin\Z")
_DIGEST = re.compile(r"\A[0-9a-f]{32}\Z")


def describes(record: Manifest | Commit, id: CheckpointId) -> bool:  # noqa: A002 - the field's name
    """Whether a record says that it is of this checkpoint: one that lies under another's key does not count."""
    return CheckpointId(record.attempt, record.step, record.repeat, record.nonce) == id


def merge(manifests: tuple[Manifest, ...], where: str) -> tuple[TensorRecord, ...]:
    """Return every tensor with the slices of all ranks, in the order in which they were first named.

    A name means one tensor, whichever ranks hold its slices: what belongs to a rank alone (its random numbers)
    carries the rank in its name. Ranks that hold the same box must hold the same bytes.

    Raises:
        ObjectDamaged: a record makes no sense (see `_check_record`), or ranks contradict each other.
    """
    merged: dict[str, TensorRecord] = {}
    for manifest in manifests:
        for record in manifest.tensors:
            _check_record(record, where)
            known = merged.get(record.name)
            if known is None:
                merged[record.name] = record
            elif (known.dtype, known.shape) == (record.dtype, record.shape):
                merged[record.name] = msgspec.structs.replace(known, slices=known.slices + record.slices)
            else:
                _fail(where, record, f"another rank says {known.dtype}{known.shape}")
    return tuple(_check_cover(record, where) for record in merged.values())


def _check_record(record: TensorRecord, where: str) -> None:
    """Check one rank's record of a tensor by itself: dtype, sizes, boxes, chunks and segment keys."""
    if record.dtype not in DTYPE_BYTES:
        _fail(where, record, "its dtype is not known")
    if len(record.shape) > MAX_DIMS or any(n < 0 or n > MAX_BYTES for n in record.shape):
        _fail(where, record, "its shape is not possible")
    if math.prod(record.shape) * DTYPE_BYTES[record.dtype] > MAX_BYTES:
        _fail(where, record, "it is larger than any machine can hold")
    for held in record.slices:
        if not is_inside(held.offset, held.shape, record.shape):
            _fail(where, record, f"the slice {held.offset}+{held.shape} lies outside it")
        if sum(chunk.nbytes for chunk in held.chunks) != math.prod(held.shape) * DTYPE_BYTES[record.dtype]:
            _fail(where, record, f"the chunks of the slice {held.offset}+{held.shape} do not add up to it")
        for chunk in held.chunks:
            if not _is_possible(chunk):
                _fail(where, record, f"{chunk} is not possible")


def _is_possible(chunk: Chunk) -> bool:
    return (
        0 < chunk.nbytes <= CHUNK_BYTES
        and 0 <= chunk.at <= MAX_BYTES - chunk.nbytes
        and _SEGMENT_KEY.match(chunk.segment) is not None
        and _DIGEST.match(chunk.digest) is not None
    )


def _check_cover(record: TensorRecord, where: str) -> TensorRecord:
    """Return the record without repeated boxes; what is left must cover the tensor once and nothing twice."""
    boxes: dict[tuple[tuple[int, ...], tuple[int, ...]], Slice] = {}
    for held in record.slices:
        known = boxes.setdefault((held.offset, held.shape), held)
        if [chunk.digest for chunk in known.chunks] != [chunk.digest for chunk in held.chunks]:
            _fail(where, record, f"two ranks saved different bytes for the slice {held.offset}+{held.shape}")
    slices = [held for held in boxes.values() if 0 not in held.shape]
    if sum(math.prod(held.shape) for held in slices) != math.prod(record.shape):
        _fail(where, record, "its slices do not cover it, or cover parts of it twice")
    if _overlap(slices):
        _fail(where, record, "its slices overlap")
    return msgspec.structs.replace(record, slices=tuple(boxes.values()))


def _overlap(slices: list[Slice]) -> bool:
    """Whether any two boxes share an element: a sweep along the dimension that tells most of them apart."""
    if len(slices) < 2 or not slices[0].shape:
        return len(slices) > 1
    dim = max(range(len(slices[0].shape)), key=lambda d: len({held.offset[d] for held in slices}))
    active: list[Slice] = []
    for held in sorted(slices, key=lambda held: held.offset[dim]):
        active = [other for other in active if other.offset[dim] + other.shape[dim] > held.offset[dim]]
        if any(intersect(held.offset, held.shape, other.offset, other.shape) for other in active):
            return True
        active.append(held)
    return False


def _fail(where: str, record: TensorRecord, what: str) -> None:
    msg = f"{where}: tensor {record.name!r} ({record.dtype}{record.shape}): {what}"
    raise ObjectDamaged(msg)
