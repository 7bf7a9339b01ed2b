"""How soon a notice is heard, and what listening costs while there is none.

A local server plays the clouds' metadata services. The process that listens waits as the agent does: on what the sources offer to wait
on, 0.2 s at most. A notice comes at a random moment; its latency is from then until `Watch.poll` gives it back. The idle cost is the CPU
time of that process (the server is another one), with the sources and without, as a share of one core.

    python benchmarks/notice.py [--json] [--notices 200] [--idle-seconds 20]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

from outlast.drill import metadata

TICK_S = 0.2
"""The longest that the agent's loop waits."""
CLOUDS = ("aws", "gcp", "azure", "alibaba", "tencent")
PLACES = (*CLOUDS, "signals")


def watch_of(place: str, url: str):
    """What the agent would listen to in that place."""
    from outlast.notice.watch import watch_machine

    if place in CLOUDS:
        return watch_machine({"OUTLAST_NOTICE": place, metadata.ADDRESS[place]: url})
    # With no grace a signal's notice is over at once, so that the next one counts as new.
    return watch_machine({"OUTLAST_NOTICE": "signals", "OUTLAST_GRACE_S": "0"})


def vendor(place: str):
    """Whose service is played; where none is asked, any."""
    return place if place in CLOUDS else "aws"


def announce(place: str, service) -> None:
    if place in CLOUDS:
        metadata.announce(service, place, datetime.now(UTC) + timedelta(seconds=120))
    else:
        os.kill(os.getpid(), signal.SIGUSR2)


def wait_for(watch, what: str, until_s: float) -> float:
    """Poll until the watch tells of something `new` or `cancelled`; give back when, on the monotonic clock."""
    while time.monotonic() < until_s:
        select.select(watch.filenos, [], [], TICK_S)
        changes = watch.poll()
        for line in changes.warnings:
            print(f"warning: {line}", file=sys.stderr)
        if getattr(changes, what):
            return time.monotonic()
    msg = f"nothing {what} was heard"
    raise TimeoutError(msg)


def latencies(place: str, notices: int) -> list[float]:
    """Seconds from each notice to its being heard, in this process."""
    rng = random.Random(0)
    found = []
    with metadata.metadata_service(vendor(place)) as service:
        watch = watch_of(place, service.url)
        idle(watch, 2.0)
        for _ in range(notices):
            began: list[float] = []

            def later(began: list[float] = began) -> None:
                began.append(time.monotonic())
                announce(place, service)

            timer = threading.Timer(rng.uniform(0.05, 1.05), later)
            timer.start()
            heard_s = wait_for(watch, "new", time.monotonic() + 30)
            timer.join()
            found.append(heard_s - began[0])
            if place != "signals":
                metadata.cancel(service, place)
                wait_for(watch, "cancelled", time.monotonic() + 30)
        watch.close()
    return found


def idle(watch, seconds: float) -> float:
    """Wait as the agent does, hearing nothing; give back the CPU seconds that this took."""
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    while time.monotonic() - began_s < seconds:
        select.select(watch.filenos if watch else (), [], [], TICK_S)
        if watch:
            watch.poll()
    return time.process_time() - began_cpu_s


def listening(place: str, url: str, seconds: float) -> float:
    """CPU seconds of a process that listens in that place, or does not ("none")."""
    watch = None if place == "none" else watch_of(place, url)
    idle(watch, 2.0)
    return idle(watch, seconds)


def in_a_process(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "--case", json.dumps(arguments)], stdout=subprocess.PIPE, text=True
    )


def answer(process: subprocess.Popen[str]):
    output, _ = process.communicate()
    if process.returncode:
        msg = f"a measuring process ended with {process.returncode}"
        raise RuntimeError(msg)
    return json.loads(output)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--notices", type=int, default=200)
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        kind, *rest = json.loads(options.case)
        print(json.dumps(latencies(*rest) if kind == "latency" else listening(*rest)), flush=True)
        os._exit(0)
    # Together: each of them waits nearly all of the time. What is idle is measured after them, one by one.
    measured = {place: in_a_process("latency", place, options.notices) for place in PLACES}
    result: dict[str, dict] = {}
    for place, process in measured.items():
        values = answer(process)
        result[place] = {
            "notices": len(values),
            "p50_s": round(quantile(values, 0.5), 4),
            "p99_s": round(quantile(values, 0.99), 4),
        }
    used_s: dict[str, float] = {}
    for place in ("none", *PLACES):
        with metadata.metadata_service(vendor(place)) as service:
            used_s[place] = answer(in_a_process("idle", place, service.url, options.idle_seconds))
    for place in PLACES:
        result[place]["idle_share"] = round((used_s[place] - used_s["none"]) / options.idle_seconds, 6)
    if options.json:
        print(json.dumps(result))
        return
    for place, row in result.items():
        print(
            f"{place:8} {row['notices']} notices: p50 {row['p50_s']:.3f} s, p99 {row['p99_s']:.3f} s; "
            f"idle {100 * row['idle_share']:.3f} % of one core"
        )


if __name__ == "__main__":
    main()
