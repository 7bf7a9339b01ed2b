"""Fetch one batch, such that a sample's random numbers depend on nothing but (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence, Sequence
from typing import Any, TypeAlias

from outlast.data.generators import Generators, Saved
from outlast.data.seeds import Use, derive, triples

Request: TypeAlias = tuple[int, int, Any]
"""(epoch, position of the first sample in the epoch, indices): a list of them, or one index without collation."""

_FETCHED, _COLLATED = 0, 1
"""Places in `draws`."""


class Fetch:
    """A data set of batches: its item is what collation makes of the samples of one `Request`.

    Most data sets draw nothing, and must pay for no seeding. So the three generators are watched: their states are
    compared before and after a batch. As soon as one moved, the batch is thrown away, the generators are put back, and
    from then on that generator is seeded before every sample (or, where collation moved it, before every collation),
    and put back afterwards; the batch is fetched once more. So no sample was ever handed out that had drawn without
    being seeded, and which batch made the difference changes no value. A process fetches a batch anew at most six times in
    its life (three generators, samples or collation).

    What cannot be seen: a generator that the data set keeps to itself, and numbers drawn between a
    `torch.random.fork_rng()` and its end without seeding.

    Args:
        dataset: the user's, map-style.
        collate: makes a batch of a list of samples; not `batched`: of one sample.
        seed: the run's seed.
        rank: mixed in where ranks must not draw alike, else 0.
        batched: whether a request holds a list of indices to collate, or one index.
        by_index: seed by the sample's index; else by its position, where one index may come twice in an epoch.
        draws: masks of the generators seen to move while fetching and while collating, shared by all workers.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Any], Any],
        *,
        seed: int,
        rank: int,
        batched: bool,
        by_index: bool,
        draws: MutableSequence[int],
    ) -> None:
        self.dataset = dataset
        self._collate = collate
        self._seed_of_run = seed
        self._rank = rank
        self._batched = batched
        self._by_index = by_index
        self._draws = draws
        self._generators = Generators()
        self._has_getitems = callable(getattr(dataset, "__getitems__", None))
        self._epoch = -1
        self._epoch_bases = (0, 0)

    def __getitem__(self, request: Request) -> Any:
        before = self._generators.save()
        try:
            if not (self._draws[_FETCHED] or self._draws[_COLLATED]):
                batch = self._collate(self._samples(request[2]))
                if not self._generators.moved(before):
                    return batch
                self._generators.restore(before)
            return self._seeded(request, before)
        except BaseException:
            self._generators.restore(before)
            raise

    def __getstate__(self) -> dict[str, Any]:
        """Leave the generators out: they are those of a process."""
        return {name: value for name, value in vars(self).items() if name != "_generators"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._generators = Generators()

    def _seeded(self, request: Request, before: Saved) -> Any:
        epoch, position, indices = request
        for_samples, for_collation = self._bases(epoch)
        while True:
            fetching = self._draws[_FETCHED]
            if fetching:
                samples = self._samples_seeded(position, indices, fetching, for_samples)
            else:
                samples = self._samples(indices)
            new = self._generators.moved(before, fetching)
            self._generators.restore(before)
            if new:
                self._draws[_FETCHED] |= new
                continue
            collating = self._draws[_COLLATED]
            if collating:
                self._seed(collating, triples(for_collation, [position])[0])
            batch = self._collate(samples)
            new = self._generators.moved(before, collating)
            self._generators.restore(before)
            if not new:
                return batch
            self._draws[_COLLATED] |= new

    def _samples(self, indices: Any) -> Any:
        if not self._batched:
            return self.dataset[indices]
        if self._has_getitems:
            return self.dataset.__getitems__(indices)
        dataset = self.dataset
        return [dataset[index] for index in indices]

    def _samples_seeded(self, position: int, indices: Any, mask: int, base: int) -> Any:
        size = len(indices) if self._batched else 1
        if not self._by_index:
            keys: Sequence[int] = range(position, position + size)
        else:
            keys = indices if self._batched else [indices]
        seeds = triples(base, keys)
        if not self._batched:
            self._seed(mask, seeds[0])
            return self.dataset[indices]
        dataset = self.dataset
        samples = []
        chosen = [
            (place, generator.seed)
            for place, generator in enumerate(self._generators.all)
            if mask >> place & 1
        ]
        for index, triple in zip(indices, seeds, strict=True):
            for place, seed in chosen:
                seed(triple[place])
            samples.append(dataset[index])
        return samples

    def _seed(self, mask: int, triple: list[int]) -> None:
        for place, generator in enumerate(self._generators.all):
            if mask >> place & 1:
                generator.seed(triple[place])

    def _bases(self, epoch: int) -> tuple[int, int]:
        if self._epoch != epoch:
            self._epoch = epoch
            self._epoch_bases = (
                derive(Use.SAMPLE, self._seed_of_run, epoch, self._rank),
                derive(Use.COLLATE, self._seed_of_run, epoch, self._rank),
            )
        return self._epoch_bases
