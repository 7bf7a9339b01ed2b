"""Messages between trainer and agent, and how they travel.

A message is a 4-byte little-endian length and a msgpack body (a tagged record below); file descriptors travel as
ancillary data of the first byte. Both sides check that the peer is of the same user.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from outlast._types import Capacity, Json, Keep, Logged, MaxLost, Reason
from outlast.checkpoint.manifest import ProcessId, TensorRecord
from outlast.checkpoint.plan import Part

PROTOCOL = 1

Ending: TypeAlias = Literal["finished", "preempted", "interrupted", "superseded", "unsaved", "error", "ended"]
"""How a script says that it ends; `ended`: its last line was reached, and its loop was not."""


class Message(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of all messages; carries nothing."""


class Rejoin(msgspec.Struct, frozen=True, kw_only=True):
    """What a trainer whose agent died tells the new one: the attempt goes on."""

    run_id: str
    attempt: int
    nonce: str


class Hello(Message, frozen=True):
    """Trainer's first message: who it is and which run it wants."""

    protocol: int
    trainer: ProcessId
    rank: int
    world_size: int
    global_batch: int | None
    url: str
    resume: Literal["auto", "must", "never"]
    take_over: bool
    launch_id: str
    job_id: str | None
    interval_s: float | None
    """Seconds between interval saves; None when they are counted in steps."""
    interval_steps: int | None
    settings: dict[str, Json]
    keep: Keep
    rejoin: Rejoin | None
    allow_local_store: bool = False
    max_lost: MaxLost | None = None
    """The limit of an interval that is computed while training goes on; None where the script gave one."""
    root: str | None = None
    """Where the root's other runs are; None where there is no root."""
    capacity: Capacity | None = None
    """What is said of this machine."""


class Offer(Message, frozen=True):
    """Agent: what a resume would start from; None: a fresh start. `notes` are lines for the user."""

    url: str
    run_id: str
    checkpoint: str | None
    step: int
    finished: bool
    tree: Json
    position: Json
    settings: dict[str, Json]
    """Those of the attempt that wrote the checkpoint."""
    tensors: tuple[TensorRecord, ...]
    notes: tuple[str, ...]


class Accept(Message, frozen=True):
    """Trainer: the offer fits; claim the attempt and read these batches.

    Carries the descriptor of a ring of slots, unless there is nothing to read. Each batch fills one slot.
    """

    batches: tuple[tuple[Part, ...], ...]
    slot_bytes: int


class Read(Message, frozen=True):
    """Trainer, once it is welcome: read these batches of a checkpoint again. Carries the descriptor of a ring."""

    checkpoint: str
    batches: tuple[tuple[Part, ...], ...]
    slot_bytes: int


class Lend(Message, frozen=True):
    """Agent: here is an arena that outlived its trainer, to copy from. Carries its descriptor; not to be written."""


class Lack(msgspec.Struct, frozen=True, array_like=True):
    """A chunk that two reads found bad: bytes `start` to `stop` of a tensor are not in the slot."""

    tensor: str
    start: int
    stop: int
    digest: str
    fault: str


class Filled(Message, frozen=True):
    """Agent: a batch is in the ring from `at` on, checked; or, with `lent`, each of its parts in the lent arena.

    `lacks`: what is not. `error`: it could not be read; `Refuse` says why where the run is being opened.
    """

    batch: int
    at: int
    lent: tuple[int, ...] | None
    lacks: tuple[Lack, ...]
    error: str | None


class Taken(Message, frozen=True):
    """Trainer: a batch is copied, its slot is free. `refused`: the faults of lacks that the live tensors do not mend."""

    batch: int
    refused: tuple[str, ...]


class Welcome(Message, frozen=True):
    """Agent: the attempt is claimed and, on a resume, every byte is copied.

    Carries the descriptor of the control page.
    """

    attempt: int
    nonce: str
    run_id: str


class Refuse(Message, frozen=True):
    """Agent: it cannot go on. `error` is the name of a class of `_errors.py`."""

    error: str
    message: str


class ArenaMessage(Message, frozen=True, tag="Arena"):
    """Trainer: here is arena `index` (its descriptor travels along); replaces an earlier one of that index."""

    index: int


UNCOPIED = -1
"""`Placed.at` of a box whose bytes are not in the arena: they are those that `Snapshot.base` holds already."""


class Placed(msgspec.Struct, frozen=True, array_like=True):
    """Where a box of a tensor lies in the arena.

    `digests` are those of the box's chunks (`CHUNK_BYTES` each, XXH3-128), taken from the live tensor at the safe point;
    what is written must have them. None where they were not taken.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    offset: tuple[int, ...]
    slice_shape: tuple[int, ...]
    at: int
    nbytes: int
    digests: tuple[str, ...] | None = None


class Snapshot(Message, frozen=True):
    """Trainer: arena `index` holds a complete snapshot.

    `hold`: keep it in memory, and make it durable only when the trainer goes or a notice comes; a newer snapshot
    takes its place.
    `base`: the checkpoint whose chunks stand for the boxes that were not copied; None where every box was.
    `best`: value of the metric of `Keep.best`, where this snapshot is the best so far.
    """

    number: int
    index: int
    step: int
    repeat: int
    reason: Reason
    pinned: bool
    finished: bool
    hold: bool
    tree: Json
    position: Json
    settings: dict[str, Json]
    tensors: tuple[Placed, ...]
    base: str | None
    best: float | None


class GiveBack(Message, frozen=True):
    """Trainer: a newer state is at hand. If snapshot `number` has not been begun, drop it and answer `Saved`.

    `until_ns`: CLOCK_MONOTONIC time after which nobody waits to put the newer state in its place, so that it must stay; None
    where the trainer waits as long as it takes.
    """

    number: int
    until_ns: int | None


class Saved(Message, frozen=True):
    """Agent: snapshot `number` is done with and its arena is free. `checkpoint` is None when it was not saved.

    `retake`: what the arena holds (or what stood for it) is not what the live state was; take it again, whole.
    """

    number: int
    checkpoint: str | None
    error: str | None
    retake: bool = False


class Events(Message, frozen=True):
    """Trainer: records for the run's events (metrics, resumes, warnings), in order."""

    records: tuple[dict[str, Json], ...]


class EventsKept(Message, frozen=True):
    """Agent: so many of the records that this connection brought, from the first on, are durable."""

    count: int


class ReadLogged(Message, frozen=True):
    """Trainer: what was logged at steps over `after`, up to `upto`, on the way to where this attempt is now.

    `reader`: who asks; it goes on where its last answer ended at no cost.
    """

    reader: int
    after: int
    upto: int


class ToldLogged(Message, frozen=True):
    """Agent: the next steps of that, in order. `more`: ask again after the last of them. `error`: they could not be read."""

    reader: int
    steps: tuple[Logged, ...]
    more: bool
    error: str | None


class NoticeHeard(Message, frozen=True):
    """Trainer: a signal reached this process (and perhaps not the agent)."""

    source: str
    grace_s: float


class Bye(Message, frozen=True):
    """Trainer: the script has ended; finish what is complete. The agent closes the link when it has."""

    outcome: Ending


AnyMessage = (
    Hello
    | Offer
    | Accept
    | Read
    | Lend
    | Filled
    | Taken
    | Welcome
    | Refuse
    | ArenaMessage
    | Snapshot
    | GiveBack
    | Saved
    | Events
    | EventsKept
    | ReadLogged
    | ToldLogged
    | NoticeHeard
    | Bye
)
