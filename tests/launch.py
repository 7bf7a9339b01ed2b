"""Start training scripts as real processes, wait for what they wrote, and end them for real.

Nothing here asks Outlast what happened: what is read are the lines that a script wrote itself, the files on the store
and /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TRAIN = HERE / "trainer" / "train.py"
DEADLINE_S = 60.0
"""Longest wait for anything: a process that imports torch on a busy machine takes several seconds."""
_POLL_S = 0.02
_DIE_WITH_PARENT = "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); os.execv(sys.argv[1], sys.argv[1:])"


def eventually(what: str, get: Callable[[], Any], said: Callable[[], str] = str) -> Any:
    """Wait until `get()` is true, and return it."""
    until_s = time.monotonic() + DEADLINE_S
    while not (found := get()):
        assert time.monotonic() < until_s, f"waited in vain until {what}\n{said()}"
        time.sleep(_POLL_S)
    return found


def files_below(root: Path) -> Iterator[Path]:
    """Every file at any depth. A run may delete folders while they are listed, which ends `Path.rglob` with an error."""
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names)


class Zygote:
    """The process that scripts are forked from: see `zygote.py`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._codes: dict[int, int] = {}

    def start(self, argv: list[str], env: dict[str, str], cwd: Path, log: Path) -> int:
        """Run a script; returns its pid, which is also its process group."""
        assert self._process.stdin is not None
        request = {"argv": argv, "env": env, "cwd": str(cwd), "log": str(log)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        while "code" in (answer := self._answer()):
            self._codes[answer["pid"]] = answer["code"]
        self._codes.pop(answer["pid"], None)  # pids come round in a long run: that one's code is another's
        return answer["pid"]

    def wait(self, pid: int) -> int:
        """Wait for its end; the exit code as `subprocess` gives it. The caller bounds the time."""
        while pid not in self._codes:
            answer = self._answer()
            self._codes[answer["pid"]] = answer["code"]
        return self._codes[pid]

    def close(self) -> None:
        """End it, and all that was forked from it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _answer(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote has died"
        return json.loads(line)


@dataclass
class Started:
    """One started command: the script itself, or `outlast run` above it."""

    pid: int
    log: Path
    code: Callable[[], int]

    def wait(self) -> int:
        """Wait for its end; the exit code, or minus the signal."""
        eventually(f"process {self.pid} ends", lambda: not alive(self.pid), lambda: self.text)
        return self.code()

    @property
    def text(self) -> str:
        """What it and its children said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def says(self, text: str) -> str:
        """Wait until it says so; all that it said."""
        eventually(f"it says {text!r}", lambda: text in self.text, lambda: self.text)
        return self.text

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill_group(self, number: int) -> None:
        """Send its whole process group a signal, as a terminal or a scheduler does."""
        os.killpg(self.pid, number)


@dataclass
class Lab:
    """A folder of its own for a test, and what it starts there.

    Attributes:
        folder: holds the store, the record and the gates.
        env: what every script gets in its environment.
    """

    folder: Path
    zygote: Zygote
    env: dict[str, str] = field(default_factory=dict)
    started: list[Started] = field(default_factory=list)

    def __post_init__(self) -> None:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("OUTLAST_", "T_"))
        }
        self.env = {
            **inherited,
            "OMP_NUM_THREADS": "1",
            "T_LAB": str(self.folder),
            "OUTLAST_STORE": str(self.folder / "store"),
            "OUTLAST_SAVE_EVERY": "1000000 steps",
            "OUTLAST_PREEMPTIBLE": "0",
            "OUTLAST_GRACE_S": "30",  # in a container as anywhere
            "T_NAME": "run",
        }

    def script(self, *arguments: str, path: Path = TRAIN, **env: object) -> Started:
        """Start a script with plain python."""
        log = self.folder / f"log-{len(self.started)}"
        pid = self.zygote.start([str(path), *arguments], self._env(env), self.folder, log)
        return self._keep(Started(pid, log, lambda: self.zygote.wait(pid)))

    def _written(self, source: str) -> Path:
        """The file of a script, replaced whole: one that was just started may be about to read it."""
        path, new = self.folder / "script.py", self.folder / "script.new"
        new.write_text(source)
        return new.replace(path)

    def source(self, source: str, *arguments: str, **env: object) -> Started:
        """Start a script of which this is the source."""
        return self.script(*arguments, path=self._written(source), **env)

    def supervised_source(self, source: str, **env: object) -> Started:
        """Start `outlast run -- python script.py`, of which this is the source."""
        return self.supervised(command=[sys.executable, str(self._written(source))], **env)

    def supervised(self, *options: str, command: list[str] | None = None, **env: object) -> Started:
        """Start `outlast run OPTIONS -- python train.py`."""
        log = self.folder / f"log-{len(self.started)}"
        outlast = str(Path(sys.executable).with_name("outlast"))
        command = command or [sys.executable, str(TRAIN)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, outlast, "run", *options, "--", *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder, env=self._env(env),
                start_new_session=True,
            )  # fmt: skip
        return self._keep(Started(process.pid, log, process.wait))

    def outlast(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command of `outlast` to its end."""
        command = [str(Path(sys.executable).with_name("outlast")), *arguments]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.env,
            timeout=DEADLINE_S,
            check=False,
        )

    def open(self, place: str) -> None:
        """Let those pass that wait at the gate, and all that come later."""
        (self.folder / f"open-{place}").touch()

    @property
    def records(self) -> list[dict[str, Any]]:
        """What the scripts wrote so far, in order."""
        path = self.folder / "record"
        if not path.exists():
            return []
        lines = path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def of(self, kind: str, pid: int | None = None) -> list[dict[str, Any]]:
        """The records of one kind, of one process or all."""
        return [r for r in self.records if r["kind"] == kind and pid in (None, r["pid"])]

    def at(self, place: str, times: int = 1) -> int:
        """Wait until a script has come to a gate (for the n-th time); its pid."""

        def arrived() -> list[dict[str, Any]]:
            return [r for r in self.of("at") if r["place"] == place][times - 1 :]

        return eventually(f"a script is at {place}", arrived, self.said)[0]["pid"]

    def said(self) -> str:
        """What all commands said, for the message of a failure."""
        return "\n".join(f"--- {s.log.name}\n{s.text}" for s in self.started)

    def commits(self, name: str = "run") -> list[dict[str, Any]]:
        """The commits on the store, oldest first, with the position that their manifest names."""
        found = []
        for path in sorted((self.folder / "store" / name / "checkpoints").glob("*/commit.json")):
            try:
                commit = json.loads(path.read_bytes())
                manifest = json.loads((path.parent / "rank-00000.json").read_bytes())
            except FileNotFoundError:
                continue  # an old one, deleted just now
            found.append({**commit, "position": manifest["position"], "folder": path.parent})
        return sorted(found, key=lambda c: (c["attempt"], c["step"], c["repeat"]))

    def committed(self, step: int, name: str = "run") -> dict[str, Any]:
        """Wait until a checkpoint of this step, or a later one, is on the store."""

        def found() -> list[dict[str, Any]]:
            return [c for c in self.commits(name) if c["step"] >= step]

        return eventually(f"step {step} is durable", found, self.said)[0]

    def bytes_on_store(self) -> dict[str, bytes]:
        """Every file below the store."""
        root = self.folder / "store"
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(files_below(root))}

    def processes(self) -> list[int]:
        """Every living process that was started from here: by its session, or a variable that names this folder."""
        mark = f"T_LAB={self.folder}\0".encode()
        sessions = [str(started.pid).encode() for started in self.started]

        def is_ours(pid: int) -> bool:
            return mark in _read(f"/proc/{pid}/environ") or any(s in sessions for s in _stat(pid)[3:4])

        return [pid for pid in pids() if alive(pid) and is_ours(pid)]

    def nothing_left(self) -> None:
        """Wait until no process of this lab lives."""
        eventually("all processes have ended", lambda: not self.processes(), self.said)

    def close(self) -> None:
        """Kill what still lives, and wait for what was started here."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for started in self.started:
            started.code()

    def _env(self, env: dict[str, object]) -> dict[str, str]:
        return {**self.env, **{name: str(value) for name, value in env.items()}}

    def _keep(self, started: Started) -> Started:
        self.started.append(started)
        return started


def history(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """For each value of the counter in the model the last record: (epoch, i, samples, loss)."""
    last = {r["count"]: r for r in records if r["kind"] == "step"}
    assert sorted(last) == list(range(1, len(last) + 1))
    return [(r["epoch"], r["i"], r["samples"], r["loss"]) for _, r in sorted(last.items())]


def pids() -> Iterator[int]:
    """Every process of this machine."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def alive(pid: int) -> bool:
    """Whether a process lives, and is no zombie."""
    return _stat(pid)[:1] not in ([], [b"Z"], [b"X"])


def children(pid: int) -> list[int]:
    """Its living children."""
    return [child for child in pids() if alive(child) and _stat(child)[1:2] == [str(pid).encode()]]


def agent_of(pid: int) -> int:
    """The agent that a script has started for itself."""

    def found() -> list[int]:
        return [c for c in children(pid) if b"outlast.agent" in _read(f"/proc/{c}/cmdline")]

    return eventually(f"process {pid} has an agent", found)[0]


def _stat(pid: int) -> list[bytes]:
    """Fields of /proc/<pid>/stat from the third on: state, parent, group, session, ...; [] if there is none."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # it has just ended
        return b""
