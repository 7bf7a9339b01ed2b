"""From requests to batches: in this process, or in torch's workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data._utils.pin_memory import pin_memory

from outlast.data.fetch import Fetch, Request
from outlast.data.seeds import Use, derive
from outlast.data.workers import ShieldedInit, notices_held


@dataclass(frozen=True)
class Options:
    """How batches are made: the arguments of torch's DataLoader that have no say in their order."""

    collate_fn: Callable[[Any], Any]
    num_workers: int = 0
    pin_memory: bool = False
    worker_init_fn: Callable[[int], Any] | None = None
    prefetch_factor: int | None = None
    persistent_workers: bool = False
    timeout: float = 0
    multiprocessing_context: Any = None


class Pipeline:
    """Turn requests into batches, in their order.

    Args:
        dataset: the user's, map-style.
        options: how.
        seed, rank, batched, by_index: as in `Fetch`.
    """

    def __init__(
        self, dataset: Any, options: Options, *, seed: int, rank: int, batched: bool, by_index: bool
    ) -> None:
        draws: MutableSequence[int] = bytearray(2)
        if options.num_workers:
            # Raw shared memory: all workers learn what one has seen, with any start method, and need no lock.
            draws = multiprocessing.RawArray("B", 2)
        self._seed = seed
        self._fetch = Fetch(
            dataset, options.collate_fn, seed=seed, rank=rank, batched=batched, by_index=by_index, draws=draws
        )
        self._pin = options.pin_memory
        self._context = options.multiprocessing_context
        self._worker_init_fn = options.worker_init_fn
        self._requests = _Requests()
        self._workers: TorchLoader[Any] | None = None
        if options.num_workers:
            self._generator = torch.Generator()
            self._workers = _Workers(
                self._fetch,  # type: ignore[arg-type]  # torch needs no more than __getitem__
                batch_size=None,
                sampler=self._requests,
                num_workers=options.num_workers,
                collate_fn=_as_it_is,
                pin_memory=options.pin_memory,
                timeout=options.timeout,
                multiprocessing_context=options.multiprocessing_context,
                generator=self._generator,
                prefetch_factor=options.prefetch_factor,
                persistent_workers=options.persistent_workers,
            )

    def run(self, requests: Iterable[Request], epoch: int) -> Iterator[Any]:
        """Start on an epoch's requests; workers are started before this returns."""
        if self._workers is None:
            return self._in_process(requests)
        self._requests.current = requests
        # torch draws the workers' base seed here.
        self._generator.manual_seed(derive(Use.WORKERS, self._seed, epoch) >> 1)
        self._workers.worker_init_fn = ShieldedInit(self._worker_init_fn, self._context)
        with notices_held():
            return iter(self._workers)

    def _in_process(self, requests: Iterable[Request]) -> Iterator[Any]:
        pin = self._pin and torch.accelerator.is_available()
        for request in requests:
            batch = self._fetch[request]
            yield _pinned(batch) if pin else batch


class _Requests:
    """The sampler of torch's loader: whatever the epoch that is being started asks for."""

    def __init__(self) -> None:
        self.current: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.current)


class _Workers(TorchLoader[Any]):
    def check_worker_number_rationality(self) -> None:
        """Say nothing: the loader that the user made has warned."""


def _pinned(batch: Any) -> Any:
    return pin_memory(batch)  # type: ignore[no-untyped-call]  # torch's own


def _as_it_is(batch: Any) -> Any:
    return batch
