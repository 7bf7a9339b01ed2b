"""Cut an arena's boxes into chunks, and pack those that are to be written into segments.

Nothing is copied: a segment is a list of ranges of the arena. Which chunk goes where follows from the boxes and from
which of them are packed, so a save that is tried again makes the same segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from mmap import PAGESIZE
from typing import Protocol

from outlast.checkpoint.boxes import Dims

SMALL_BYTES = 64 << 10
"""Boxes below this have segments of their own. A chunk that stays the same keeps its whole segment on the store, and it is
the small ones (counters, scales, norms) that often stay; copying them together costs next to nothing (10 GB/s)."""
SMALL_GAP_BYTES = 64
"""Alignment of small boxes in an arena: the gaps between neighbours are below it."""


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
    @property
    def digests(self) -> tuple[str, ...] | None: ...  # noqa: D102


@dataclass(frozen=True)
class Piece:
    """One chunk to be: `nbytes` at `start` of the arena. `start` is None where the box was not copied.

    `box` and `number` say which chunk of which box it is; `claimed` is the digest that the trainer took of it, if any.
    """

    box: int
    number: int
    start: int | None
    nbytes: int
    claimed: str | None


@dataclass
class Segment:
    """An object to be written: ranges (start, stop) of the arena, one behind the other."""

    key: str
    parts: list[tuple[int, int]] = field(default_factory=list)
    size_bytes: int = 0


def cut(placed: Sequence[Placed], chunk_bytes: int) -> list[Piece]:
    """Cut all boxes into chunks: first those in the arena, in the order in which they lie there."""
    order = sorted(range(len(placed)), key=lambda i: (placed[i].at < 0, placed[i].at))
    return [piece for index in order for piece in _cut_box(index, placed[index], chunk_bytes)]


def _cut_box(index: int, box: Placed, chunk_bytes: int) -> Iterator[Piece]:
    for number, at in enumerate(range(0, box.nbytes, chunk_bytes)):
        yield Piece(
            index,
            number,
            None if box.at < 0 else box.at + at,
            min(chunk_bytes, box.nbytes - at),
            None if box.digests is None else box.digests[number],
        )


class Packer:
    """Puts chunks into segments. Small boxes, and those that the trainer expects to stay as they are, are kept apart.

    A segment of large boxes starts at a page, gaps below a page go along and larger ones are skipped by whole pages, so
    that pages of the arena stay pages of the segment and direct I/O takes them as they lie.

    Args:
        key_of: names the segment of an index.
        segment_bytes: most bytes of one segment.
        arena_bytes: the arena's size.
    """

    def __init__(self, key_of: Callable[[int], str], segment_bytes: int, arena_bytes: int) -> None:
        self._key_of = key_of
        self._segment_bytes = segment_bytes
        self._arena_bytes = arena_bytes
        self._open: dict[tuple[bool, bool], Segment] = {}
        self._count = 0

    def add(self, start: int, nbytes: int, *, box_bytes: int, stays: bool) -> tuple[str, int, Segment | None]:
        """Pack a chunk that lies behind all that were packed before.

        Returns:
            The segment's key, where the chunk starts in it, and a segment that is complete now, if one is.
        """
        small = box_bytes < SMALL_BYTES
        page, gap = (1, SMALL_GAP_BYTES) if small else (PAGESIZE, PAGESIZE)
        segment = self._open.get((small, stays))
        complete = None
        if segment is not None:
            last = segment.parts[-1][1]
            # Up to where the last range goes on, and where this one begins.
            padded, begin = (start, start)
            if start - last >= gap:
                padded, begin = min(-(-last // page) * page, self._arena_bytes), start - start % page
            size = segment.size_bytes + (padded - last) + (start + nbytes - begin)
            if size <= self._segment_bytes:
                _extend(segment, padded, begin, start + nbytes)
            else:
                complete, segment = segment, None
        if segment is None:
            segment = self._open[small, stays] = Segment(self._key_of(self._count))
            self._count += 1
            begin = start - start % page
            segment.parts.append((begin, start + nbytes))
            segment.size_bytes = start + nbytes - begin
        return segment.key, segment.size_bytes - nbytes, complete

    def finish(self) -> list[Segment]:
        """Return the segments that are not complete yet."""
        rest = list(self._open.values())
        self._open.clear()
        return rest


def _extend(segment: Segment, padded: int, begin: int, stop: int) -> None:
    first, last = segment.parts[-1]
    segment.size_bytes += padded - last + stop - begin
    if padded == begin:
        segment.parts[-1] = (first, stop)
    else:
        segment.parts[-1] = (first, padded)
        segment.parts.append((begin, stop))
