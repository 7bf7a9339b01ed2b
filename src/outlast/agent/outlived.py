"""The memory of a trainer that is gone: the newest checkpoint, as its arena still holds it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from outlast.agent.tasks import Newest
from outlast.checkpoint.manifest import Chunk, TensorRecord, digest
from outlast.checkpoint.plan import Part, is_whole


class Outlived:
    """Finds a checkpoint's chunks in an arena. Nothing is trusted: what is found has the digest that was recorded.

    Args:
        newest: the checkpoint and its arena.
        records: the same checkpoint's tensors, as the store holds them.
    """

    def __init__(self, newest: Newest, records: Mapping[str, TensorRecord]) -> None:
        self.arena = newest.arena
        self._chunks: dict[str, tuple[list[int], Sequence[Chunk]]] = {}
        self._where: dict[Chunk, int] = {}
        boxes = {(box.name, tuple(box.offset)): box.at for box in newest.placed if box.at >= 0}
        for record in records.values():
            at = boxes.get((record.name, (0,) * len(record.shape)))
            if at is None or not is_whole(record):
                continue
            chunks = record.slices[0].chunks
            starts = list(accumulate((chunk.nbytes for chunk in chunks), initial=0))
            self._chunks[record.name] = starts, chunks
            for chunk, start in zip(chunks, starts, strict=False):
                self._where[chunk] = at + start

    def find(self, parts: Sequence[Part]) -> tuple[int, ...] | None:
        """Return where in the arena each part lies, all checked; None if any of them does not."""
        places = [self._find(part) for part in parts]
        return (
            None if any(place is None for place in places) else tuple(at for at in places if at is not None)
        )

    def _find(self, part: Part) -> int | None:
        if part.tensor not in self._chunks:
            return None
        starts, chunks = self._chunks[part.tensor]
        index = bisect_right(starts, part.start) - 1
        begin = self._where[chunks[index]] + part.start - starts[index]
        while index < len(chunks) and starts[index] < part.stop:
            chunk = chunks[index]
            at = begin + starts[index] - part.start
            if digest(self.arena.view[at : at + chunk.nbytes]) != chunk.digest:
                return None
            index += 1
        return begin
