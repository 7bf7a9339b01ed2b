"""The drill as the machine and its scheduler: it starts `outlast run`, takes it away, and knows every process of it.

Every process of one drill carries a token in its environment, and the drill is the reaper of those whose parent
was killed. So all of them can be found, at any moment and at the end, without asking any of them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_MARK_NAME = "OUTLAST_DRILL"
_PR_SET_CHILD_SUBREAPER = 36
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_POLL_S = 0.003
_REAPED_S = 5.0
"""A process's environment goes before it can be reaped."""


class Machine:
    """One run's processes.

    Args:
        command: `outlast run` and what it runs.
        env: of every process.
        token: tells this drill's processes from any other's.
        log: what they print goes to its end.
        disk: a folder of its own; each start then finds a new home, temporary and working directory in it, and nothing of
            what the one before left. None: they are the caller's.
        keeps_folder: the working directory stays the caller's all the same: the script is in it.

    Attributes:
        exit_code: how the last `outlast run` ended: its exit code, or minus the signal.
        started: when the last `outlast run` was started, seconds since the epoch.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        token: str,
        log: Path,
        disk: Path | None = None,
        keeps_folder: bool = False,
    ) -> None:
        _become_reaper()
        self.command = list(command)
        self.env = {**env, _MARK_NAME: token}
        self.log = log
        self.disk = disk
        self.keeps_folder = keeps_folder
        self.exit_code: int | None = None
        self.started = 0.0
        self._mark = f"{_MARK_NAME}={token}\0".encode()
        self._process: subprocess.Popen[bytes] | None = None
        self._orphans: dict[int, int] = {}
        self._sockets: set[str] = set()

    def start(self) -> None:
        """Start `outlast run` in a session of its own."""
        places = {} if self.disk is None else _new_disk(self.disk)
        if self.keeps_folder:
            places.pop("PWD", None)
        self.started = time.time()
        self.exit_code = None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env={**self.env, **places},
                cwd=places.get("PWD"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def supervisor(self) -> int | None:
        """Pid of the `outlast run` that lives; None if there is none."""
        if self._process is None:
            return None
        code = self._process.poll()
        if code is not None:
            self.exit_code = code
            self._process = None
            return None
        return self._process.pid

    def trainer(self) -> int | None:
        """Pid of the training script: what `outlast run` has started; None if it has not yet."""
        supervisor = self.supervisor
        return None if supervisor is None else next(iter(sorted(self._children(supervisor))), None)

    def processes(self) -> list[int]:
        """Every process of this drill that lives."""
        self._reap()
        return [pid for pid in _pids() if self._is_ours(pid)]

    def lives(self, pid: int) -> bool:
        """Whether a process of this drill has not ended."""
        self._reap()
        if self._process is not None and pid == self._process.pid:
            return self.supervisor is not None  # its memory goes a moment before it can be reaped
        return self._is_ours(pid)

    def kill(self, *pids: int | None) -> None:
        """SIGKILL them at once, then wait until they are gone."""
        ours = [pid for pid in dict.fromkeys(pids) if pid is not None and self._is_ours(pid)]
        for pid in ours:
            self.notice_socket(pid)
        for pid in ours:
            _send(pid, signal.SIGKILL)
        while any(map(self.lives, ours)):
            time.sleep(_POLL_S)

    def stop(self, pid: int | None) -> None:
        """SIGSTOP: hold one process at this very moment, without looking at any other first."""
        if pid is not None and self._is_ours(pid):
            _send(pid, signal.SIGSTOP)

    def let_go(self, *pids: int | None) -> None:
        """SIGCONT: let those go on that `stop` holds."""
        for pid in pids:
            if pid is not None and self._is_ours(pid):
                _send(pid, signal.SIGCONT)

    def terminate(self, *pids: int | None, number: signal.Signals = signal.SIGTERM) -> None:
        """SIGTERM, or another signal that asks for an end, as a scheduler sends it."""
        for pid in pids:
            if pid is not None and self._is_ours(pid):
                _send(pid, number)

    def wait_gone(self, pid: int, timeout_s: float) -> bool:
        """Wait until a process has ended; False if it still lives after `timeout_s`."""
        end = time.monotonic() + timeout_s
        while self.lives(pid):
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_S)
        return True

    def exit_code_of(self, pid: int) -> int | None:
        """How a process ended whose parent was killed before it; None if it does not end within a few seconds."""
        end = time.monotonic() + _REAPED_S
        while pid not in self._orphans and time.monotonic() < end:
            self._reap()
            time.sleep(_POLL_S)
        return self._orphans.get(pid)

    def born(self, pid: int) -> float | None:
        """When a process that lives was started, seconds since the epoch."""
        try:
            ticks = int(_stat(pid)[19])
        except (OSError, IndexError):
            return None
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / _TICKS_PER_S)

    def notice_socket(self, pid: int) -> None:
        """Remember the agent's socket that this process was told of, so that `leftovers` can look for it."""
        for entry in _environ(pid).split(b"\0"):
            if entry.startswith(b"OUTLAST_AGENT="):
                self._sockets.add(entry.partition(b"=")[2].decode(errors="replace"))

    def leftovers(self, timeout_s: float) -> list[str]:
        """What is left of the run once it has ended: processes, memory files, sockets; given `timeout_s` to go."""
        end = time.monotonic() + timeout_s
        while (found := self._left()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def sweep(self) -> None:
        """End whatever still lives, in the order of a machine that goes off: all at once."""
        while pids := self.processes():
            self.kill(*pids)

    def _left(self) -> list[str]:
        found = []
        for pid in self.processes():
            memory = sum(name.startswith("/memfd:outlast") for name in _open_files(pid))
            found.append(f"process {pid} ({_command(pid)}), which holds {memory} memory files")
        for line in Path("/proc/net/unix").read_text().splitlines():
            name = line.rpartition(" ")[2].lstrip("@")
            if name in self._sockets:
                found.append(f"socket {name}")
        return found

    def _children(self, parent: int) -> list[int]:
        found = []
        for pid in _pids():
            try:
                if int(_stat(pid)[1]) == parent and self._is_ours(pid):
                    found.append(pid)
            except OSError:
                continue
        return found

    def _is_ours(self, pid: int) -> bool:
        return self._mark in _environ(pid) + b"\0" and pid != os.getpid()

    def _reap(self) -> None:
        """Reap the orphans that came to us, and never the process that `Popen` waits for."""
        own = self._process.pid if self._process is not None else None
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid == own:
                if self.supervisor is not None:
                    return
                own = None
                continue
            _, status = os.waitpid(found.si_pid, 0)
            self._orphans[found.si_pid] = os.waitstatus_to_exitcode(status)


def _new_disk(disk: Path) -> dict[str, str]:
    """Return the environment of a machine whose disk holds nothing yet."""
    shutil.rmtree(disk, ignore_errors=True)
    places = {"HOME": disk / "home", "TMPDIR": disk / "tmp", "PWD": disk / "work"}
    for place in places.values():
        place.mkdir(parents=True)
    return {name: str(place) for name, place in places.items()}


def _become_reaper() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it was faster


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat after the command, which may hold anything: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _environ(pid: int) -> bytes:
    """Return a process's environment; empty for one that is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "gone"


def _open_files(pid: int) -> list[str]:
    try:
        return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []  # it goes away while we look
