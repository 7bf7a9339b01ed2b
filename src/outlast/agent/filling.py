"""Fill the slots of a trainer's ring: several batches are read and checked while the trainer copies others out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from outlast._errors import ObjectDamaged, ObjectMissing
from outlast.agent.outlived import Outlived
from outlast.agent.protocol import Filled, Lack, Lend, Message, Taken
from outlast.agent.wire import Closed
from outlast.checkpoint.manifest import Chunk, TensorRecord
from outlast.checkpoint.plan import Part, boxes, flatten, is_whole
from outlast.checkpoint.reader import read_wants
from outlast.snapshot.arena import Arena
from outlast.store.base import Store

READERS = 3
"""Batches in flight: while one is checked and one is waited for, the disk or the link is busy with the third."""


class Filling:
    """Reads batches into slots, in threads of its own.

    Each batch begun is told by one `Filled` and given back by one `Taken`. After an error, or a chunk that nothing
    mends, no batch is begun any more.

    Args:
        store: the run's store.
        records: the checkpoint's tensors.
        batches: what the trainer wants.
        ring: its memory.
        slot_bytes: size of each slot of the ring.
        send: sends a message to the trainer, with descriptors.
        outlived: where bytes are looked for before the store is asked.

    Attributes:
        error: what ended it early: a store that fails. None as long as all is well.
        faults: chunks that are bad and that nothing mended, a line each.
        damaged: chunks that are bad and whose bytes the trainer had.
    """

    def __init__(
        self,
        store: Store,
        records: Sequence[TensorRecord],
        batches: Sequence[Sequence[Part]],
        *,
        ring: Arena,
        slot_bytes: int,
        send: Callable[[Message, tuple[int, ...]], None],
        outlived: Outlived | None = None,
    ) -> None:
        self._store = store
        self._records: Mapping[str, TensorRecord] = {record.name: record for record in records}
        self._flat = {record.name: flatten(record) for record in records}
        self._batches = batches
        self._ring = ring
        self._slot_bytes = slot_bytes
        self._send = send
        self._outlived = outlived
        self._changed = threading.Condition()
        self._free = list(range(ring.size_bytes // slot_bytes))
        self._begun = 0
        self._out: dict[int, int] = {}
        self._lacking: dict[int, set[Chunk]] = {}
        self._stopped = False
        self.error: Exception | None = None
        self.faults: list[str] = []
        self.damaged: set[Chunk] = set()
        if outlived is not None:
            send(Lend(), (outlived.arena.fd,))
        self._threads = [
            threading.Thread(target=self._work, name="outlast-fill", daemon=True) for _ in range(READERS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_over(self) -> bool:
        """Whether every batch that was begun is given back, and no other will be begun."""
        with self._changed:
            return not self._out and not self._goes_on

    def take_back(self, message: Taken) -> None:
        """The trainer has copied a batch."""
        with self._changed:
            self._free.append(self._out.pop(message.batch))
            lacking = self._lacking.pop(message.batch, set())
            if message.refused:
                self.faults += message.refused
            else:
                self.damaged |= lacking
            self._changed.notify_all()

    def end(self) -> None:
        """Begin no more batches."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Begin no more batches, and wait for what is under way: it writes to the ring."""
        self.end()
        for thread in self._threads:
            thread.join()

    @property
    def _goes_on(self) -> bool:
        ended = self._stopped or self.error is not None or self.faults
        return not ended and self._begun < len(self._batches)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._free or not self._goes_on)
                if not self._goes_on:
                    return
                batch, self._begun = self._begun, self._begun + 1
                slot = self._out[batch] = self._free.pop()
            filled = self._fill(batch, slot)
            try:
                self._send(filled, ())
            except Closed:
                return  # the trainer is gone; whoever reads its messages finds out

    def _fill(self, batch: int, slot: int) -> Filled:
        parts = self._batches[batch]
        at = slot * self._slot_bytes
        try:
            lent = self._outlived.find(parts) if self._outlived is not None else None
            if lent is not None:
                return Filled(batch=batch, at=0, lent=lent, lacks=(), error=None)
            lacks = self._read(parts, self._ring.view[at : at + self._slot_bytes], batch)
        except (ObjectMissing, ObjectDamaged) as error:
            with self._changed:
                self.faults.append(str(error))
            return Filled(batch=batch, at=at, lent=None, lacks=(), error=str(error))
        except Exception as error:  # told to the trainer, and raised where this is waited for
            with self._changed:
                self.error = self.error or error
            return Filled(batch=batch, at=at, lent=None, lacks=(), error=str(error))
        return Filled(batch=batch, at=at, lent=None, lacks=lacks, error=None)

    def _read(self, parts: Sequence[Part], slot: memoryview, batch: int) -> tuple[Lack, ...]:
        bad: dict[Chunk, str] = {}

        def note(chunk: Chunk, error: ObjectDamaged | ObjectMissing) -> None:
            bad[chunk] = str(error)

        names = dict.fromkeys(part.tensor for part in parts)
        unknown = [name for name in names if name not in self._flat]
        if unknown:
            msg = f"the trainer asked for tensors that the checkpoint does not hold: {', '.join(unknown)}"
            raise ValueError(msg)
        wants = [box for part in parts for box in boxes(part, self._flat[part.tensor])]
        read_wants(self._store, [self._flat[name] for name in names], wants, slot, threads=1, fault=note)
        if not bad:
            return ()
        lacks = tuple(lack for part in parts for lack in self._lacks(part, bad))
        with self._changed:
            self._lacking[batch] = set(bad)
            if any(not is_whole(self._records[part.tensor]) for part in parts):
                self.faults += bad.values()  # which bytes of the tensor are missing is not simply said
        return lacks

    def _lacks(self, part: Part, bad: Mapping[Chunk, str]) -> Sequence[Lack]:
        found = []
        stop = 0
        for chunk in self._flat[part.tensor].slices[0].chunks:
            start, stop = stop, stop + chunk.nbytes
            if chunk in bad and part.start <= start < part.stop:
                found.append(Lack(part.tensor, start, stop, chunk.digest, bad[chunk]))
        return found
