"""How saving and restoring grow with the state: its bytes, and the number of its tensors.

For each size Outlast, torch.save + fsync and torch.distributed.checkpoint.save save a state of which every tensor has
changed, between steps that keep all cores busy, each in a process of its own (`save.py` says how that is measured). Then
a new process restores the newest checkpoint into live tensors, the files not in the page cache. For Outlast that is all
of `outlast.Run(...)`: its agent starts, finds the checkpoint, claims an attempt, reads and checks every byte.

    python benchmarks/scaling.py [--json] [--small] [--saves 3] [--only "1 GB"]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from save import SETTLE_S, end_clean, measure_once
from watch import files_below

SIZES = {"10 MB": 10**7, "100 MB": 10**8, "1 GB": 10**9, "5 GB": 5 * 10**9}
COUNTS = (10, 1_000, 10_000)
SAVERS = {
    "outlast": "Outlast",
    "torch.save + fsync": "torch.save",
    "torch.distributed.checkpoint.save": "dcp.save",
}
MEASURED = ("added_step_s", "durable_s", "restore_s")


def measure(size: str, count: int, saver: str, options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Save some times and restore once; medians in seconds."""
    options.sizes = {"nbytes": SIZES[size], "count": count}
    folder = root / "measured"
    measured = measure_once(saver, options, folder)
    case = json.dumps([saver, str(folder / "run"), options.sizes])
    done = subprocess.run(
        [sys.executable, __file__, "--restore", case], capture_output=True, text=True, check=False
    )
    if done.returncode:
        msg = f"restoring by {saver}: exit code {done.returncode}\n{done.stderr[-3000:]}"
        raise SystemExit(msg)
    shutil.rmtree(folder)
    os.sync()
    time.sleep(SETTLE_S)
    saves = measured["saves"]
    return {
        "state": size,
        "tensors": count,
        "name": SAVERS[saver],
        "added_step_s": round(statistics.median(save["added_step_s"] for save in saves), 3),
        "durable_s": round(statistics.median(save["durable_s"] for save in saves), 3),
        "restore_s": round(json.loads(done.stdout.splitlines()[-1]), 3),
        "runs": len(saves),
    }


def restore(saver: str, folder: Path, sizes: dict[str, int]) -> float:
    """Restore the newest checkpoint below `folder` into a new state; its seconds."""
    import torch
    from torch.distributed import checkpoint as dcp
    from work import Filler

    import outlast

    state = Filler(**sizes)
    for path in files_below(folder):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    started = time.perf_counter()
    if saver == "outlast":
        assert outlast.Run(str(folder), **state.objects).resumed
    elif saver == "torch.save + fsync":
        newest = max(folder.glob("*.pt"), key=lambda path: int(path.stem))
        state.model.load_state_dict(torch.load(newest, mmap=True)["model"])
    else:
        newest = max(folder.iterdir(), key=lambda path: int(path.name))
        dcp.load(state.state(), checkpoint_id=newest, no_dist=True)
    return time.perf_counter() - started


def table(results: list[dict[str, Any]]) -> str:
    """The table of docs/performance.md, and each cell where a peer is faster."""
    names = list(SAVERS.values())
    lines = [
        "| state | tensors | "
        + " | ".join(
            f"{key.removesuffix('_s').replace('_', ' ')}, s: {' / '.join(names)}" for key in MEASURED
        )
        + " |",
        "|---|---|" + "---|" * len(MEASURED),
    ]
    slower = []
    for size in SIZES:
        for count in COUNTS:
            row = {r["name"]: r for r in results if (r["state"], r["tensors"]) == (size, count)}
            if len(row) < len(names):
                continue
            cells = [" / ".join(f"{row[name][key]:.2f}" for name in names) for key in MEASURED]
            lines.append(f"| {size} | {count:,} | " + " | ".join(cells) + " |")
            for key in MEASURED:
                best = min(names[1:], key=lambda name, key=key, row=row: row[name][key])
                if row["Outlast"][key] > row[best][key]:
                    slower.append(
                        f"{size} in {count:,} tensors: {key} {row['Outlast'][key]:.3f}, by {best} {row[best][key]:.3f}"
                    )
    return "\n".join([*lines, "", "Outlast is not faster:", *(slower or ["nowhere here"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--small", action="store_true", help="the two smaller sizes")
    parser.add_argument("--saves", type=int, default=3, help="measured, after one that is not")
    parser.add_argument("--only", default="", help="part of a size, such as '1 GB'")
    parser.add_argument("--folder", default="/var/tmp", help="on the disk that is measured")
    parser.add_argument("--restore", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.restore:
        warnings.simplefilter("ignore")
        saver, folder, sizes = json.loads(options.restore)
        print("\n" + json.dumps(restore(saver, Path(folder), sizes)), flush=True)
        os._exit(0)  # nothing is trained here, so there is nothing to end
    end_clean()
    options.store, options.device, options.idle = "file", "cpu", False
    root = Path(tempfile.mkdtemp(prefix="outlast-scaling-", dir=options.folder))
    results = []
    try:
        for size in list(SIZES)[: 2 if options.small else None]:
            for count in COUNTS:
                for saver in SAVERS:
                    if options.only in size:
                        results.append(measure(size, count, saver, options, root))
                        print(results[-1], file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps({"results": results}) if options.json else table(results))


if __name__ == "__main__":
    main()
