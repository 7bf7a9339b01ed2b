"""Data sets and loaders that the tests of data/ share."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

import outlast


class Drawing(Dataset):
    """Sample i is (i, one number from each generator, a second half of each normal pair left behind)."""

    def __init__(self, length=150):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        drawn = [torch.rand(1).item(), np.random.rand(), random.random()]
        drawn += [torch.randn(1).item(), np.random.randn(), random.gauss(0, 1)]
        return torch.tensor([index, *drawn], dtype=torch.float64)


class Plain(Dataset):
    """Sample i is i; draws nothing."""

    def __init__(self, length=150):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor(index)


class Streaming(IterableDataset):
    """An iterable data set that draws, divided among workers."""

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        start, step = (info.id, info.num_workers) if info else (0, 1)
        for index in range(start, 150, step):
            yield torch.tensor([index, torch.rand(1).item(), np.random.rand(), random.random()])


class Backwards(Sampler):
    """A sampler of the user's own: every second sample, from the end, with a random start."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        yield from range(len(self.dataset) - 1 - random.randrange(2), -1, -2)

    def __len__(self):
        return len(self.dataset) // 2


class Remembering(Sampler):
    """A sampler with a state: a shuffle of its own, and how far it got."""

    def __init__(self, length):
        self.length, self.epoch, self.done = length, 0, 0

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(self.length).tolist()
        while self.done < self.length:
            self.done += 1
            yield order[self.done - 1]
        self.epoch, self.done = self.epoch + 1, 0

    def __len__(self):
        return self.length

    def state_dict(self):
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state):
        self.epoch, self.done = state["epoch"], state["done"]


class Counting(Sampler):
    """A sampler that counts its own epochs, when one ends, and shuffles by that alone."""

    def __init__(self, length):
        self.length, self.epoch = length, 0

    def __iter__(self):
        yield from np.random.default_rng(self.epoch).permutation(self.length).tolist()
        self.epoch += 1

    def __len__(self):
        return self.length


class ShufflingInPlace(Sampler):
    """A batch sampler that shuffles its list of batches in place."""

    def __init__(self, length, size):
        self.batches = [list(range(at, min(at + size, length))) for at in range(0, length, size)]

    def __iter__(self):
        random.shuffle(self.batches)
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def stateful(workers, batch):
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(Plain(), batch, shuffle=True, num_workers=workers)


LOADERS = {
    "outlast": lambda w, b: outlast.DataLoader(Drawing(), b, shuffle=True, num_workers=w),
    "outlast, last dropped": lambda w, b: outlast.DataLoader(
        Drawing(), b, shuffle=True, num_workers=w, drop_last=True
    ),
    "sequential": lambda w, b: DataLoader(Drawing(), b, num_workers=w),
    "shuffled": lambda w, b: DataLoader(Drawing(), b, shuffle=True, num_workers=w),
    "single samples": lambda w, b: DataLoader(Drawing(40 * b), batch_size=None, shuffle=True, num_workers=w),
    "weighted": lambda w, b: DataLoader(
        Drawing(), b, sampler=WeightedRandomSampler(torch.arange(150.0), 160), num_workers=w
    ),
    "with replacement": lambda w, b: DataLoader(
        Drawing(), b, sampler=RandomSampler(Drawing(), replacement=True, num_samples=170), num_workers=w
    ),
    "subset": lambda w, b: DataLoader(
        Drawing(),
        b,
        sampler=SubsetRandomSampler(range(140), generator=torch.Generator()),
        num_workers=w,
        drop_last=True,
    ),
    "user's sampler": lambda w, b: DataLoader(
        Drawing(310), b, sampler=Backwards(Drawing(310)), num_workers=w
    ),
    "user's batch sampler": lambda w, b: DataLoader(
        Drawing(310), batch_sampler=OddBatches(Backwards(Drawing(310)), b, False), num_workers=w
    ),
    "counting sampler": lambda w, b: DataLoader(
        Drawing(), b, sampler=Counting(150), num_workers=w, drop_last=True
    ),
    "shuffling in place": lambda w, b: DataLoader(
        Drawing(), batch_sampler=ShufflingInPlace(150, b), num_workers=w
    ),
    "sampler with a state": lambda w, b: DataLoader(Drawing(), b, sampler=Remembering(150), num_workers=w),
    "lists of indices": lambda w, b: DataLoader(
        InBulk(), batch_size=None, sampler=BatchSampler(RandomSampler(range(150)), b, False), num_workers=w
    ),
    "torchdata": stateful,
    "iterable": lambda w, b: DataLoader(Streaming(), b, num_workers=w),
    "list": lambda w, b: list(torch.arange(150).split(b)),
}
"""name: (workers, batch size) -> a new loader of at least 35 batches at batch size 4."""


class OddBatches(BatchSampler):
    """A batch sampler of the user's own."""


class InBulk(Plain):
    """A data set that takes a list of indices."""

    def __getitem__(self, index):
        return torch.tensor(index) + torch.rand(1)


def states():
    """The three generators' states, in a form that can be compared."""
    kind, key, pos, has_gauss, gauss = np.random.get_state()
    return torch.get_rng_state().tolist(), (kind, key.tolist(), pos, has_gauss, gauss), random.getstate()


def equal(left, right):
    """Whether two lists of batches are the same bit for bit."""
    return len(left) == len(right) and all(
        torch.equal(one, other) for one, other in zip(left, right, strict=True)
    )
