"""Loaders that know no position: a resume begins them anew and skips, or takes a sequence's index."""

# ruff: noqa: D102  # `Source` documents the methods

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from outlast._errors import ConfigError, DataChanged
from outlast._types import Guarantee, Json
from outlast.data.batches import fingerprint, samples_in
from outlast.data.generators import Generators, Stream
from outlast.data.seeds import Use, derive, triples
from outlast.data.source import changed_guarantee, check_position, kind_of
from outlast.data.workers import notices_held, shield

_END = object()


class ReplaySource:
    """Any iterable, replayed at a resume.

    Each epoch it is iterated under generators of its own (torch's, numpy's and python's, seeded from (seed, epoch)), put
    in place of the trainer's while a batch is made. So a replay draws the numbers of the first time, and the trainer's
    stay as they are. Whether it gives the same batches cannot be known beforehand: a digest of the last batch handed out is
    saved, and compared when the replay arrives there.

    An iterator that can be used once (it has `__next__`) is taken for one epoch: a resume, which gets a fresh one from the
    script, skips in it like in any other. A second epoch of it would be empty, and is refused.

    Args:
        loader: an iterable of batches.
        seed, rank: as `take_over`'s.
    """

    def __init__(self, loader: Any, *, seed: int, rank: int) -> None:
        self._loader = loader
        self._seed = seed
        self._rank = rank
        self._generators = Generators()
        self._batch_size: int | None = getattr(loader, "batch_size", None)
        self._once = hasattr(loader, "__next__")
        self._begun = False
        self._epoch = 0
        self._fingerprint: str | None = None
        self.notes = [
            (
                f"{kind_of(loader)} knows no position: a resume begins the epoch anew and skips the batches that were used, which "
                "takes as long as making them. A map-style data set in outlast.DataLoader resumes at once"
            )
        ]
        self._best = (
            Guarantee.SAME_ORDER,
            f"{kind_of(loader)} is replayed under the seeds of the first time, and its last batch compared",
        )
        self.guarantee = self._best
        self.batches_done = 0
        self.samples_done = 0

    def describe(self) -> dict[str, Json]:
        return {
            **self._identity(),
            "batch_size": self._batch_size if isinstance(self._batch_size, int) else None,
            "num_workers": getattr(self._loader, "num_workers", 0),
            "dataset": kind_of(getattr(self._loader, "dataset", self._loader)),
        }

    def __len__(self) -> int:
        return len(self._loader)

    def begin(self, epoch: int, position: Json | None) -> Iterator[Any]:
        if self._once and self._begun:
            msg = (
                f"{kind_of(self._loader)} is an iterator, which can be used once, and epoch {epoch} would use it again: pass "
                "the object that makes it (a DataLoader, a list, a class with __iter__)"
            )
            raise ConfigError(msg)
        self._begun = True
        self.guarantee = self._best
        self.batches_done = self.samples_done = 0
        self._fingerprint = None
        self._epoch = epoch
        if position is not None and position["epoch"] != epoch:
            position = None
        same = position is None or check_position(position, self._identity())
        stream = Stream(self._generators, triples(derive(Use.STREAM, self._seed, epoch, self._rank), [0])[0])
        if callable(getattr(self._loader, "set_epoch", None)):
            self._loader.set_epoch(epoch)
        shield(self._loader)
        with stream, notices_held():
            making = iter(self._loader)
        if position is not None and position["batches"]:
            self._skip(making, stream, position, same=same)
        return self._hand_out(making, stream)

    def position(self) -> Json:
        return {
            "data": self._identity(),
            "epoch": self._epoch,
            "batches": self.batches_done,
            "samples": self.samples_done,
            "last": self._fingerprint,
        }

    def _identity(self) -> dict[str, Json]:
        return {"kind": "iterable", "loader": kind_of(self._loader), "seed": self._seed}

    def _skip(self, making: Iterator[Any], stream: Stream, position: Json, *, same: bool) -> None:
        started, count, batch = time.monotonic(), position["batches"], None
        for done in range(count):
            with stream:
                batch = next(making, _END)
            if batch is _END:
                msg = (
                    f"{kind_of(self._loader)} ended after {done:,} batches, and the saved position is after {count:,}: expected "
                    "an epoch at least as long. Bring the data back as they were"
                )
                raise DataChanged(msg)
        self.batches_done, self.samples_done = count, position["samples"]
        self._fingerprint = fingerprint(batch)
        self.notes.append(
            f"replayed {count:,} batches of {kind_of(self._loader)} to find the position again: {time.monotonic() - started:.1f} s"
        )
        if not same:
            self.guarantee = changed_guarantee()
        elif position.get("last") != self._fingerprint:
            reason = (
                f"the replay of {kind_of(self._loader)} gave another batch {count - 1:,} than the first time: it does not depend "
                "on the seeded generators alone (number of workers, files, time, a generator of its own)"
            )
            self.guarantee = Guarantee.APPROXIMATE, reason
            self.notes.append(reason)

    def _hand_out(self, making: Iterator[Any], stream: Stream) -> Iterator[Any]:
        while True:
            with stream:
                batch = next(making, _END)
            if batch is _END:
                return
            self._fingerprint = fingerprint(batch)
            self.batches_done += 1
            self.samples_done += samples_in(batch, self._batch_size)
            yield batch


class SequenceSource:
    """A list, tuple or other sequence of batches: a resume goes to the batch by its number."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches
        self.notes: list[str] = []
        self.guarantee = Guarantee.BIT_EXACT, "the batches of a sequence are taken by their number"
        self._best = self.guarantee
        self._epoch = 0
        self.batches_done = 0
        self.samples_done = 0

    def describe(self) -> dict[str, Json]:
        return {**self._identity(), "dataset": kind_of(self._batches)}

    def __len__(self) -> int:
        return len(self._batches)

    def begin(self, epoch: int, position: Json | None) -> Iterator[Any]:
        self.guarantee = self._best
        self._epoch, self.batches_done, self.samples_done = epoch, 0, 0
        if position is not None and position["epoch"] == epoch:
            if not check_position(position, self._identity()):
                self.guarantee = changed_guarantee()
            self.batches_done, self.samples_done = position["batches"], position["samples"]
        return self._hand_out()

    def position(self) -> Json:
        return {
            "data": self._identity(),
            "epoch": self._epoch,
            "batches": self.batches_done,
            "samples": self.samples_done,
        }

    def _identity(self) -> dict[str, Json]:
        return {"kind": "sequence", "length": len(self._batches)}

    def _hand_out(self) -> Iterator[Any]:
        for number in range(self.batches_done, len(self._batches)):
            batch = self._batches[number]
            self.batches_done += 1
            self.samples_done += 1
            yield batch
