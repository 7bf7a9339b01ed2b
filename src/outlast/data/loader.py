"""`outlast.DataLoader`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import IterableDataset, default_collate, default_convert

from outlast._errors import ConfigError
from outlast.data.mapped import MapSource
from outlast.data.pipeline import Options


class DataLoader:
    """Load batches of a map-style data set in an order that can be entered at any position.

    torch's loader draws its order from the trainer's generator, so that position 1,000,000 is known only after drawing
    everything before it. Here the order is a function of (seed, epoch), and every sample's random numbers one of (seed,
    epoch, index): `num_workers`, prefetching and a resume change no sample. In a `Run`, pass it to `run.batches` or
    `run.enumerate`. By itself it is an iterable whose n-th iteration is epoch n, unless `set_epoch` says otherwise; only
    a `Run` divides it among ranks.

    Args:
        dataset: with `__len__` and `__getitem__`, and `__getitems__` if it likes.
        batch_size: samples of a batch; None hands out single samples, not collated.
        seed: of order and random numbers; None: the run's, or 0 without a run.
        shuffle, num_workers, collate_fn, drop_last, pin_memory, worker_init_fn, prefetch_factor, persistent_workers, timeout,
            multiprocessing_context: as torch's DataLoader.

    Raises:
        ConfigError: the data set is an iterable one, or has no length.
        ValueError: arguments that contradict each other, as torch's loader says.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        *,
        shuffle: bool = False,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        drop_last: bool = False,
        pin_memory: bool = False,
        worker_init_fn: Callable[[int], Any] | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        timeout: float = 0,
        multiprocessing_context: Any = None,
        seed: int | None = None,
    ) -> None:
        if isinstance(dataset, IterableDataset):
            msg = (
                "outlast.DataLoader got an IterableDataset, which has no order to enter: expected a map-style data set with "
                "__len__ and __getitem__. Hand torch's DataLoader over it to the run: it is replayed at a resume"
            )
            raise ConfigError(msg)
        if batch_size is not None and batch_size < 1:
            msg = f"batch_size is {batch_size}: expected a positive number, or None for single samples"
            raise ValueError(msg)
        if batch_size is None and drop_last:
            msg = "drop_last=True with batch_size=None: there is no batch to drop. Leave one of them out"
            raise ValueError(msg)
        if not num_workers and (
            prefetch_factor is not None or persistent_workers or multiprocessing_context or timeout
        ):
            msg = (
                "prefetch_factor, persistent_workers, timeout and multiprocessing_context are settings of workers, and "
                "num_workers is 0: set it, or leave them out"
            )
            raise ValueError(msg)
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.seed = seed
        default = default_convert if batch_size is None else default_collate
        self._options = Options(
            collate_fn=collate_fn or default,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=worker_init_fn,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            timeout=timeout,
            multiprocessing_context=multiprocessing_context,
        )
        self._alone = self.source(seed=0)
        self._epoch = 0

    def __len__(self) -> int:
        """Return the batches of an epoch; in a run of several ranks ask `len(run.batches(loader))`."""
        return len(self._alone)

    def __iter__(self) -> Iterator[Any]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self._alone.begin(epoch, None)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch. In a `Run` the run knows the epoch, and this changes nothing."""
        self._epoch = epoch

    def source(self, *, seed: int, rank: int = 0, world_size: int = 1) -> MapSource:
        """Return this loader's batches as a `Source`; `seed` is used where the loader has none of its own."""
        return MapSource(
            self.dataset,
            self.batch_size,
            self._options,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            seed=seed if self.seed is None else self.seed,
            rank=rank,
            world_size=world_size,
        )
