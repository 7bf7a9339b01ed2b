"""The contract of a store: immutable objects under one run's URL.

Keys are relative to the run, with `/` between parts (`checkpoints/.../commit.json`). Once `put`, `create` or
`write` has returned, the object is durable, whole and visible to every reader. A crash inside one of them leaves
nothing under the key, or (`write` only) bytes that nothing refers to.

Every method raises `StoreUnavailable`, `StoreDenied`, `StoreFull`, `ObjectMissing` or `ObjectDamaged` and nothing
else; each message names the store and the key. Transient faults are retried inside, with a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing: its key and its size in bytes."""

    key: str
    size_bytes: int


class Unwanted(Exception):
    """A write was given up by who had asked for it: nobody reads its parts any more. Its object may still appear, and whole."""


class Store(Protocol):
    """One run's objects. Implementations are thread-safe."""

    @property
    def url(self) -> str:
        """Where it is, without credentials: `file:///...` or `s3://bucket/prefix` (`gs://`, `az://`)."""

    @property
    def is_local_disk(self) -> bool:
        """Whether this is a disk of this machine, so that it does not outlive it (shared filesystems do)."""

    @property
    def honours_create(self) -> bool:
        """Whether `create` is exclusive here; probed at the first question, once."""

    def create(self, key: str, data: bytes) -> bool:
        """Put `data` only if `key` does not exist; False if it does.

        On a store that ignores create-if-absent (found by a probe, once per store) this is check, put and read
        back: two claimants at the same instant may then both get True, and must be told apart by what they wrote.
        """

    def put(self, key: str, data: bytes) -> None:
        """Put a small object whole. The same bytes again are harmless; `ObjectDamaged` if other bytes are there."""

    def write(
        self, key: str, parts: Sequence[memoryview], *, is_wanted: Callable[[], bool] | None = None
    ) -> None:
        """Write one large object: the parts, in order, without joining them in memory.

        Over a line, `is_wanted` is asked meanwhile, several times a second; once it says False, the write ends with `Unwanted`.
        """

    def get(self, key: str) -> bytes:
        """Return a whole small object."""

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fill `target` from `offset` of the object; `ObjectDamaged` if the object is too short."""

    def list(self, prefix: str = "") -> Iterable[ObjectInfo]:
        """List every object below the folder `prefix` (with or without `/` at its end), sorted by key: all or an error."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is already gone is no error."""
