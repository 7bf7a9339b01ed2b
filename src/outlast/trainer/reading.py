"""Read a checkpoint's tensors: the agent fills the slots of a small ring, and each batch is copied to where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from outlast._say import say
from outlast.agent.link import Link
from outlast.agent.protocol import Filled, Lack, Offer, Read, Taken
from outlast.checkpoint.boxes import split_range
from outlast.checkpoint.manifest import CHUNK_BYTES, TensorRecord, digest
from outlast.checkpoint.plan import Part, ends_at, plan
from outlast.snapshot.arena import PAGE_BYTES, Arena, page_ceil
from outlast.snapshot.digests import chunk_digests
from outlast.snapshot.pinned import Pin
from outlast.state.bits import DTYPES, as_integers
from outlast.state.homes import Homes

SLOTS = 6
"""Three that are read into, one that is copied from, and two that wait for either."""
COPIERS = 4
"""Most batches copied at a time: fresh memory is written at 1 to 2 GB/s by one thread."""
SLOT_BYTES = 2 * CHUNK_BYTES + PAGE_BYTES
"""Two chunks that do not begin at a page: long enough for a disk, and all slots together stay small."""


class Reading:
    """The tensors of one checkpoint.

    Args:
        link: to the agent.
        checkpoint: its name.
        records: its tensors.
    """

    def __init__(self, link: Link, checkpoint: str, records: Sequence[TensorRecord]) -> None:
        self._link = link
        self._checkpoint = checkpoint
        self._records = {record.name: record for record in records}

    def accept(self, homes: Homes) -> Offer | None:
        """Accept the offer, and fill all homes; returns what `Link.accept` does."""
        batches, ring, slot_bytes = _ring(self._wanted(homes))
        copying = _Copying(batches, ring, homes)
        try:
            return self._link.accept(batches, ring, slot_bytes, copying)
        finally:
            copying.close()

    def again(self, homes: Homes) -> None:
        """Fill these homes once more; the attempt is ours already.

        Raises:
            StoreUnavailable: the store fails, or what it holds has become damaged.
        """
        batches, ring, slot_bytes = _ring(self._wanted(homes))
        if ring is None:
            return
        copying = _Copying(batches, ring, homes)
        try:
            request = Read(checkpoint=self._checkpoint, batches=batches, slot_bytes=slot_bytes)
            self._link.read(request, ring, copying)
        finally:
            copying.close()

    def records(self, names: Mapping[str, object]) -> list[TensorRecord]:
        """The records of some tensors."""
        return [record for name, record in self._records.items() if name in names]

    def same(self, pairs: Sequence[tuple[str, torch.Tensor]]) -> list[bool]:
        """Whether each live tensor holds the bits that were saved under the name: by the digests of its chunks."""
        parts: list[torch.Tensor] = []
        expected: list[list[str] | None] = []
        for name, tensor in pairs:
            record = self._records.get(name)
            fits = (
                record is not None
                and tuple(tensor.shape) == record.shape
                and tensor.dtype is DTYPES.get(record.dtype)
            )
            if record is None or not fits:
                expected.append(None)
                continue
            wanted: list[str] = []
            for held in record.slices:
                window = tuple(slice(o, o + n) for o, n in zip(held.offset, held.shape, strict=True))
                parts.append(tensor[window] if window else tensor)
                wanted += [chunk.digest for chunk in held.chunks]
            expected.append(wanted)
        found = iter(chunk_digests(parts))
        answers = []
        for (name, _), wanted_digests in zip(pairs, expected, strict=True):
            if wanted_digests is None:
                answers.append(False)
                continue
            have = [value for _ in self._records[name].slices for value in next(found)]
            answers.append(have == wanted_digests)
        return answers

    def _wanted(self, homes: Homes) -> list[TensorRecord]:
        return self.records(homes.tensors)


class _Copying:
    """Copies batches out of the ring, or of an arena that is lent, into their homes."""

    def __init__(self, batches: Sequence[Sequence[Part]], ring: Arena | None, homes: Homes) -> None:
        self._batches = batches
        self._ring = ring
        self._homes = homes
        self._integers: dict[str, torch.Tensor] = {}
        self._slots = _bytes_of(ring) if ring is not None else None
        self._lent: torch.Tensor | None = None
        self._pool = ThreadPoolExecutor(min(COPIERS, torch.get_num_threads()), "outlast-copy")
        self.error: Exception | None = None
        on_gpu = any(tensor.device.type == "cuda" for tensor in homes.tensors.values())
        self._pin = Pin(ring, ring.size_bytes) if ring is not None and on_gpu else None

    def __call__(self, filled: Filled, lent: Arena | None, answer: Callable[[Taken], None]) -> None:
        if filled.lent is not None and lent is not None and self._lent is None:
            self._lent = _bytes_of(lent)
        self._pool.submit(self._take, filled, answer)

    def _take(self, filled: Filled, answer: Callable[[Taken], None]) -> None:
        try:
            refused = () if filled.error is not None else self._copy(filled)
        except Exception as error:  # raised where it is waited for; the agent goes no further
            self.error = error
            refused = (f"the trainer could not copy it: {error}",)
        answer(Taken(batch=filled.batch, refused=refused))

    def _copy(self, filled: Filled) -> tuple[str, ...]:
        memory = self._slots if filled.lent is None else self._lent
        assert memory is not None
        lacks: dict[str, list[Lack]] = {}
        for lack in filled.lacks:
            lacks.setdefault(lack.tensor, []).append(lack)
        devices: set[torch.device] = set()
        with torch.no_grad():
            for index, part in enumerate(self._batches[filled.batch]):
                at = filled.at + part.at if filled.lent is None else filled.lent[index]
                home = self._home(part.tensor)
                for start, stop in _without(part.start, part.stop, lacks.get(part.tensor, ())):
                    _put(home, start, stop, memory[at + start - part.start : at + stop - part.start])
                if home.device.type == "cuda":
                    devices.add(home.device)
        for device in devices:  # the slot is free once the device has read it
            torch.cuda.current_stream(device).synchronize()
        refused = tuple(lack.fault for lack in filled.lacks if not self._mends(lack))
        if not refused:
            for lack in filled.lacks:
                say(
                    f"damaged on the store: {lack.fault}. The script's own {lack.tensor} has the same bytes there: used"
                )
        return refused

    def close(self) -> None:
        """Give the ring's memory back; raises what a copy failed with."""
        self._pool.shutdown()
        self._slots = self._lent = None
        if self._pin is not None:
            self._pin.release()
        if self._ring is not None:
            self._ring.close()
        if self.error is not None:
            raise self.error

    def _home(self, name: str) -> torch.Tensor:
        home = self._integers.get(name)
        if home is None:
            home = self._integers[name] = as_integers(self._homes.tensors[name])
        return home

    def _mends(self, lack: Lack) -> bool:
        """Whether the live tensor that the script built has the bytes that the store has lost."""
        if lack.tensor not in self._homes.live:
            return False
        with torch.no_grad():
            return digest(_get(self._home(lack.tensor), lack.start, lack.stop)) == lack.digest


def _ring(
    records: Sequence[TensorRecord],
) -> tuple[tuple[tuple[Part, ...], ...], Arena | None, int]:
    """Plan the batches, and make a ring for them that is no larger than needed."""
    batches = plan(records, SLOT_BYTES)
    if not batches:
        return batches, None, SLOT_BYTES
    slot_bytes = page_ceil(max(ends_at(batch) for batch in batches))
    ring = Arena.create(min(SLOTS, len(batches)) * slot_bytes)
    ring.populate()
    return batches, ring, slot_bytes


def _without(start: int, stop: int, lacks: Sequence[Lack]) -> list[tuple[int, int]]:
    """Cut what is lacking out of a range."""
    left = []
    for lack in sorted(lacks, key=lambda lack: lack.start):
        if lack.stop <= start or lack.start >= stop:
            continue
        if lack.start > start:
            left.append((start, lack.start))
        start = max(start, lack.stop)
    if start < stop:
        left.append((start, stop))
    return left


def _bytes_of(arena: Arena) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(arena.view, dtype=np.uint8))


def _put(home: torch.Tensor, start: int, stop: int, source: torch.Tensor) -> None:
    """Write bytes `start` to `stop` of a tensor's row-major order; `home` is its memory as integers."""
    width = home.element_size()
    if home.device.type == "cpu" and home.is_contiguous():
        # Not by torch, whose threads wait for each other at every tensor: several of these run at a time.
        np.copyto(home.reshape(-1).view(torch.uint8)[start:stop].numpy(), source.numpy())
        return
    if source.storage_offset() % width:
        source = source.clone()  # an odd place in the slot
    values = source.view(home.dtype)
    _each(
        home, start // width, stop // width, values, lambda part, piece: part.copy_(piece, non_blocking=True)
    )


def _get(home: torch.Tensor, start: int, stop: int) -> memoryview:
    """Read bytes `start` to `stop` of a tensor's row-major order."""
    width = home.element_size()
    values = torch.empty((stop - start) // width, dtype=home.dtype, device="cpu")
    _each(home, start // width, stop // width, values, lambda part, piece: piece.copy_(part))
    return values.view(torch.uint8).numpy().data


def _each(
    home: torch.Tensor,
    start: int,
    stop: int,
    values: torch.Tensor,
    move: Callable[[torch.Tensor, torch.Tensor], object],
) -> None:
    """Move elements `start` to `stop` of a tensor's row-major order to or from a flat tensor."""
    if home.is_contiguous():
        move(home.reshape(-1)[start:stop], values)
        return
    at = 0
    for offset, shape in split_range(tuple(home.shape), start, stop):
        part = home[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
        move(part, values[at : at + part.numel()].view(part.shape))
        at += part.numel()
