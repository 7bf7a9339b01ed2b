"""What iterating through Outlast costs beside torch's own DataLoader, when nothing happens.

Both iterate the same data set in turns (plain, ours, ours, plain, ...), so that a noisy machine disturbs both alike, and
ratios and differences are medians over neighbouring turns. Ours is `run.batches` of a real `outlast.Run`, with its agent.
`plain_us`, `ours_us` and `ratio` are of iterating alone. `own_us` is what a step of a loop costs beyond the plain one: both
take an optimizer step (of one small parameter) per batch, so that ours passes a safe point each time. The augmenting data set does what a CIFAR-10 recipe does to 3 x 32 x 32 images: pad and crop, flip (torch), jitter brightness
and contrast (python), add noise (numpy). Seeding each sample is part of what is ours: torch's loader seeds none, and what
its samples draw depends on the number of workers.

    python benchmarks/idle.py [--json] [--seconds 3] [--only NAME]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

SAMPLES = 50_000
REPEATS = 100
"""The data set is read that often over, so that no epoch ends while it is measured."""
QUEUED = 8
"""Batches that workers may have made ahead while the other loop had its turn: not counted."""


def data_set(name: str):
    import numpy as np
    import torch
    from torch.nn import functional as F

    class InMemory(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.rows = torch.randn(SAMPLES, 64)
            self.labels = torch.randint(0, 10, (SAMPLES,))

        def __len__(self) -> int:
            return SAMPLES * REPEATS

        def __getitem__(self, index):
            return self.rows[index % SAMPLES], self.labels[index % SAMPLES]

    class Augmented(InMemory):
        def __init__(self) -> None:
            self.images = torch.randint(0, 256, (SAMPLES, 3, 32, 32), dtype=torch.uint8)
            self.labels = torch.randint(0, 10, (SAMPLES,))

        def __getitem__(self, index):
            image = self.images[index % SAMPLES].float().div_(255.0)
            top, left = torch.randint(0, 9, (2,)).tolist()
            image = F.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
            if torch.rand(()) < 0.5:
                image = image.flip(-1)
            mean = image.mean()
            image = ((image - mean) * random.uniform(0.8, 1.2) + mean) * random.uniform(0.8, 1.2)
            image = image + torch.from_numpy(np.random.standard_normal((3, 32, 32)).astype(np.float32)) * 0.02
            return image, self.labels[index % SAMPLES]

    return InMemory() if name == "in memory" else Augmented()


def measure(name: str, batch_size: int, workers: int, seconds: float) -> dict:
    """Measure one case, in this process."""
    import torch
    from torch.utils.data import DataLoader

    import outlast

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    dataset = data_set(name)
    parameter = torch.nn.Parameter(torch.zeros(8))
    parameter.grad = torch.zeros(8)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    other = torch.nn.Parameter(torch.zeros(8))
    other.grad = torch.zeros(8)
    unwatched = torch.optim.SGD([other], lr=0.1)
    run = outlast.Run("idle", optimizer=optimizer, save_every="10h")

    def loader() -> DataLoader:
        return DataLoader(dataset, batch_size, shuffle=True, num_workers=workers)

    loops = [iter(loader()), iter(run.batches(loader(), epochs=1))]
    steppers = [unwatched, optimizer]

    def turn(which: int, steps: int, *, stepping: bool) -> float:
        loop, step = loops[which], steppers[which].step
        for _ in range(QUEUED if workers else 0):
            next(loop)
        started = time.perf_counter()
        if stepping:
            for _ in range(steps):
                next(loop)
                step()
        else:
            for _ in range(steps):
                next(loop)
        return (time.perf_counter() - started) / steps

    least = 4 * QUEUED if workers else 10
    for which in (0, 1, 0, 1):
        turn(which, least, stepping=True)
    turn_s = 0.3 if workers else 0.02
    steps = max(least if workers else 4, int(turn_s / turn(0, least, stepping=False)))
    alone: list[list[float]] = [[], []]
    training: list[list[float]] = [[], []]
    started, number = time.perf_counter(), 0
    while number < 6 or time.perf_counter() - started < seconds:
        for which in ((0, 1), (1, 0))[number % 2]:
            alone[which].append(turn(which, steps, stepping=False))
        for which in ((0, 1), (1, 0))[number % 2]:
            training[which].append(turn(which, steps, stepping=True))
        number += 1
    plain_us, ours_us = (statistics.median(each) * 1e6 for each in alone)
    own = statistics.median(ours - plain for plain, ours in zip(*training, strict=True))
    return {
        "name": f"{name}, batch {batch_size}, {workers} workers",
        "plain_us": round(plain_us, 2),
        "ours_us": round(ours_us, 2),
        "ratio": round(statistics.median(ours / plain for plain, ours in zip(*alone, strict=True)), 4),
        "own_us": round(own * 1e6, 2),
        "runs": number,
    }


def in_a_process(name: str, batch_size: int, workers: int, seconds: float) -> dict:
    """Measure one case in a process of its own: a process has one run."""
    with tempfile.TemporaryDirectory() as root:
        case = json.dumps([name, batch_size, workers, seconds])
        done = subprocess.run(
            [sys.executable, __file__, "--case", case],
            env={**os.environ, "OUTLAST_STORE": root},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each case, at least")
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        # Left by os._exit: a loop that is left in its middle has nothing to say here.
        print(json.dumps(measure(*json.loads(options.case))), flush=True)
        os._exit(0)
    cases = []
    for name in ("in memory", "augmented"):
        for batch_size in (1, 512):
            for workers in (0, 2):
                if options.only in f"{name}, batch {batch_size}, {workers} workers":
                    case = in_a_process(name, batch_size, workers, options.seconds)
                    cases.append(case)
                    if not options.json:
                        print(
                            f"{case['name']:34} plain {case['plain_us']:10,.1f} us   ours {case['ours_us']:10,.1f} us   "
                            f"x {case['ratio']:.3f}   own {case['own_us']:+9,.1f} us   {case['runs']} runs",
                            flush=True,
                        )
    if options.json:
        print(json.dumps(cases))


if __name__ == "__main__":
    main()
