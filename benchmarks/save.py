"""What a save costs training, and when it is durable, beside what people use today.

All peers do the same work: real training steps of a GPT-like model on all cores, its state saved between two steps, one
save at a time. Each is measured in processes of its own, in interleaved rounds, so that a noisy machine disturbs all
alike. `call_s` is how long the training thread is held; `added_step_s` is all that a save takes from training until it
is durable: the sum over the steps from the call on of (step - median of the steps right before and after); `durable_s`
counts from the call. Outlast's commit is seen by a process that polls the store; `peers.py` says when a peer counts as
durable. `bytes_written` are bytes in new files, `peak_host_bytes` is memory beyond training alone (`watch.Memory`). All
figures are medians over the saves; the first save of each process is not among them.

    python benchmarks/save.py [--json] [--idle] [--store s3] [--device cuda] [--small] [--rounds 3] [--only NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import limits
import peers
from measure import Case
from server import Server, rclone
from watch import MARK, Memory
from work import ISSUE, LARGE, SMALL

SAVES = 2
"""Measured in one process."""
SETTLE_S = 1.0
"""Rest after files are deleted, for the disk to come to rest."""

ADDED_SHARE, ADDED_S, DURABLE_SHARE, DURABLE_SHARE_S3 = 0.25, 0.25, 0.45, 0.7
IDLE_SHARE, MEMORY_SHARE, CUDA_ADDED_S = 0.8, 1.1, 0.15
"""What issue 4 asks of Outlast: shares of the best peer's, of the raw write rate, of the state per arena; seconds."""


def measure_once(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure some saves of one saver, in a process of its own."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    with serving(options, folder) as server:
        seen = server.bucket / "run" if server else folder / "run"
        case = Case(
            name=name,
            place="s3://bucket/run" if server else str(seen),
            folder=str(seen),
            shape=options.sizes,
            device=options.device,
            saves=options.saves,
            idle=options.idle,
            server=server.pid if server else 0,
        )
        memory = Memory(mark)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("measure.py")), json.dumps(asdict(case))],
                env={**os.environ, **(server.env if server else {}), MARK: mark},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        told: dict[str, list[dict[str, Any]]] = {"training": [], "save": [], "done": []}
        try:
            for line in process.stdout:
                if line.startswith('{"kind"'):
                    what = json.loads(line)
                    told[what["kind"]].append(what)
                    if what["kind"] == "done":
                        break
            if not told["done"]:
                log_text = (folder / "log").read_text(errors="replace")
                msg = f"{name} failed with exit code {process.wait()}:\n{log_text[-3000:]}"
                raise SystemExit(msg)
            arenas = memory.arenas(told["training"][0]["state_bytes"] // 2)
            process.communicate("\n")
        finally:
            process.kill()
            process.wait()
            memory.close()  # waits for an agent, which writes a last word after its trainer
    training, done = told["training"][0], told["done"][0]
    alone = memory.peak(training["start"], training["end"])
    return {
        "saves": told["save"],
        "state_bytes": training["state_bytes"],
        "peak_host_bytes": memory.peak(training["end"], done["end"]) - alone,
        "arenas": arenas,
        "direct": done["direct"],
    }


@contextlib.contextmanager
def serving(options: argparse.Namespace, folder: Path) -> Iterator[Server | None]:
    """The S3 server, if one is asked for."""
    if options.store != "s3":
        yield None
        return
    with rclone(folder) as server:
        yield server


def in_rounds(names: list[str], options: argparse.Namespace, root: Path) -> tuple[dict[str, list[Any]], Any]:
    """All measurements of each saver, and the machine's limits in each round."""
    measured: dict[str, list[Any]] = {name: [] for name in names}
    bounds = []
    for number in range(options.rounds):
        bounds.append(limits.measure(root, options.limit_bytes))
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            folder = root / "measured"
            measured[name].append(measure_once(name, options, folder))
            shutil.rmtree(folder)
            os.sync()
            time.sleep(SETTLE_S)
            if not options.json:
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
    middle = {key: statistics.median(each[key] for each in bounds) for key in bounds[0]}
    return measured, middle


def summary(name: str, measured: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Medians over all saves of one saver."""
    saves = [save for each in measured for save in each["saves"]]

    def median(key: str) -> float:
        return statistics.median(save[key] for save in saves)

    result = {
        "name": name if measured[0]["direct"] is not False else f"{name} (buffered I/O)",
        "call_s": round(median("call_s"), 4),
        "added_step_s": round(median("added_step_s"), 3),
        "durable_s": round(median("durable_s"), 3),
        "bytes_written": round(median("bytes_written")),
        "peak_host_bytes": round(statistics.median(each["peak_host_bytes"] for each in measured)),
        "runs": len(saves),
    }
    if options.store == "s3":
        result["server_cpu_s"] = round(median("server_cpu_s"), 2)
    return result


def verdicts(report: dict[str, Any], arenas: int, options: argparse.Namespace) -> list[tuple[str, bool]]:
    """Each target in words, and whether Outlast meets it."""
    ours = [result for result in report["results"] if result["name"] == peers.OURS]
    others = [result for result in report["results"] if result["name"] != peers.OURS]
    if not ours:
        return []
    us, found = ours[0], []
    if options.idle:
        rate = report["state_bytes"] / us["durable_s"]
        share = rate / report["limits"]["write_bytes_per_s"]
        found.append(
            (f"durable at {share:.0%} of the raw direct write's rate, at least 80 %", share >= IDLE_SHARE)
        )
    elif others:
        best_added = min(result["added_step_s"] for result in others)
        most = max(ADDED_SHARE * best_added, ADDED_S)
        if options.device == "cuda":
            most = CUDA_ADDED_S
        found.append(
            (f"added step time {us['added_step_s']:.3f} s, at most {most:.3f} s", us["added_step_s"] <= most)
        )
        share = DURABLE_SHARE_S3 if options.store == "s3" else DURABLE_SHARE
        best = min(result["durable_s"] for result in others)
        found.append(
            (
                f"durable after {us['durable_s']:.3f} s, at most {share} x {best:.3f} = {share * best:.3f} s",
                us["durable_s"] <= share * best,
            )
        )
    per_arena = us["peak_host_bytes"] / max(1, arenas) / report["state_bytes"]
    found.append(
        (f"memory {per_arena:.2f} x state in each of {arenas} arenas, at most 1.1", per_arena <= MEMORY_SHARE)
    )
    return found


def installed(name: str) -> bool:
    """Whether a peer can be measured here; says so where it cannot."""
    for module in ("s3fs", "torch_checkpointing"):
        if name.endswith(module) and importlib.util.find_spec(module) is None:
            print(f"{name} is left out: pip install -e '.[bench]' installs {module}", file=sys.stderr)
            return False
    return True


def table(report: dict[str, Any]) -> str:
    bounds = ", ".join(
        f"{key.removesuffix('_bytes_per_s')} {rate / 1e9:.2f} GB/s" for key, rate in report["limits"].items()
    )
    lines = [
        f"state {report['state_bytes'] / 1e9:.2f} GB, a step {report['step_s']:.2f} s; {bounds}",
        f"{'':36}{'call s':>9}{'added s':>9}{'durable s':>11}{'written GB':>12}{'memory GB':>11}{'runs':>6}",
    ]
    for result in report["results"]:
        cpu = f"   server's CPU {result['server_cpu_s']:.2f} s" if "server_cpu_s" in result else ""
        lines.append(
            f"{result['name']:36}{result['call_s']:9.3f}{result['added_step_s']:9.2f}{result['durable_s']:11.2f}"
            f"{result['bytes_written'] / 1e9:12.2f}{result['peak_host_bytes'] / 1e9:11.2f}{result['runs']:6}{cpu}"
        )
    return "\n".join(lines)


def end_clean() -> None:
    """Let SIGTERM end this process as Ctrl-C does: with what it started, and without what it wrote."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def main() -> None:
    end_clean()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--idle", action="store_true", help="no training while a save is under way")
    parser.add_argument("--store", choices=["file", "s3"], default="file")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--small", action="store_true", help="a small model, to try it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--saves", type=int, default=SAVES, help="measured in each process, after one that is not"
    )
    parser.add_argument("--only", default="", help="part of a saver's name")
    parser.add_argument("--folder", default="/var/tmp", help="on the disk that is measured")
    options = parser.parse_args()
    options.sizes = asdict(SMALL if options.small else LARGE if options.device == "cuda" else ISSUE)
    options.limit_bytes = (
        64 << 20 if options.small else 10_000 << 20 if options.device == "cuda" else 1728 << 20
    )
    candidates = [*(peers.ON_S3 if options.store == "s3" else peers.LOCAL), peers.OURS]
    names = [name for name in candidates if options.only in name and installed(name)]
    root = Path(tempfile.mkdtemp(prefix="outlast-save-", dir=options.folder))
    try:
        measured, bounds = in_rounds(names, options, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    every = [save for each in measured.values() for one in each for save in one["saves"]]
    report = {
        "state_bytes": measured[names[0]][0]["state_bytes"],
        "step_s": round(statistics.median(save["step_s"] for save in every), 3),
        "limits": {key: round(rate) for key, rate in bounds.items()},
        "results": [summary(name, measured[name], options) for name in names],
    }
    if options.json:
        print(json.dumps(report))
        return
    print(table(report))
    arenas = max((each["arenas"] for each in measured.get(peers.OURS, [])), default=0)
    for words, met in verdicts(report, arenas, options):
        print(f"{'pass' if met else 'FAIL'}  {words}")


if __name__ == "__main__":
    main()
