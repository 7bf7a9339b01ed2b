"""Read parts of a checkpoint once more for a trainer whose attempt is claimed: it has changed what was restored."""

from __future__ import annotations

from collections.abc import Callable

from outlast._errors import ObjectDamaged, OutlastError
from outlast.agent.filling import Filling
from outlast.agent.protocol import Filled, Message, Read, Taken
from outlast.checkpoint import catalog
from outlast.checkpoint.manifest import parse_checkpoint_name
from outlast.snapshot.arena import Arena
from outlast.store.base import Store


class Rereading:
    """Answers one `Read`.

    Args:
        store: the run's store.
        request: what is wanted.
        ring: its memory; closed by `close`.
        send: sends a message to the trainer, with descriptors.
    """

    def __init__(
        self, store: Store, request: Read, ring: Arena, send: Callable[[Message, tuple[int, ...]], None]
    ) -> None:
        self._ring = ring
        self._filling: Filling | None = None
        try:
            checkpoint = parse_checkpoint_name(request.checkpoint)
            if checkpoint is None:
                msg = f"{request.checkpoint!r} is no checkpoint's name"
                raise ObjectDamaged(msg)
            records = catalog.tensors(catalog.load(store, checkpoint))
        except OutlastError as error:
            send(Filled(batch=0, at=0, lent=None, lacks=(), error=str(error)), ())
            return
        self._filling = Filling(
            store, records, request.batches, ring=ring, slot_bytes=request.slot_bytes, send=send
        )

    def take_back(self, message: Taken) -> bool:
        """The trainer has copied a batch; returns whether it was the last."""
        if self._filling is None:
            return True
        self._filling.take_back(message)
        return self._filling.is_over

    def close(self) -> None:
        """Stop, and give the ring back."""
        if self._filling is not None:
            self._filling.stop()
        self._ring.close()
