"""The records on the store: what they hold, their names, and the digest that each carries of its own bytes.

Everything here is a frozen record that `msgspec` encodes as JSON. A record is sealed before it is put: its JSON
object gets a last field `"digest": "xxh3-128:<32 hex digits>"` over all bytes before it. `unseal` checks it.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

import msgspec
import xxhash

from outlast._errors import FormatTooNew, ObjectDamaged
from outlast._types import FORMAT_VERSION, Capacity, Json, Keep, Reason, settle

DIGEST_ALGORITHM = "xxh3-128"
CHUNK_BYTES = 16 << 20
"""A tensor slice is cut into chunks of this size (the last one is shorter), counted from the slice's start, so
that an unchanged chunk keeps its place from save to save. 16 MiB: the piece size of the measured prototype."""

_SEAL = re.compile(rb',"digest":"xxh3-128:([0-9a-f]{32})"\}\Z')
_ATTEMPT_KEY = re.compile(r"\Aattempts/(\d{5,})\.json\Z")
_CHECKPOINT_NAME = re.compile(r"\A(\d{5,})-([0-9a-z]{4})-(\d{12,})(?:\+(\d+))?\Z")

Record = TypeVar("Record", bound="msgspec.Struct")


class CheckpointId(msgspec.Struct, frozen=True, order=True):
    """Names one checkpoint. Ordered: the newest is the highest (attempt, step, repeat) (rule 4).

    `repeat` counts the saves that one attempt made at one step (the open tail of an epoch, then what the tail
    changed); the first is 0 and does not show in the name.
    """

    attempt: int
    step: int
    repeat: int
    nonce: str

    @property
    def name(self) -> str:
        """The folder under `checkpoints/`, e.g. `00003-k7f2-000000001200` or `00003-k7f2-000000001200+1`."""
        suffix = f"+{self.repeat}" if self.repeat else ""
        return f"{self.attempt:05d}-{self.nonce}-{self.step:012d}{suffix}"

    @property
    def commit_key(self) -> str:
        """Key of the object whose existence makes the checkpoint exist."""
        return f"checkpoints/{self.name}/commit.json"

    def manifest_key(self, rank: int) -> str:
        """Key of one rank's manifest."""
        return f"checkpoints/{self.name}/rank-{rank:05d}.json"

    def segment_key(self, rank: int, index: int) -> str:
        """Key of the `index`-th segment that `rank` writes for this checkpoint."""
        suffix = f"+{self.repeat}" if self.repeat else ""
        return f"segments/{self.attempt:05d}-{self.nonce}/{self.step:012d}{suffix}-{rank:05d}-{index:03d}.bin"


def parse_checkpoint_name(name: str) -> CheckpointId | None:
    """Read a folder name under `checkpoints/`; None if it is not one of ours."""
    match = _CHECKPOINT_NAME.match(name)
    if match is None:
        return None
    attempt, nonce, step, repeat = match.groups()
    return CheckpointId(int(attempt), int(step), int(repeat or 0), nonce)


def attempt_key(number: int) -> str:
    """Key of an attempt's record."""
    return f"attempts/{number:05d}.json"


def parse_attempt_key(key: str) -> int | None:
    """The attempt's number; None if the key is not an attempt's."""
    match = _ATTEMPT_KEY.match(key)
    return int(match.group(1)) if match else None


def events_folder(attempt: int, nonce: str, rank: int) -> str:
    """Folder of one rank's events parts in one attempt."""
    return f"events/{attempt:05d}-{nonce}-{rank:05d}"


def output_folder(attempt: int, nonce: str, rank: int) -> str:
    """Folder of what one rank has printed in one attempt."""
    return f"output/{attempt:05d}-{nonce}-{rank:05d}"


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`."""

    format: int
    run_id: str
    created_utc: str


class ProcessId(msgspec.Struct, frozen=True, kw_only=True):
    """One process of one machine, told apart from a later one that got the same pid."""

    host: str
    machine: str
    """Boot id and pid namespace: equal only where /proc shows the same processes."""
    pid: int
    start_ticks: int
    """Field 22 of /proc/<pid>/stat."""


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`attempts/00003.json`: claimed by create-if-absent before it trains, immutable."""

    format: int
    run_id: str
    attempt: int
    nonce: str
    claimed_utc: str
    world_size: int
    global_batch: int | None
    launch_id: str
    job_id: str | None
    agent: ProcessId
    trainer: ProcessId
    settings: dict[str, Json]
    resumed_from: str | None
    keep: Keep = Keep()
    """Which checkpoints the script asked to keep: a prune by hand keeps the same."""
    capacity: Capacity | None = None
    """The machine and its price, as far as they were known at the start."""


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A digest-checked range of a segment: `segment[at : at + nbytes]`."""

    segment: str
    at: int
    nbytes: int
    digest: str


class Slice(msgspec.Struct, frozen=True):
    """A box of a tensor, in row-major order, as consecutive chunks.

    `offset` and `shape` are per dimension, in elements of the global tensor; both are empty for a scalar.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


class TensorRecord(msgspec.Struct, frozen=True):
    """One tensor: its global shape, torch dtype name (`bfloat16`), device type when saved, and the boxes held."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    slices: tuple[Slice, ...]


class BestValue(msgspec.Struct, frozen=True):
    """A metric, which way is better, and the value that was the best so far."""

    metric: str
    mode: Literal["min", "max"]
    value: float


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`rank-00000.json`: everything one rank saved at one safe point."""

    format: int
    run_id: str
    attempt: int
    nonce: str
    step: int
    repeat: int
    rank: int
    world_size: int
    reason: Reason
    pinned: bool
    finished: bool
    saved_utc: str
    digest_algorithm: str
    tree: Json
    """The plain values, with tensors referred to by name (`state/tree.py` writes and reads it)."""
    position: Json
    settings: dict[str, Json]
    tensors: tuple[TensorRecord, ...]
    events: str | None
    """Key of the last events part that reaches to this step, durable before the commit (rule 12)."""
    saves_since_full: int
    """How many saves ago every byte was written anew; 0: by this one (rule 6)."""
    full_utc: str
    """When that was, ISO 8601."""
    best: BestValue | None
    """Set where this checkpoint was the best so far by a logged metric."""


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """`commit.json`: the same bytes whoever puts it."""

    format: int
    run_id: str
    attempt: int
    nonce: str
    step: int
    repeat: int
    world_size: int
    reason: Reason
    pinned: bool
    finished: bool
    manifests: dict[str, str]
    """`rank-00000.json` -> digest of that object's bytes."""


def digest(data: bytes | memoryview) -> str:
    """XXH3-128 of the bytes, as 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def seal(record: msgspec.Struct) -> bytes:
    """Encode a record as one JSON object that ends with the digest of its own bytes."""
    body = msgspec.json.encode(record)
    return body[:-1] + f',"digest":"{DIGEST_ALGORITHM}:{digest(body[:-1])}"}}'.encode()


def unseal(data: bytes, kind: type[Record], key: str) -> Record:
    """Check and decode a sealed record.

    Raises:
        ObjectDamaged: the bytes are cut, changed, or not of this kind.
        FormatTooNew: it says a format version that is newer than this Outlast's.
    """
    match = _SEAL.search(data[-64:])
    sealed = len(data) - (len(match.group(0)) if match else 0)
    if match is None or digest(memoryview(data)[:sealed]) != match.group(1).decode():
        msg = f"{key}: its digest does not fit its {len(data)} bytes: the object is cut or was changed"
        raise ObjectDamaged(msg)
    body = data[:sealed] + b"}"
    try:
        version = msgspec.json.decode(body, type=_Versioned).format
        if version <= FORMAT_VERSION:
            return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{key}: not a {kind.__name__}: {error}"
        raise ObjectDamaged(msg) from error
    msg = (
        f"{key} has format version {version}; this Outlast reads up to {FORMAT_VERSION}. "
        "Install the Outlast that wrote it, or a newer one."
    )
    raise FormatTooNew(msg)


class _Versioned(msgspec.Struct):
    format: int = FORMAT_VERSION


def settings_json(value: Any) -> Json:
    """Return `value` as plain JSON data, through one encode and decode."""
    return msgspec.json.decode(msgspec.json.encode(value))


settle(RunRecord, AttemptRecord, Manifest, Commit, _Versioned)
