"""What iterating through Outlast costs beside torch's own DataLoader, when nothing happens.

Both loaders iterate the same data set in turns (plain, ours, ours, plain, ...), so that a noisy machine disturbs both
alike; `ratio` is the median over neighbouring turns. Without workers a turn is a few milliseconds; with workers, whose start and
prefetching must not count, it is some hundred. The augmenting data set does what a CIFAR-10 recipe does to 3 x 32 x 32
images: pad and crop, flip (torch), jitter brightness and contrast (python), add noise (numpy). "own" is what a step costs
beyond torch's. Per-sample seeding is part of it: torch's loader seeds nothing, and its samples depend on the workers.

    python benchmarks/idle.py [--json] [--seconds 3] [--only NAME]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import warnings

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from outlast.data.source import take_over

SAMPLES = 50_000


class Augmented(Dataset):
    """A CIFAR-10 recipe over images in memory."""

    def __init__(self) -> None:
        self.images = torch.randint(0, 256, (SAMPLES, 3, 32, 32), dtype=torch.uint8)
        self.labels = torch.randint(0, 10, (SAMPLES,))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index].float().div_(255.0)
        top, left = torch.randint(0, 9, (2,)).tolist()
        image = F.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
        mean = image.mean()
        image = ((image - mean) * random.uniform(0.8, 1.2) + mean) * random.uniform(0.8, 1.2)
        image = image + torch.from_numpy(np.random.standard_normal((3, 32, 32)).astype(np.float32)) * 0.02
        return image, self.labels[index]


def in_memory() -> Dataset:
    return TensorDataset(torch.randn(SAMPLES, 64), torch.randint(0, 10, (SAMPLES,)))


def taken(iterator, steps: int) -> float:
    """Seconds per step."""
    started = time.perf_counter()
    for _ in range(steps):
        next(iterator)
    return (time.perf_counter() - started) / steps


def measure(name: str, dataset: Dataset, batch_size: int, workers: int, seconds: float) -> dict:
    def loader() -> DataLoader:
        return DataLoader(dataset, batch_size, shuffle=True, num_workers=workers)

    length = len(loader())
    turn_s = 0.3 if workers else 0.005
    source = take_over(loader(), seed=0)
    begins = [loader().__iter__, lambda: source.begin(0, None)]
    running, left = [None, None], [0, 0]

    def turn(which: int, steps: int) -> float:
        if workers or left[which] < steps:
            running[which] = None
            running[which] = begins[which]()
            taken(running[which], 3)
            left[which] = length - 3
        left[which] -= steps
        took = taken(running[which], steps)
        if workers:
            running[which] = None  # its workers end before the other's start
        return took

    steps = max(1, min(length - 4, int(turn_s / turn(0, min(length - 4, 20)))))
    times: list[list[float]] = [[], []]
    started, number = time.perf_counter(), 0
    while number < 5 or time.perf_counter() - started < seconds:
        for which in ((0, 1), (1, 0))[number % 2]:
            times[which].append(turn(which, steps))
        number += 1
    plain_us, ours_us = (statistics.median(each) * 1e6 for each in times)
    return {
        "name": f"{name}, batch {batch_size}, {workers} workers",
        "plain_us": round(plain_us, 2),
        "ours_us": round(ours_us, 2),
        "ratio": round(statistics.median(ours / plain for plain, ours in zip(*times, strict=True)), 4),
        "own_us": round(ours_us - plain_us, 2),
        "runs": number,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each case")
    parser.add_argument("--only", default="", help="part of a case's name")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = []
    for name, dataset in (("in memory", in_memory()), ("augmented", Augmented())):
        for batch_size in (1, 512):
            for workers in (0, 2):
                if options.only in f"{name}, batch {batch_size}, {workers} workers":
                    cases.append(measure(name, dataset, batch_size, workers, options.seconds))
                    if not options.json:
                        case = cases[-1]
                        print(
                            f"{case['name']:34} plain {case['plain_us']:10,.1f} us   ours {case['ours_us']:10,.1f} us   "
                            f"x {case['ratio']:.3f}   own {case['own_us']:+9,.1f} us   {case['runs']} runs"
                        )
    if options.json:
        print(json.dumps(cases))


if __name__ == "__main__":
    main()
