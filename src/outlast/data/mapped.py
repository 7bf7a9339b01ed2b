"""A map-style data set in Outlast's own order."""

# ruff: noqa: D102  # `Source` documents the methods

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from outlast._errors import ConfigError
from outlast._types import Guarantee, Json
from outlast.data.fetch import Request
from outlast.data.order import Order
from outlast.data.pipeline import Options, Pipeline
from outlast.data.source import changed_guarantee, check_position, kind_of

_BLOCK_SAMPLES = 8192
"""Positions looked up at a time: 1 ms of work, 128 KiB."""


class MapSource:
    """Batches of a map-style data set: any position of any epoch at once, for any number of ranks and workers.

    A global batch is the next `batch_size * world_size` positions of the epoch, of which rank r takes the r-th
    `batch_size`. What is left at the end and not dropped is divided evenly; where it cannot be, `pad` fills up from the
    epoch's start, so that every rank takes as many steps (as torch's DistributedSampler does); else the rest is left out.

    Args:
        dataset: with `__len__` and `__getitem__`.
        batch_size: samples of one rank's batch; None: samples are handed out one by one, not collated.
        options: workers, collation and the like.
        shuffle, drop_last: as torch's.
        seed, rank, world_size: as `take_over`'s.
        pad: what is done with a rest that cannot be divided.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None,
        options: Options,
        *,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        pad: bool = True,
    ) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._pad = pad
        self._pipeline = Pipeline(
            dataset, options, seed=seed, rank=0, batched=batch_size is not None, by_index=True
        )
        self.notes: list[str] = []
        self._best = best_guarantee(dataset)
        self.guarantee = self._best
        self.batches_done = 0
        self.samples_done = 0
        self._epoch = 0
        self._length = _length(dataset)

    def describe(self) -> dict[str, Json]:
        return {
            **self._identity(),
            "dataset": kind_of(self._dataset),
            "batch_size": self._batch_size,
            "drop_last": self._drop_last,
            "world_size": self._world_size,
        }

    def __len__(self) -> int:
        whole, rest = divmod(_length(self._dataset), self._step)
        return whole + (not self._drop_last and self._share(rest) > 0)

    def begin(self, epoch: int, position: Json | None) -> Iterator[Any]:
        self._length = _length(self._dataset)
        self.guarantee = self._best
        self._epoch, self.batches_done, self.samples_done = epoch, 0, 0
        if position is not None and position["epoch"] == epoch:
            self._continue_at(position)
        start = self.samples_done
        batches = self._pipeline.run(self._requests(epoch, start), epoch)
        return self._hand_out(batches)

    def position(self) -> Json:
        return {
            "data": self._identity(),
            "epoch": self._epoch,
            "batches": self.batches_done,
            "samples": self.samples_done,
            "step": self._step,
        }

    @property
    def _step(self) -> int:
        return (self._batch_size or 1) * self._world_size

    def _identity(self) -> dict[str, Json]:
        return {
            "kind": "map",
            "length": _length(self._dataset),
            "shuffle": self._shuffle,
            **({"seed": self._seed} if self._shuffle else {}),
        }

    def _continue_at(self, position: Json) -> None:
        same = check_position(position, self._identity())
        self.samples_done = min(position["samples"], self._length)
        self.batches_done = position["batches"]
        saved_step = position.get("step")
        if not same:
            self.guarantee = changed_guarantee()
        elif saved_step != self._step:
            self.batches_done = self.samples_done // self._step
            reason = f"a step took {saved_step} samples, and takes {self._step} now"
            self.guarantee = min(self._best, (Guarantee.SAME_ORDER, reason))
            self.notes.append(
                f"{reason}: the epoch goes on at sample {self.samples_done:,}, batch {self.batches_done:,}"
            )

    def _hand_out(self, batches: Iterator[Any]) -> Iterator[Any]:
        step, length = self._step, self._length
        for batch in batches:
            self.batches_done += 1
            self.samples_done = min(self.samples_done + step, length)
            yield batch

    def _requests(self, epoch: int, start: int) -> Iterator[Request]:
        order = Order(self._seed, epoch, self._length, self._shuffle)
        step, size, offset = self._step, self._batch_size or 1, self._rank * (self._batch_size or 1)
        whole_until = start + (self._length - start) // step * step
        block = max(_BLOCK_SAMPLES // step, 1) * step
        for block_start in range(start, whole_until, block):
            indices = order.indices(block_start, min(block_start + block, whole_until)).tolist()
            for at in range(offset, len(indices), step):
                mine = indices[at : at + size]
                yield epoch, block_start + at, mine if self._batch_size is not None else mine[0]
        share = 0 if self._drop_last else self._share(self._length - whole_until)
        if share:
            mine = self._rest(order, whole_until, share)
            yield epoch, whole_until + self._rank * share, mine if self._batch_size is not None else mine[0]

    def _share(self, rest: int) -> int:
        """Return how many of the last, incomplete global batch each rank takes."""
        return -(-rest // self._world_size) if self._pad else rest // self._world_size

    def _rest(self, order: Order, start: int, share: int) -> list[int]:
        first = start + self._rank * share
        return [
            int(order.indices(at, at + 1)[0])
            for at in (position % self._length for position in range(first, first + share))
        ]


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except TypeError as error:
        msg = (
            f"{kind_of(dataset)} has no length: expected a map-style data set with __len__ and __getitem__. An iterable "
            "data set goes into torch's own DataLoader"
        )
        raise ConfigError(msg) from error


def best_guarantee(dataset: Any) -> tuple[Guarantee, str]:
    """Return what a resume can promise whose order and random numbers all follow from the seed."""
    owned = [
        name
        for name, value in getattr(dataset, "__dict__", {}).items()
        if isinstance(value, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random))
    ]
    if owned:
        reason = (
            f"the data set draws from a generator of its own ({', '.join(owned)}), whose state nobody saves; numbers from "
            "torch's, numpy's or python's global one would come back"
        )
        return Guarantee.SAME_ORDER, reason
    return Guarantee.BIT_EXACT, "order and random numbers of every sample follow from the seed"
