"""What it costs that a script's output passes the agent of `outlast run` and is kept on the store.

A script prints lines of 80 characters at a steady pace, in a file. It runs under `outlast run` as it is and with OUTLAST_LOGS=0, in
interleaved rounds. Measured are the CPU times of script and agent, as shares of one core: they say the same on a machine that does
other work meanwhile.

    python benchmarks/output.py [--json] [--rounds 3] [--seconds 20]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = """
import json, os, sys, time, torch, outlast

def agent_s():
    fields = open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

lines_per_s, seconds = int(sys.argv[1]), float(sys.argv[2])
run = outlast.Run("run", model=torch.nn.Linear(2, 2), save_every="1000000 steps")
time.sleep(2)  # what the start costs is no part of it
begun, script, agent, printed = time.monotonic(), time.process_time(), agent_s(), 0
while (now := time.monotonic() - begun) < seconds:
    while printed < now * lines_per_s:
        print(f"step {printed:7d}  loss 0.123456".ljust(79))
        printed += 1
    time.sleep(0.01)
shares = {
    "lines_per_s": printed / now,
    "script_percent": (time.process_time() - script) / now * 100,
    "agent_percent": (agent_s() - agent) / now * 100,
}
with open("shares", "w") as file:
    json.dump(shares, file)
for _ in run.steps(1):
    pass
"""
PACES = (100, 1000, 10_000)
"""Lines per second."""
WAYS = {"kept": "1", "not kept": "0"}


def measure(lines_per_s: int, logs: str, seconds: float) -> dict[str, float]:
    """The shares of one run."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.py").write_text(SCRIPT)
        env = {
            **os.environ,
            "OUTLAST_STORE": f"{folder}/store",
            "OUTLAST_LOGS": logs,
            "OUTLAST_PREEMPTIBLE": "0",
        }
        env.pop("PYTHONUNBUFFERED", None)
        script = [sys.executable, "train.py", str(lines_per_s), str(seconds)]
        with Path(folder, "log").open("wb") as log:
            subprocess.run(
                [sys.executable, "-m", "outlast", "run", "--", *script],
                cwd=folder, env=env, stdout=log, stderr=log, check=True,
            )  # fmt: skip
        return json.loads(Path(folder, "shares").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for pace in PACES:
            for way, logs in WAYS.items():
                found.setdefault((pace, way), []).append(measure(pace, logs, args.seconds))
    medians = [
        {"pace": pace, "way": way, **{name: statistics.median(run[name] for run in runs) for name in runs[0]}}
        for (pace, way), runs in found.items()
    ]
    if args.json:
        print(json.dumps(medians, indent=2))
        return
    for one in medians:
        print(
            f"{one['pace']:6d} lines/s {one['way']:9} script {one['script_percent']:6.2f} %  agent {one['agent_percent']:6.2f} %"
        )


if __name__ == "__main__":
    main()
