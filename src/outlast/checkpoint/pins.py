"""Pins that people put: `pins/<checkpoint>.json` keeps a checkpoint for as long as it is there.

A pin and a prune may meet. Whoever pins looks, after the pin is put, whether the commit is there; whoever prunes looks for
pins before and after a commit is deleted, and puts it back if it was pinned meanwhile. So a pin that was confirmed holds.
"""

from __future__ import annotations

import msgspec

from outlast._types import FORMAT_VERSION, settle
from outlast.checkpoint.catalog import is_committed
from outlast.checkpoint.manifest import CheckpointId, parse_checkpoint_name, seal
from outlast.store.base import Store

_FOLDER = "pins/"
_SUFFIX = ".json"


class PinRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`pins/<checkpoint>.json`. Its name alone is what pins; the rest tells people when."""

    format: int
    run_id: str
    checkpoint: str
    pinned_utc: str


def pin_key(id: CheckpointId) -> str:  # noqa: A002 - the field's name
    """Key of a checkpoint's pin."""
    return f"{_FOLDER}{id.name}{_SUFFIX}"


def pinned(store: Store) -> frozenset[CheckpointId]:
    """Return the checkpoints that people pinned; also those whose pin is damaged, and those that are gone."""
    names = (info.key.removeprefix(_FOLDER).removesuffix(_SUFFIX) for info in store.list(_FOLDER))
    return frozenset(id for name in names if (id := parse_checkpoint_name(name)) is not None)  # noqa: A001


def pin(store: Store, run_id: str, id: CheckpointId, utc: str) -> bool:  # noqa: A002 - the field's name
    """Pin a checkpoint; pinning it twice is harmless. False, and no new pin is left, where it has no commit."""
    record = PinRecord(format=FORMAT_VERSION, run_id=run_id, checkpoint=id.name, pinned_utc=utc)
    is_new = store.create(pin_key(id), seal(record))
    is_there = is_committed(store, id)
    if is_new and not is_there:
        store.delete([pin_key(id)])
        if is_committed(store, id):
            # Whoever was deleting it saw this pin and has put the commit back; and somebody else may have been told that it holds.
            return pin(store, run_id, id, utc)
    return is_there


def unpin(store: Store, id: CheckpointId) -> bool:  # noqa: A002 - the field's name
    """Take a person's pin back; False where there was none."""
    was_there = id in pinned(store)
    store.delete([pin_key(id)])
    return was_there


settle(PinRecord)
