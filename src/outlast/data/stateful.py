"""A loader that has a state of its own: torchdata's StatefulDataLoader, mosaicml streaming's, and the like."""

# ruff: noqa: D102  # `Source` documents the methods

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch.utils.data import IterableDataset

from outlast._types import Guarantee, Json
from outlast.data.batches import samples_in
from outlast.data.generators import Generators, Stream
from outlast.data.sampled import reseed_generators
from outlast.data.seeds import Use, derive, triples
from outlast.data.source import (
    changed_guarantee,
    check_position,
    forgotten_guarantee,
    has_state,
    is_own,
    kind_of,
)
from outlast.data.workers import notices_held, shield

_END = object()


class StatefulSource:
    """Batches of a loader with `state_dict` and `load_state_dict`, which keep its position.

    Each epoch it is iterated under generators of its own, seeded from (seed, epoch), as are the generators that the loader
    and its sampler hold: an epoch's order then follows from the seed, not from what was drawn before. Where these streams
    stand is saved beside the loader's state.

    An epoch that had ended when the position was taken resumes to no batches. Loaders differ in what they do when they are
    put back at an epoch's end (an empty epoch, or the next one at once), so both are seen to here.
    """

    def __init__(self, loader: Any, *, seed: int, rank: int) -> None:
        self._loader = loader
        self._seed = seed
        self._rank = rank
        self._generators = Generators()
        self._stream = self._seeded_stream(0)
        self._batch_size: int | None = getattr(loader, "batch_size", None)
        self.notes = [f"{kind_of(loader)} keeps its own position: used through its state_dict"]
        self._best = self._promise()
        self.guarantee = self._best
        self.batches_done = 0
        self.samples_done = 0
        self._epoch = 0
        self._exhausted = False
        self._ended: Json = None

    def describe(self) -> dict[str, Json]:
        return {
            **self._identity(),
            "dataset": kind_of(getattr(self._loader, "dataset", self._loader)),
            "batch_size": self._batch_size if isinstance(self._batch_size, int) else None,
            "num_workers": getattr(self._loader, "num_workers", 0),
        }

    def __len__(self) -> int:
        return len(self._loader)

    def begin(self, epoch: int, position: Json | None) -> Iterator[Any]:
        self.guarantee = self._best
        self._exhausted = False
        self._epoch, self.batches_done, self.samples_done = epoch, 0, 0
        if position is not None and position["epoch"] != epoch:
            self._ended = position if self._can_load(position) else None
            if self._ended is None and not self._is_torchdata:
                self.guarantee = min(self._best, forgotten_guarantee(self._loader))
            position = None
        if position is not None:
            if not check_position(position, self._identity()):
                self.guarantee = changed_guarantee()
                if not is_own(position, {name: self._identity()[name] for name in ("kind", "loader")}):
                    return self._hand_out(self._start(epoch, None))
            self.batches_done, self.samples_done = position["batches"], position["samples"]
            if position.get("ended"):
                self._ended = position
                return iter(())
        return self._hand_out(self._start(epoch, position))

    def position(self) -> Json:
        if self._ended is not None:
            return self._ended
        return {
            "data": self._identity(),
            "epoch": self._epoch,
            "batches": self.batches_done,
            "samples": self.samples_done,
            "ended": self._has_ended(),
            "made": self._made(),
            "state": self._state() if self.batches_done else None,
            "stream": self._stream.state(),
        }

    def _promise(self) -> tuple[Guarantee, str]:
        loader = kind_of(self._loader)
        dataset = getattr(self._loader, "dataset", None)
        if isinstance(dataset, IterableDataset) and not has_state(dataset):
            # torchdata counts what is to be skipped from the last resume on, not from the epoch's start.
            reason = (
                f"{kind_of(dataset)} has no state_dict and load_state_dict, without which {loader} may give wrong samples from "
                "an epoch's second resume on"
            )
            return Guarantee.APPROXIMATE, reason
        reason = f"the position is what {loader} makes of its own state; random numbers drawn in its workers are not saved"
        return Guarantee.SAME_ORDER, reason

    def _identity(self) -> dict[str, Json]:
        return {
            "kind": "stateful",
            "loader": kind_of(self._loader),
            "length": self._length(),
            "seed": self._seed,
        }

    def _made(self) -> dict[str, Json]:
        """What else a state hangs on; torchdata's fits no other number of workers."""
        described = self.describe()
        names = ("dataset", "batch_size", "num_workers") if self._is_torchdata else ("dataset",)
        return {name: described[name] for name in names}

    def _can_load(self, position: Json) -> bool:
        """Tell whether an earlier epoch's state is this loader's own."""
        return is_own(position, self._identity()) and position.get("made") == self._made()

    @property
    def _is_torchdata(self) -> bool:
        return hasattr(self._loader, "next_iter_state")

    def _length(self) -> int | None:
        dataset = getattr(self._loader, "dataset", None)
        try:
            return len(dataset) if dataset is not None else None
        except (TypeError, NotImplementedError):
            return None

    def _has_ended(self) -> bool:
        # The length of a loader over an iterable data set is an estimate.
        if self._exhausted or isinstance(getattr(self._loader, "dataset", None), IterableDataset):
            return self._exhausted
        try:
            return self.batches_done >= len(self._loader)
        except (TypeError, NotImplementedError):
            return False

    def _seeded_stream(self, epoch: int) -> Stream:
        return Stream(self._generators, triples(derive(Use.STREAM, self._seed, epoch, self._rank), [0])[0])

    def _start(self, epoch: int, position: Json | None) -> Iterator[Any]:
        ended, self._ended = self._ended, None
        resumed = position if position is not None and position.get("state") is not None else None
        if ended is not None and ended.get("state") is not None:
            self._load(ended["state"])
            making = self._iterate(epoch)
            # torchdata's has used up the state by now, and starts the epoch anew below,
            # under the same seeds as where it ended. Of the others, some first give what was left of the epoch: nothing.
            if not self._is_torchdata:
                with self._stream:
                    first = next(making, _END)
                if first is not _END:
                    return chain([first], making)
        if resumed is not None:
            self._load(resumed["state"])
        making = self._iterate(epoch)
        if resumed is not None:
            self._stream.load(resumed["stream"])
        return making

    def _load(self, state: Any) -> None:
        with self._stream:
            self._loader.load_state_dict(state)

    def _state(self) -> Any:
        with self._stream:
            return self._loader.state_dict()

    def _iterate(self, epoch: int) -> Iterator[Any]:
        self._stream = self._seeded_stream(epoch)
        sampler = getattr(self._loader, "sampler", None)
        for holder in (self._loader, sampler, getattr(self._loader, "batch_sampler", None)):
            reseed_generators(holder, derive(Use.STREAM, self._seed, epoch, self._rank, 1))
        for holder in (self._loader, sampler or self._loader):
            if callable(getattr(holder, "set_epoch", None)):
                holder.set_epoch(epoch)
        shield(self._loader)
        with self._stream, notices_held():
            return iter(self._loader)

    def _hand_out(self, making: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self._stream:
                batch = next(making, _END)
            if batch is _END:
                self._exhausted = True
                return
            self.batches_done += 1
            self.samples_done += samples_in(batch, self._batch_size)
            yield batch
