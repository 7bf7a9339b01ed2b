"""What can be seen of a save from outside, by processes that are not told what happens.

Run as a program it watches a folder for commits; it imports nothing but the standard library, so that it costs the
cores next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

LOOK_S = 0.005
"""Between two looks for a commit: the error of `durable_s` is at most this."""
SAMPLE_S = 0.05
"""Between two looks at the memory of the processes."""
FIND_S = 0.5
"""Between two searches for processes that are new."""
SMALL_BYTES = 1 << 16
"""What trainer and agent share beside arenas is smaller."""
GONE_S = 30.0
"""Longest wait for the processes of a measurement to end."""
MARK = "OUTLAST_BENCHMARK_MARK"
"""Environment variable by which the processes of one measurement are found, whoever started them."""


class Commits:
    """Watches `folder/checkpoints` in a process of its own, and notes when a commit is there.

    Attributes:
        seen: monotonic seconds of each commit, in the order in which they came.
    """

    def __init__(self, folder: Path) -> None:
        self.seen: list[float] = []
        env = {key: value for key, value in os.environ.items() if key != MARK}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(folder / "checkpoints")],
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self.seen.append(float(line))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def watch_commits(folder: str) -> None:
    """Print the monotonic time at which each `folder/*/commit.json` was first seen, until killed."""
    known: set[str] = set()
    parent = os.getppid()
    while os.getppid() == parent:
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(set(os.listdir(folder)) - known):
                if os.path.exists(f"{folder}/{name}/commit.json"):
                    known.add(name)
                    print(time.monotonic(), flush=True)
        time.sleep(LOOK_S)


class Memory:
    """Samples what the marked processes take, in a thread of the measuring process.

    A sample is the anonymous memory of each of them (RssAnon of /proc/PID/status) plus the shared memory of the machine
    (Shmem of /proc/meminfo): an arena that two processes map counts once, and pages that no process maps count as well.
    The page cache does not count.
    """

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._samples: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def peak(self, start: float, end: float) -> int:
        """The most bytes between two monotonic times."""
        return max((taken for at, taken in self._samples if start <= at <= end), default=0)

    def arenas(self, least_bytes: int) -> int:
        """How many of Outlast's arenas hold at least that many bytes of memory at this moment."""
        held = [os.stat(path).st_blocks * 512 for path in memory_files(self._pids()).values()]
        return sum(nbytes >= least_bytes for nbytes in held)

    def close(self) -> None:
        """Sample no more, and wait until no marked process is left."""
        self._stop.set()
        self._thread.join()
        deadline = time.monotonic() + GONE_S
        while self._pids() and time.monotonic() < deadline:
            time.sleep(SAMPLE_S)

    def _pids(self) -> list[int]:
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                    if self._mark in file.read().split(b"\0"):
                        found.append(int(name))
        return found

    def _sample(self) -> None:
        pids: list[int] = []
        found_at = -FIND_S
        while not self._stop.wait(SAMPLE_S):
            now = time.monotonic()
            if now - found_at >= FIND_S:
                pids, found_at = self._pids(), now
            private = sum(_line_bytes(f"/proc/{pid}/status", "RssAnon:") for pid in pids)
            self._samples.append((now, private + _line_bytes("/proc/meminfo", "Shmem:")))


def memory_files(pids: list[int]) -> dict[int, str]:
    """The arenas (memfds, but for the small page of words) that processes hold open: inode, and a path that opens it."""
    found: dict[int, str] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{fd}"
                with contextlib.suppress(OSError):
                    about = os.stat(path)
                    if os.readlink(path).startswith("/memfd:outlast-arena") and about.st_size > SMALL_BYTES:
                        found[about.st_ino] = path
    return found


def files_below(folder: Path) -> dict[str, int]:
    """Every file below a folder, and its bytes."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                path = os.path.join(root, name)
                found[path] = os.stat(path).st_size
    return found


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _line_bytes(path: str, name: str) -> int:
    with contextlib.suppress(OSError), open(path) as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    watch_commits(sys.argv[1])
