"""In which order a checkpoint's bytes are read back, and where in a small memory each of them goes.

A restore goes through a ring of slots. A batch fills one slot: it is an image of a stretch of a segment, so that a disk
or a link sees long reads and direct I/O takes them as they lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from mmap import PAGESIZE

import msgspec

from outlast.checkpoint.boxes import DTYPE_BYTES, Dims, split_range
from outlast.checkpoint.manifest import CHUNK_BYTES, Slice, TensorRecord

GAP_BYTES = 256 << 10
"""Most bytes between two chunks of a segment that are read along, since that costs less than another request."""


_NOWHERE = "~"
"""Sorts behind every segment's key."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Bytes `start` to `stop` of a tensor in row-major order, and where in the slot they go."""

    tensor: str
    start: int
    stop: int
    at: int

    @property
    def nbytes(self) -> int:
        """How many they are."""
        return self.stop - self.start


class Box(msgspec.Struct, frozen=True):
    """A box of a tensor and where it goes: what `reader.read_wants` takes."""

    tensor: str
    offset: Dims
    shape: Dims
    at: int
    nbytes: int


def flatten(record: TensorRecord) -> TensorRecord:
    """Return a tensor that was saved as one whole slice as the bytes it is, in one dimension; others as they are."""
    if not is_whole(record):
        return record
    nbytes = size_of(record)
    return TensorRecord(
        record.name, "uint8", (nbytes,), record.device, (Slice((0,), (nbytes,), record.slices[0].chunks),)
    )


def is_whole(record: TensorRecord) -> bool:
    """Whether a tensor was saved as one slice."""
    return len(record.slices) == 1 and record.slices[0].shape == record.shape


def size_of(record: TensorRecord) -> int:
    """Bytes of a tensor."""
    return math.prod(record.shape) * DTYPE_BYTES[record.dtype]


def boxes(part: Part, record: TensorRecord) -> Iterator[Box]:
    """Say a part of a tensor in boxes of its flattened record, which lie one behind the other in the slot."""
    width = DTYPE_BYTES[record.dtype]
    if not record.shape:
        yield Box(part.tensor, (), (), part.at, width)
        return
    at = part.at
    for offset, shape in split_range(record.shape, part.start // width, part.stop // width):
        nbytes = math.prod(shape) * width
        yield Box(part.tensor, offset, shape, at, nbytes)
        at += nbytes


def plan(records: Sequence[TensorRecord], slot_bytes: int) -> tuple[tuple[Part, ...], ...]:
    """Return batches that bring every byte of the tensors, each of which fits a slot.

    Args:
        records: of a checkpoint, as `catalog.tensors` returns them.
        slot_bytes: at least a chunk and a page.
    """
    batches: list[tuple[Part, ...]] = []
    parts: list[Part] = []
    last: tuple[str, int, int] = ("", 0, 0)  # segment, where the last chunk ends in it, and where in the slot
    for segment, offset, part in sorted(_chunks(records), key=lambda found: found[:2]):
        gap = offset - last[1]
        if segment == last[0] != _NOWHERE and 0 <= gap <= GAP_BYTES:
            at = last[2] + gap
        else:
            at = -(-last[2] // PAGESIZE) * PAGESIZE + offset % PAGESIZE
        if parts and at + part.nbytes > slot_bytes:
            batches.append(tuple(parts))
            parts, at = [], offset % PAGESIZE
        _append(parts, msgspec.structs.replace(part, at=at))
        last = (segment, offset + part.nbytes, at + part.nbytes)
    if parts:
        batches.append(tuple(parts))
    return tuple(batches)


def ends_at(batch: Sequence[Part]) -> int:
    """Bytes of a slot that a batch needs."""
    return max(part.at + part.nbytes for part in batch)


def _chunks(records: Sequence[TensorRecord]) -> Iterator[tuple[str, int, Part]]:
    """Go through all chunks with where they lie; what was saved in several slices comes in row-major pieces, last."""
    for record in records:
        nbytes = size_of(record)
        if is_whole(record):
            stop = 0
            for chunk in record.slices[0].chunks:
                start, stop = stop, stop + chunk.nbytes
                yield chunk.segment, chunk.at, Part(record.name, start, stop, 0)
        else:
            for start in range(0, nbytes, CHUNK_BYTES):
                yield _NOWHERE, 0, Part(record.name, start, min(start + CHUNK_BYTES, nbytes), 0)


def _append(parts: list[Part], part: Part) -> None:
    """Add a part, joined to the last one where it goes on in tensor and slot."""
    last = parts[-1] if parts else None
    if last is not None and (last.tensor, last.stop, last.at + last.nbytes) == (
        part.tensor,
        part.start,
        part.at,
    ):
        parts[-1] = msgspec.structs.replace(last, stop=part.stop)
    else:
        parts.append(part)
