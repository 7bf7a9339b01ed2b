"""A thousand announced interruptions, by every source, at every moment, on machines whose disks go with them.

Each drill is one run of the bundled example, interrupted several times, against an undisturbed run of the same seed. What is done
is kept, one line a drill with the commit that it was done with, and is not done again: the command can be stopped and continued, on
another machine too. Begin anew by removing the results. `--json` prints the sums.

    python benchmarks/soak.py [--results benchmarks/soak.jsonl] [--folder .soak] [--minutes 150] [--first N] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import msgspec

from outlast.drill.bundled import Options, drill_bundled, train_undisturbed
from outlast.drill.place import Conditions
from outlast.drill.report import Report, to_json
from outlast.drill.warned import Notices, Source

SMALL, LARGE = 90, 26
"""Drills with the example's own state of some MB, and with 1 GB more."""
COUNT_SMALL, COUNT_LARGE = 10, 4
"""Interruptions of each."""
SEEDS = 4
LARGE_BYTES = 10**9
LANES = 2
NEVER = 10**6
"""Steps between two saves of an undisturbed run: its end is what is compared."""
SOONER = Path(__file__).parents[1] / "tests" / "drill" / "inside"
"""On the path of every process: an optimizer's first step then imports no compiler, which takes as long as torch."""
EXAMPLE = ("--samples", "320", "--batch-size", "8", "--validation", "20", "--workers", "1")


@dataclass(frozen=True)
class Drill:
    """One drill of the soak: its number, which undisturbed run it is compared with, and its options."""

    number: int
    reference: str
    options: Options


def drills() -> list[Drill]:
    """Draw all of them, small and large mixed, always the same."""
    draw = random.Random(20261127)
    large = set(draw.sample(range(SMALL + LARGE), LARGE))
    sources: list[Source] = list(get_args(Source))
    found = []
    for number in range(SMALL + LARGE):
        seed = number % SEEDS
        # Time to write the whole state, and the warnings around it: a fifth of a warning to twice as long.
        if number in large:
            save_s, state, epochs = draw.uniform(13.0, 17.0), LARGE_BYTES, 6
            warnings_s = (save_s / 2, save_s * 5)
        else:
            save_s, state, epochs = math.exp(draw.uniform(math.log(0.1), math.log(2.0))), 0, 10
            warnings_s = draw.choice([(0.5, 6.0), (0.5, 6.0), (0.5, 6.0), (0.0, 0.0), (2.0, 12.0)])
        if number == SMALL + LARGE - 1:
            warnings_s = (30.0, 120.0)
        found.append(
            Drill(
                number,
                f"{'large' if state else 'small'}-{seed}",
                Options(
                    seed=number,
                    interval_steps=10,
                    stall_s=240.0,
                    env={
                        "PYTHONPATH": os.pathsep.join(
                            filter(None, [str(SOONER), os.environ.get("PYTHONPATH")])
                        )
                    },
                    arguments=(*EXAMPLE, "--epochs", str(epochs), "--seed", str(seed), "--state", str(state)),
                    conditions=Conditions(
                        notices=Notices(
                            sources=draw.sample(sources, 3),
                            warnings_s=warnings_s,
                            count=COUNT_LARGE if state else COUNT_SMALL,
                        ),
                        lose_disk=True,
                        throttle_bytes_per_s=int((state or 3_000_000) / save_s),
                    ),
                ),
            )
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path(".soak"), help="where undisturbed runs and failed drills are kept"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).with_name("soak.jsonl"),
        help="one line for each drill done",
    )
    parser.add_argument("--minutes", type=float, default=150.0, help="begin no drill after so long")
    parser.add_argument("--first", type=int, help="only the first N drills")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the sums as JSON")
    args = parser.parse_args()
    # A drill under way then ends what it has started.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    plan = drills()[: args.first]
    if args.one is not None:
        carry_out(plan[args.one], args.folder, args.results)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    done = {line["number"] for line in read(args.results)}
    conduct(
        [drill for drill in plan if drill.number not in done], args.folder, args.results, args.minutes * 60
    )
    sums = summed(read(args.results), len(plan))
    print(json.dumps(sums, indent=2) if args.json else "\n".join(f"{k}: {v}" for k, v in sums.items()))
    sys.exit(0 if not sums["failures"] else 1)


def conduct(plan: list[Drill], folder: Path, results: Path, for_s: float) -> None:
    """Run what is left, `LANES` at a time, each in a process of its own: a drill reaps all orphans below it."""
    until = time.monotonic() + for_s
    references = {drill.reference: drill for drill in reversed(plan)}
    for name, drill in sorted(references.items()):
        course, _ = train_undisturbed(folder / name, replace(drill.options, interval_steps=NEVER))
        if course.failures or course.exit_code != 0:
            msg = f"the undisturbed run {name} failed: {course.failures or course.exit_code}; see {folder / name}"
            raise SystemExit(msg)
    large = {drill.number for drill in plan if drill.reference.startswith("large")}
    running: dict[int, subprocess.Popen[bytes]] = {}
    waiting = list(plan)
    try:
        while waiting or running:
            while waiting and len(running) < LANES and time.monotonic() < until:
                # Two large ones at a time would measure how many GB/s two cores can hash.
                fit = [drill for drill in waiting if not (drill.number in large and large & running.keys())]
                if not fit:
                    break
                drill = fit[0]
                waiting.remove(drill)
                places = ["--folder", str(folder), "--results", str(results)]
                command = [sys.executable, __file__, *places, "--one", str(drill.number)]
                running[drill.number] = subprocess.Popen(command)
            if not running:
                return
            for number, process in list(running.items()):
                if process.poll() is not None:
                    del running[number]
                    print(f"drill {number} ended with {process.returncode}", file=sys.stderr, flush=True)
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def carry_out(drill: Drill, folder: Path, results: Path) -> None:
    """One drill; its report is one line of the results, whatever it says."""
    tempfile.tempdir = str(folder.resolve())
    git = ["git", "-C", str(Path(__file__).parents[1])]
    found = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True, check=False)
    # What is written here is no change of what is drilled.
    as_committed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!*.jsonl"], check=False)
    commit = found.stdout.strip() + ("-dirty" if as_committed.returncode else "")
    began = time.time()
    report = drill_bundled(replace(drill.options, undisturbed=folder / drill.reference))
    line = {
        "number": drill.number,
        "commit": commit,
        "reference": drill.reference,
        "seconds": time.time() - began,
        "report": json.loads(to_json(report)),
    }
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    sys.exit(0 if report.passed else 1)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summed(lines: list[dict[str, Any]], planned: int) -> dict[str, Any]:
    """Sum the results up: what was promised, and how often it was so."""
    reports = [msgspec.convert(line["report"], Report) for line in lines]
    items = [item for report in reports for item in report.interruptions if item.notice is not None]
    fit = [item for item in items if item.notice.fits]
    saved = [item for item in fit if item.notice.commit_reason == "emergency" or item.notice.exit_code == 0]
    timed = [
        item
        for item in items
        if item.notice_to_durable_s is not None and item.notice.durable_bound_s is not None
    ]
    over = sorted(item.notice_to_durable_s - item.notice.durable_bound_s for item in timed)
    ratios = [
        item.notice.save_s / item.notice.warning_s
        for item in items
        if item.notice.warning_s > 0 and item.notice.save_s
    ]
    large = [
        i
        for line, report in zip(lines, reports, strict=True)
        if line["reference"].startswith("large")
        for i in report.interruptions
    ]
    return {
        "drills": len(lines),
        "planned": planned,
        "minutes": round(sum(line["seconds"] for line in lines) / 60 / LANES, 1),
        "interruptions": len(items),
        "with_1GB_or_more": len(large),
        "by_source": dict(Counter(item.notice.source for item in items)),
        "by_moment": dict(Counter(item.notice.moment for item in items)),
        "by_fault": dict(Counter(item.notice.fault or "none" for item in items)),
        "save_over_warning_p5_p50_p95": [round(quantile(sorted(ratios), q), 2) for q in (0.05, 0.5, 0.95)]
        if ratios
        else [],
        "fit": len(fit),
        "fit_and_saved": len(saved),
        "fit_lost_over_1_step": sum(item.steps_lost is None or item.steps_lost > 1 for item in fit),
        "not_fit": sum(item.notice.fits is False for item in items),
        "not_fit_and_saved": sum(
            item.notice.fits is False and item.notice.commit_reason == "emergency" for item in items
        ),
        "beyond_the_last_durable": sum(
            item.steps_lost is None or item.steps_lost > item.steps_lost_bound for item in items
        ),
        "durable_over_bound_s_p50_p99_max": [round(quantile(over, q), 2) for q in (0.5, 0.99, 1.0)]
        if over
        else [],
        "within_bound": sum(value <= 0 for value in over),
        "timed": len(over),
        "resumes_bit_exact": sum(item.guarantee == "bit-exact" for item in items),
        "resumes_lower": dict(
            Counter(item.guarantee for item in items if item.guarantee not in (None, "bit-exact"))
        ),
        "final_states_bit_identical": sum(bool(report.bit_identical) for report in reports),
        "failures": [
            f"drill {line['number']}: {text}"
            for line, report in zip(lines, reports, strict=True)
            for text in report.failures
        ],
    }


def quantile(values: list[float], q: float) -> float:
    return values[min(int(q * len(values)), len(values) - 1)]


if __name__ == "__main__":
    main()
