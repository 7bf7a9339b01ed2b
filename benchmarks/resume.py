"""What starting a run costs, part by part: seconds, medians over processes of their own.

`agent start`: from starting an agent to its first answer. `import torch`, `import outlast`: outlast after torch. `Run() fresh`
and `Run() resumed`: making the run, with its agent's start, the claim, and on a resume the restore of the state. `first step`:
from the start of the loop to the end of its first step, with and without Outlast around the same steps. The state is that of a
small model (84 MB), so that what is fixed shows; what a large state adds is measured by `benchmarks/restore.py`.

    python benchmarks/resume.py [--json] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

AGENT, TORCH, OUTLAST = "agent start", "import torch", "import outlast"
FRESH, RESUMED = "Run() fresh", "Run() resumed"
FIRST_STEP, PLAIN_STEP = "first step", "first step without outlast"


def start_agent() -> dict[str, float]:
    """Start an agent on an empty place, and wait for its offer."""
    from outlast import _process
    from outlast._types import Keep
    from outlast.agent.link import Link
    from outlast.agent.protocol import PROTOCOL, Hello

    started = time.perf_counter()
    link = Link(
        Hello(
            protocol=PROTOCOL,
            trainer=_process.process_id(),
            rank=0,
            world_size=1,
            global_batch=None,
            url=f"file://{os.environ['OUTLAST_STORE']}/agent",
            resume="auto",
            take_over=False,
            launch_id="benchmark",
            job_id=None,
            interval_s=300.0,
            interval_steps=None,
            settings={},
            keep=Keep(),
            rejoin=None,
        )
    )
    link.offer()
    return {AGENT: time.perf_counter() - started}


def train(kind: str) -> dict[str, float]:
    """Start a run, or only the training, up to the end of its first step; a fresh one saves what the next resumes."""
    started = time.perf_counter()
    import torch  # noqa: F401 - its import is measured

    found = {TORCH: time.perf_counter() - started}
    if kind != "plain":
        started = time.perf_counter()
        from outlast import Run

        found[OUTLAST] = time.perf_counter() - started
    warnings.simplefilter("ignore")
    from work import SMALL, Work

    made = Work(SMALL)
    made.optimizer.zero_grad()
    if kind == "plain":
        started = time.perf_counter()
        made.step()
        return {PLAIN_STEP: time.perf_counter() - started}
    started = time.perf_counter()
    run = Run("run", model=made.model, optimizer=made.optimizer, save_every="10h")
    found[FRESH if kind == "fresh" else RESUMED] = time.perf_counter() - started
    started = time.perf_counter()
    for _ in run.steps(10**9):
        made.step()
        break
    found[FIRST_STEP] = time.perf_counter() - started
    run.save()
    return found


def in_a_process(kind: str, root: str) -> dict[str, float]:
    """Measure one start in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--case", kind],
        env={**os.environ, "OUTLAST_STORE": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(start_agent() if options.case == "agent" else train(options.case)), flush=True)
        os._exit(0)
    seconds: dict[str, list[float]] = {}
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as root:
            for kind in ("agent", "plain", "fresh", "resumed"):
                for name, one in in_a_process(kind, root).items():
                    if name != FIRST_STEP or kind == "resumed":
                        seconds.setdefault(name, []).append(one)
    names = (AGENT, TORCH, OUTLAST, FRESH, RESUMED, FIRST_STEP, PLAIN_STEP)
    results = [
        {"name": name, "seconds": round(statistics.median(seconds[name]), 3), "runs": len(seconds[name])}
        for name in names
    ]
    if options.json:
        print(json.dumps({"results": results}))
        return
    for one in results:
        print(f"{one['name']:28} {one['seconds']:7.3f} s   {one['runs']} runs")


if __name__ == "__main__":
    main()
