"""Read boxes of tensors from a checkpoint, every byte checked against its digest.

Whatever division the tensors were saved in, any other can be read: a wanted box is put together from the chunks of
the saved boxes that it meets. Where the bytes of a chunk lie in the wanted box as they lie in the segment, they are
read straight into the arena and checked there; other chunks are read whole, checked, and the parts wanted copied.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias

from outlast._errors import ObjectDamaged, ObjectMissing
from outlast.checkpoint.boxes import (
    DTYPE_BYTES,
    Dims,
    flat_start,
    in_bytes,
    intersect,
    is_inside,
    split_range,
)
from outlast.checkpoint.manifest import CHUNK_BYTES, Chunk, TensorRecord, digest
from outlast.checkpoint.plan import GAP_BYTES
from outlast.store.base import Store

DIRECT_READ_BYTES = 64 << 20
"""Most bytes of one read into the arena: a few of them in flight keep a disk or a link busy."""
SMALL_BYTES = 1 << 20
"""Reads below this are worth joining: 1 MiB takes an object store about as long as a request's latency (~10 ms)."""


class Want(Protocol):
    """A box of a tensor and where in the arena it goes: see `agent.protocol.Want`."""

    @property
    def tensor(self) -> str: ...  # noqa: D102 - one line per field, as in the record
    @property
    def offset(self) -> Dims: ...  # noqa: D102
    @property
    def shape(self) -> Dims: ...  # noqa: D102
    @property
    def at(self) -> int: ...  # noqa: D102
    @property
    def nbytes(self) -> int: ...  # noqa: D102


def read_wants(
    store: Store,
    records: Sequence[TensorRecord],
    wants: Sequence[Want],
    arena: memoryview,
    *,
    threads: int = 4,
    fault: Fault | None = None,
) -> None:
    """Fill the arena with the wanted boxes, all checked.

    Args:
        store: the run's store.
        records: the checkpoint's tensors, as `catalog.tensors` returns them (checked, slices of all ranks).
        wants: boxes of them; each goes to `arena[at : at + nbytes]`.
        arena: where the bytes go, writable. What lies between the wants, and after an error all of it, is worth nothing.
        threads: reads in flight; each needs up to 16 MiB of memory beside the arena. 1: in the calling thread.
        fault: called with each chunk that two reads found bad, instead of raising; what it should have filled is not.

    Raises:
        ObjectMissing, ObjectDamaged: bytes that two separate reads found missing or wrong; names segment and tensor.
        StoreUnavailable: the store is out of reach. Says nothing about the checkpoint.
        ValueError: a want is no box of a tensor of the checkpoint, or does not fit the arena.
    """
    by_name = {record.name: record for record in records}
    pieces: dict[Chunk, _Piece] = {}
    for want in wants:
        _plan_want(want, by_name.get(want.tensor), arena, pieces)
    _run(store, _requests(pieces.values(), wants), arena, fault or _raise, threads)


def check_chunks(store: Store, records: Sequence[TensorRecord], *, threads: int = 4) -> list[str]:
    """Read every chunk of the tensors and return what is wrong with them, in bounded memory; [] if all is right."""
    faults: list[str] = []
    pieces = {
        chunk: _Piece(chunk, record.name)
        for record in records
        for held in record.slices
        for chunk in held.chunks
    }

    def note(_: Chunk, error: ObjectDamaged | ObjectMissing) -> None:
        faults.append(str(error))

    _run(store, _requests(pieces.values(), ()), memoryview(b""), note, threads)
    return sorted(faults)


Deliver: TypeAlias = Callable[[memoryview], None]
Fault: TypeAlias = Callable[[Chunk, ObjectDamaged | ObjectMissing], None]


@dataclass
class _Piece:
    """One chunk to read, and what to do with its bytes."""

    chunk: Chunk
    tensor: str
    direct: int | None = None
    """Where in the arena all its bytes go, if they go anywhere in one piece."""
    deliveries: list[Deliver] = field(default_factory=list)

    @property
    def stop(self) -> int:
        return self.chunk.at + self.chunk.nbytes


@dataclass
class _Read:
    """One request: bytes `start` to `stop` of a segment, straight into the arena at `direct` or through a buffer."""

    segment: str
    start: int
    stop: int
    direct: int | None
    pieces: list[_Piece]

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def _plan_want(
    want: Want, record: TensorRecord | None, arena: memoryview, pieces: dict[Chunk, _Piece]
) -> None:
    if (
        record is None
        or not is_inside(want.offset, want.shape, record.shape)
        or want.nbytes != math.prod(want.shape) * DTYPE_BYTES[record.dtype]
        or not 0 <= want.at <= len(arena) - want.nbytes
    ):
        msg = f"{want!r} is no box of a tensor of this checkpoint that fits an arena of {len(arena)} bytes"
        raise ValueError(msg)
    offset, shape = in_bytes(want.offset, want.shape, record.dtype)
    target = arena[want.at : want.at + want.nbytes]
    found = 0
    for held in record.slices:
        held_offset, held_shape = in_bytes(held.offset, held.shape, record.dtype)
        cut = intersect(held_offset, held_shape, offset, shape)
        if cut is None:
            continue
        nbytes = math.prod(cut[1])
        found += nbytes
        in_held = flat_start(*cut, held_offset, held_shape)
        in_want = flat_start(*cut, offset, shape)
        stop = 0
        for chunk in held.chunks:
            start, stop = stop, stop + chunk.nbytes
            if in_held is not None and (stop <= in_held or start >= in_held + nbytes):
                continue
            copy = partial(_copy, held_offset, held_shape, start, target=target, offset=offset, shape=shape)
            if in_held is not None and in_want is not None and in_held <= start and stop <= in_held + nbytes:
                piece = pieces.setdefault(chunk, _Piece(chunk, record.name))
                if piece.direct is None:
                    piece.direct = want.at + in_want + start - in_held
                else:
                    piece.deliveries.append(copy)
            elif _meets(held_offset, held_shape, start, stop, cut):
                pieces.setdefault(chunk, _Piece(chunk, record.name)).deliveries.append(copy)
    if found != want.nbytes:
        msg = f"tensor {record.name!r}: {found} of the {want.nbytes} bytes of {want!r} are in the checkpoint"
        raise ObjectDamaged(msg)


def _meets(offset: Dims, shape: Dims, start: int, stop: int, cut: tuple[Dims, Dims]) -> bool:
    """Whether bytes `start` to `stop` of a box hold any byte of `cut`."""
    return any(
        intersect(tuple(map(sum, zip(offset, part_offset, strict=True))), part_shape, *cut)
        for part_offset, part_shape in split_range(shape, start, stop)
    )


def _copy(
    held_offset: Dims,
    held_shape: Dims,
    start: int,
    source: memoryview,
    *,
    target: memoryview,
    offset: Dims,
    shape: Dims,
) -> None:
    """Copy what a wanted box shares with `source`, which holds a box's bytes from `start` on."""
    import numpy as np  # only where tensors are divided anew: a resume on as many ranks never gets here

    data = np.frombuffer(source, np.uint8)
    wanted = np.frombuffer(target, np.uint8).reshape(shape)
    at = 0
    for part_offset, part_shape in split_range(held_shape, start, start + len(data)):
        nbytes = math.prod(part_shape)
        part = data[at : at + nbytes].reshape(part_shape)
        at += nbytes
        origin = tuple(map(sum, zip(held_offset, part_offset, strict=True)))
        cut = intersect(origin, part_shape, offset, shape)
        if cut is not None:
            wanted[_window(cut, offset)] = part[_window(cut, origin)]


def _window(cut: tuple[Dims, Dims], origin: Dims) -> tuple[slice, ...]:
    return tuple(slice(o - base, o - base + n) for o, n, base in zip(*cut, origin, strict=True))


def _requests(pieces: Iterable[_Piece], wants: Iterable[Want]) -> list[_Read]:
    """Join chunks into requests: those that lie in the arena as in the segment, and small ones that lie close."""
    free = _Free(wants)
    reads: list[_Read] = []
    for piece in sorted(pieces, key=lambda piece: (piece.chunk.segment, piece.chunk.at)):
        chunk = piece.chunk
        read = _Read(chunk.segment, chunk.at, piece.stop, piece.direct, [piece])
        last = reads[-1] if reads else None
        if last is None or last.segment != read.segment or not _join(last, read, free):
            reads.append(read)
    return reads


class _Free:
    """Knows where in the arena no want lies, so that what nobody asked for may be read there."""

    def __init__(self, wants: Iterable[Want]) -> None:
        self._taken = sorted((want.at, want.at + want.nbytes) for want in wants if want.nbytes)

    def is_free(self, start: int, stop: int) -> bool:
        if start == stop:
            return True
        index = bisect_left(self._taken, (start, 0))
        before, after = self._taken[max(index - 1, 0) : index], self._taken[index : index + 1]
        return all(end <= start for _, end in before) and all(begin >= stop for begin, _ in after)


def _join(last: _Read, read: _Read, free: _Free) -> bool:
    stop = max(last.stop, read.stop)
    gap = read.start - last.stop
    end = None if last.direct is None else last.direct + last.nbytes
    goes_on = (
        end is not None
        and read.direct is not None
        and 0 <= gap == read.direct - end
        and gap <= GAP_BYTES
        and stop - last.start <= DIRECT_READ_BYTES
        and free.is_free(end, read.direct)
    )
    is_close = (
        max(last.nbytes, read.nbytes) < SMALL_BYTES and gap <= GAP_BYTES and stop - last.start <= CHUNK_BYTES
    )
    if not goes_on and not is_close:
        return False
    if not goes_on:
        last.direct = None
    last.stop = stop
    last.pieces += read.pieces
    return True


def _run(store: Store, reads: Sequence[_Read], arena: memoryview, fault: Fault, threads: int) -> None:
    if threads == 1:
        for read in reads:
            _fetch(store, read, arena, fault)
        return
    with ThreadPoolExecutor(threads, "outlast-read") as pool:
        for _ in pool.map(lambda read: _fetch(store, read, arena, fault), reads):
            pass


def _fetch(store: Store, read: _Read, arena: memoryview, fault: Fault) -> None:
    if read.direct is None:
        buffer = memoryview(bytearray(read.nbytes))
    else:
        buffer = arena[read.direct : read.direct + read.nbytes]
    try:
        store.read_into(read.segment, read.start, buffer)
        is_read = True
    except (ObjectMissing, ObjectDamaged):
        is_read = False
    for piece in read.pieces:
        at = piece.chunk.at - read.start
        view = buffer[at : at + piece.chunk.nbytes]
        if not (is_read and digest(view) == piece.chunk.digest):
            try:
                _read_again(store, piece, view)
            except (ObjectMissing, ObjectDamaged) as error:
                fault(piece.chunk, error)
                continue
        if read.direct is None and piece.direct is not None:
            arena[piece.direct : piece.direct + piece.chunk.nbytes] = view
        for deliver in piece.deliveries:
            deliver(view)


def _read_again(store: Store, piece: _Piece, view: memoryview) -> None:
    """Read one chunk by itself, the second read before it is called bad."""
    chunk = piece.chunk
    what = f"{chunk.segment}: bytes {chunk.at} to {piece.stop} (of tensor {piece.tensor!r})"
    try:
        store.read_into(chunk.segment, chunk.at, view)
    except ObjectMissing as error:
        msg = f"{what} are missing: {error}"
        raise ObjectMissing(msg) from error
    except ObjectDamaged as error:
        msg = f"{what} are missing: {error}"
        raise ObjectDamaged(msg) from error
    if digest(view) != chunk.digest:
        msg = f"{what} do not have the digest {chunk.digest} that was recorded, on two separate reads"
        raise ObjectDamaged(msg)


def _raise(_: Chunk, error: ObjectDamaged | ObjectMissing) -> None:
    raise error
