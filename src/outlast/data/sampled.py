"""A map-style data set in the order of a sampler, or batch sampler, that the user wrote or chose."""

# ruff: noqa: D102  # `Source` documents the methods

from __future__ import annotations

import copy
import random
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash

from outlast._errors import DataChanged
from outlast._types import Guarantee, Json
from outlast.data.fetch import Request
from outlast.data.generators import Generators, Stream
from outlast.data.mapped import best_guarantee
from outlast.data.past import Past, past_of
from outlast.data.pipeline import Options, Pipeline
from outlast.data.seeds import Use, derive, triples
from outlast.data.source import (
    changed_guarantee,
    check_position,
    forgotten_guarantee,
    has_state,
    is_own,
    kind_of,
)

_END = object()

_REPLAYED_DRAWS = 10_000_000
_REPLAYED_S = 60.0
"""Up to so many draws and seconds, a sampler is made to draw its earlier epochs again: some seconds in most cases."""

_AT_ONCE = 65_536
"""Draws of a replay that are held at a time: 2 MB of integers."""


class _Drawn(NamedTuple):
    """A request's indices while its batch is on the way, with where the sampler stood after them."""

    indices: Any
    size: int
    state: Any


class SamplerSource:
    """Batches of a map-style data set, in the order of a sampler that is created anew each epoch.

    The sampler is iterated under generators seeded from (seed, epoch): torch's, numpy's, python's and any that it holds.
    So a resume draws the same indices again and throws away those that were used; nothing is fetched for them. A sampler
    that has a `state_dict` is put back by it instead. Indices are drawn when a batch is asked for (as early as workers
    prefetch it), never further ahead, and the trainer's generators do not notice. One that is not torch's own and is not told
    its epoch (it has no `set_epoch`) may count epochs itself, or shuffle in place: in a new process it is first made to draw
    its earlier epochs again. Ranks draw differently, unless the
    sampler knows of ranks itself (it has `rank` or `num_replicas`).

    Args:
        dataset: with `__getitem__`.
        sampler: gives indices, or with `gives_batches` lists of them.
        options: workers, collation and the like.
        batch_size, drop_last: how indices are batched; None: one by one, not collated.
        gives_batches: whether the sampler is a batch sampler.
        seed, rank, world_size: as `take_over`'s.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: Any,
        options: Options,
        *,
        batch_size: int | None,
        drop_last: bool,
        gives_batches: bool,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._dataset = dataset
        self._sampler = sampler
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._gives_batches = gives_batches
        self._seed = seed
        self._world_size = world_size
        self._rank = 0 if _knows_ranks(sampler) else rank
        self._pipeline = Pipeline(
            dataset,
            options,
            seed=seed,
            rank=rank,
            batched=gives_batches or batch_size is not None,
            by_index=False,
        )
        self._generators = Generators()
        self._stream = self._seeded_stream(0)
        self._stateful = has_state(sampler)
        self._past = None if self._stateful else past_of(_parts(sampler))
        how = (
            "its state_dict puts it back at a resume"
            if self._stateful
            else "created anew each epoch from (seed, epoch); a resume draws the indices that were used again, and fetches nothing for them"
        )
        self.notes = [f"took over the DataLoader, and kept its {kind_of(sampler)}: {how}"]
        self._best = self._promise()
        self.guarantee = self._best
        self.batches_done = 0
        self.samples_done = 0
        self._mine = 0
        self._epoch = 0
        self._on_the_way: deque[_Drawn] = deque()
        self._last: _Drawn | None = None
        self._ended: Json = None

    def describe(self) -> dict[str, Json]:
        return {
            **self._identity(),
            "dataset": kind_of(self._dataset),
            "batch_size": self._batch_size,
            "drop_last": self._drop_last,
            "world_size": self._world_size,
        }

    def __len__(self) -> int:
        size: int = len(self._sampler)
        if self._gives_batches or self._batch_size is None:
            return size
        return size // self._batch_size if self._drop_last else -(-size // self._batch_size)

    def begin(self, epoch: int, position: Json | None) -> Iterator[Any]:
        self.guarantee = self._best
        self._epoch, self.batches_done, self.samples_done, self._mine = epoch, 0, 0, 0
        self._last = None
        self._on_the_way.clear()
        if position is not None and position["epoch"] != epoch:
            self._ended = position if is_own(position, self._identity()) else None
            if self._ended is None and (self._stateful or (self._past is not None and not self._past.begun)):
                self.guarantee = min(self._best, forgotten_guarantee(self._sampler))
            position = None
        if position is not None and position.get("ended"):
            check_position(position, self._identity())
            self._stand_at(position)
            self._ended = position
            return iter(())
        self._draw_earlier_epochs(position or self._ended, epoch)
        drawing = self._start(epoch)
        if position is not None:
            drawing = self._continue_at(position, drawing)
        return self._hand_out(self._pipeline.run(self._requests(drawing, epoch), epoch))

    def position(self) -> Json:
        if self._ended is not None:
            return self._ended
        last, length = self._last, self._known_length()
        ended = length is not None and self.batches_done >= length
        return {
            "data": self._identity(),
            "epoch": self._epoch,
            "batches": self.batches_done,
            "samples": self.samples_done,
            "mine": self._mine,
            "batch_size": self._batch_size,
            "world_size": self._world_size,
            "last": None if last is None else _digest(last.indices),
            "state": None if last is None else last.state,
            "past": None if self._past is None else self._past.state(ended=ended),
            "ended": ended,
        }

    def _seeded_stream(self, epoch: int) -> Stream:
        return Stream(self._generators, triples(derive(Use.SAMPLER, self._seed, epoch, self._rank), [0])[0])

    def _promise(self) -> tuple[Guarantee, str]:
        if self._stateful:
            reason = f"the order is what {kind_of(self._sampler)} makes of its own state"
            return min(best_guarantee(self._dataset), (Guarantee.SAME_ORDER, reason))
        return best_guarantee(self._dataset)

    def _identity(self) -> dict[str, Json]:
        return {
            "kind": "sampler",
            "sampler": kind_of(self._sampler),
            "length": _length(self._dataset),
            "seed": self._seed,
        }

    def _known_length(self) -> int | None:
        try:
            return len(self)
        except TypeError:
            return None

    def _draw_earlier_epochs(self, position: Json, epoch: int) -> None:
        """Let a sampler that may depend on its earlier epochs stand as it did, or promise less."""
        past = self._past
        if past is None or past.begun or position is None:
            return
        if position.get("past") is not None:
            past.load(position["past"], epoch)
        if position.get("past") is None or (position["epoch"] != epoch and not past.whole):
            past.forget()
            self.guarantee = min(self._best, forgotten_guarantee(self._sampler))
            return
        started, total, expected, found = time.monotonic(), past.draws, past.order, None
        for done, (earlier, draws, ended) in enumerate(list(past.epochs())):
            if total > _REPLAYED_DRAWS or time.monotonic() - started > _REPLAYED_S:
                past.forget(kept=done)
                reason = (
                    f"the order of {kind_of(self._sampler)} may depend on earlier epochs, and to draw their {total:,} indices "
                    "again takes too long; give it a set_epoch, or a state_dict and a load_state_dict"
                )
                self.guarantee = min(self._best, (Guarantee.NO_REPEAT_NO_SKIP, reason))
                self.notes.append(reason)
                return
            found = self._draw_again(earlier, draws, ended=ended)
        if total:
            self.notes.append(
                f"drew {total:,} indices of {kind_of(self._sampler)} again, those of earlier epochs, on which its order may "
                f"depend: {time.monotonic() - started:.1f} s. A set_epoch or a state_dict would spare that"
            )
        if None not in {expected, found} and expected != found:
            reason = f"{kind_of(self._sampler)} drew other indices for an earlier epoch than before, though under the same seeds"
            self.guarantee = min(self._best, (Guarantee.APPROXIMATE, reason))
            self.notes.append(reason)

    def _draw_again(self, epoch: int, draws: int, *, ended: bool) -> str | None:
        drawing = self._iterate(epoch)
        again = Past()
        again.enter(epoch)
        with self._stream:
            while draws > 0:
                chunk = list(islice(drawing, min(draws, _AT_ONCE)))
                if not chunk:
                    break
                for part in chunk if self._gives_batches else [chunk]:
                    again.drew(1, part, ended=False)
                draws -= len(chunk)
            if (
                ended
            ):  # it may count what it did when it is asked for more; a last short batch was dropped, too
                deque(islice(drawing, _AT_ONCE), maxlen=0)
        return again.digest()

    def _start(self, epoch: int) -> Iterator[Any]:
        """Iterate the sampler from the epoch's start, as every attempt does."""
        ended, self._ended = self._ended, None
        if self._past is not None:
            self._past.enter(epoch)
        if self._stateful and ended is not None and ended.get("state") is not None:
            # It may count epochs in its state. Put back at an epoch's end, some give an empty rest first, some the next
            # epoch at once.
            self._sampler.load_state_dict(copy.deepcopy(ended["state"]))
            drawing = self._iterate(epoch)
            with self._stream:
                first = next(drawing, _END)
            if first is not _END:
                return chain([first], drawing)
        return self._iterate(epoch)

    def _iterate(self, epoch: int) -> Iterator[Any]:
        self._stream = self._seeded_stream(epoch)
        for part in _parts(self._sampler):
            reseed_generators(part, derive(Use.SAMPLER, self._seed, epoch, self._rank, 1))
            if callable(getattr(part, "set_epoch", None)):
                part.set_epoch(epoch)
        with self._stream:
            return iter(self._sampler)

    def _continue_at(self, position: Json, drawing: Iterator[Any]) -> Iterator[Any]:
        same = check_position(position, self._identity())
        self._stand_at(position)
        if self._stateful and same and position.get("state") is not None:
            self._sampler.load_state_dict(copy.deepcopy(position["state"]))
            self._last = _Drawn(None, 0, position["state"])
            with self._stream:
                return iter(self._sampler)
        started = time.monotonic()
        last = self._skip(drawing, position)
        took_s = time.monotonic() - started
        self.notes.append(
            f"drew {self._mine:,} indices of {kind_of(self._sampler)} again to find batch {self.batches_done:,}: {took_s:.1f} s"
        )
        if not same:
            self.guarantee = changed_guarantee()
        elif position["world_size"] != self._world_size:
            reason = (
                f"{kind_of(self._sampler)} draws for each rank by itself, and there were {position['world_size']} ranks, now "
                f"{self._world_size}"
            )
            self.guarantee = Guarantee.APPROXIMATE, reason
        elif position["last"] not in {None, _digest(last)}:
            reason = f"{kind_of(self._sampler)} drew other indices than before, though under the same seeds"
            self.guarantee = Guarantee.APPROXIMATE, reason
        elif position["batch_size"] != self._batch_size:
            reason = f"the batch size was {position['batch_size']} and is {self._batch_size}"
            self.guarantee = min(self.guarantee, (Guarantee.SAME_ORDER, reason))
        if self.guarantee < self._best:
            self.notes.append(self.guarantee[1])
        return drawing

    def _skip(self, drawing: Iterator[Any], position: Json) -> Any:
        """Draw what was used; return the indices of the last batch."""
        in_batches = self._gives_batches or self._batch_size is None
        count = position["batches"] if in_batches else self._mine
        with self._stream:
            # Two parts, so that the last batch's indices are kept and no others.
            keep = 1 if in_batches else min(count, position.get("batch_size") or 1)
            skipped = sum(1 for _ in islice(drawing, max(count - keep, 0)))
            kept = list(islice(drawing, min(keep, count)))
        if self._past is not None:
            self._past.drew(skipped + len(kept), None, ended=False)
        if skipped + len(kept) < count:
            msg = (
                f"{kind_of(self._sampler)} ended after {skipped + len(kept):,} draws, and the saved position is after {count:,}: "
                "expected a sampler that draws as many under the same seeds. Bring it back as it was"
            )
            raise DataChanged(msg)
        return kept[0] if in_batches and kept else kept

    def _stand_at(self, position: Json) -> None:
        self.batches_done = position["batches"]
        self.samples_done = position["samples"]
        self._mine = position.get("mine", position["samples"] // self._world_size)

    def _requests(self, drawing: Iterator[Any], epoch: int) -> Iterator[Request]:
        at = self._mine
        while True:
            with self._stream:
                indices = self._draw(drawing)
                state = copy.deepcopy(self._sampler.state_dict()) if self._stateful else None
            if indices is _END:
                return
            size = len(indices) if isinstance(indices, (list, tuple)) else 1
            self._on_the_way.append(_Drawn(indices, size, state))
            yield epoch, at, indices
            at += size

    def _draw(self, drawing: Iterator[Any]) -> Any:
        """Draw what makes a batch, and take note of it for a resume in a later epoch."""
        if self._gives_batches or self._batch_size is None:
            indices = next(drawing, _END)
            if self._gives_batches and indices is not _END and not isinstance(indices, (list, tuple)):
                indices = list(indices)  # type: ignore[call-overload]  # an iterable of indices
            count, short = int(indices is not _END), indices is _END
        else:
            indices = list(islice(drawing, self._batch_size))
            count, short = len(indices), len(indices) < self._batch_size
        if self._past is not None:
            self._past.drew(count, indices, ended=short)
        return _END if short and (self._drop_last or not count) else indices

    def _hand_out(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self._last = self._on_the_way.popleft()
            self.batches_done += 1
            self._mine += self._last.size
            self.samples_done += self._last.size * self._world_size
            yield batch


def reseed_generators(holder: Any, seed: int) -> None:
    """Start every generator that an object holds as an attribute anew; the process's own are left alone."""
    for value in list(getattr(holder, "__dict__", {}).values()):
        if isinstance(value, torch.Generator) and value is not torch.default_generator:
            value.manual_seed(seed >> 1)
        elif isinstance(value, np.random.Generator):
            value.bit_generator.state = type(value.bit_generator)(seed).state
        elif isinstance(value, np.random.RandomState):
            value.seed(seed & 0xFFFFFFFF)
        elif isinstance(value, random.Random):
            value.seed(seed)


def _parts(sampler: Any) -> list[Any]:
    """Return the sampler and those it wraps, each once."""
    parts: list[Any] = []
    while sampler is not None and not any(sampler is part for part in parts):
        parts.append(sampler)
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
    return parts


def _knows_ranks(sampler: Any) -> bool:
    return any(hasattr(part, "rank") or hasattr(part, "num_replicas") for part in _parts(sampler))


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None


def _digest(indices: Any) -> str:
    return xxhash.xxh3_64_hexdigest(
        repr(list(indices) if isinstance(indices, (list, tuple)) else indices).encode()
    )
