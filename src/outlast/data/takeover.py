"""A plain torch `DataLoader` over a map-style data set: whose order it has, and what is kept of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler
from torch.utils.data import DataLoader as TorchLoader

from outlast.data.mapped import MapSource
from outlast.data.pipeline import Options
from outlast.data.sampled import SamplerSource
from outlast.data.source import Source


class _KnownOrder(NamedTuple):
    shuffle: bool
    rank: int
    world_size: int
    pad: bool
    note: str


def of_torch_loader(loader: TorchLoader[Any], *, seed: int, rank: int, world_size: int) -> Source:
    """Take over data set, workers, collation, pinning, prefetching; and the order, where Outlast has the like."""
    options = Options(
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        prefetch_factor=loader.prefetch_factor if loader.num_workers else None,
        persistent_workers=loader.persistent_workers,
        timeout=loader.timeout,
        multiprocessing_context=loader.multiprocessing_context,
    )
    batching: Any = loader.batch_sampler
    batch_size, drop_last = None, False
    sampler: Any = loader.sampler
    if type(batching) is BatchSampler:
        sampler, batch_size, drop_last = batching.sampler, batching.batch_size, batching.drop_last
        batching = None
    known = None if batching is not None else _known_order(sampler, loader.dataset, rank, world_size)
    source: MapSource | SamplerSource
    if known is None:
        source = SamplerSource(
            loader.dataset,
            sampler if batching is None else batching,
            options,
            batch_size=batch_size,
            drop_last=drop_last,
            gives_batches=batching is not None,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
    else:
        source = MapSource(
            loader.dataset,
            batch_size,
            options,
            shuffle=known.shuffle,
            drop_last=drop_last,
            seed=seed,
            rank=known.rank,
            world_size=known.world_size,
            pad=known.pad,
        )
        source.notes.append(known.note)
    if not getattr(loader, "in_order", True):
        source.notes.append(
            "in_order=False is not kept: batches come in their order, so that their number says which they are"
        )
    return source


def _known_order(sampler: Any, dataset: Any, rank: int, world_size: int) -> _KnownOrder | None:
    """Return the order that stands for the sampler's, or None: such an order is the sampler's alone."""
    kind = type(sampler)
    if kind is DistributedSampler and len(sampler.dataset) == len(dataset):
        note = (
            f"took over the DataLoader; its DistributedSampler (rank {sampler.rank} of {sampler.num_replicas}) is replaced by "
            f"Outlast's {'shuffled' if sampler.shuffle else 'sequential'} order, divided likewise"
        )
        return _KnownOrder(sampler.shuffle, sampler.rank, sampler.num_replicas, not sampler.drop_last, note)
    divided = f", divided among {world_size} ranks" if world_size > 1 else ""
    if kind is SequentialSampler and _covers(sampler, dataset):
        return _KnownOrder(False, rank, world_size, True, f"took over the DataLoader: sequential{divided}")
    if kind is RandomSampler and not sampler.replacement and _covers(sampler, dataset):
        note = (
            f"took over the DataLoader: shuffled in Outlast's order{divided}, not by its sampler's generator"
        )
        return _KnownOrder(True, rank, world_size, True, note)
    return None


def _covers(sampler: Any, dataset: Any) -> bool:
    return len(sampler) == len(sampler.data_source) == len(dataset)
