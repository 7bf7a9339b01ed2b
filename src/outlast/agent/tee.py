"""What the script prints goes through the agent: passed on at once, byte for byte, and kept for the store.

The script writes to pipes, and the agent's death must not hurt it. So the script inherits the read ends as well: what it writes
waits then, and ends nobody. The agent that takes over opens the pipe of its own standard output anew, which is the same one. A
pipe and no terminal of its own (pty): whoever has a pipe can read it, while of a pty only the other end can be read, which
launchers that close what they inherit (torchrun) do not hand down. Where both outputs go to the same place they share one pipe, so that
the order of their lines stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from outlast._process import process_alive, process_id
from outlast._types import settle
from outlast.agent.printed import Printed
from outlast.checkpoint.manifest import ProcessId

OUTPUT = "OUTLAST_OUTPUT"
"""Tells the processes of one launch where their output goes, for an agent that takes over."""
PIPE_BYTES = 1 << 20
"""What waits while an agent takes over; the most that Linux gives without asking."""
READ_BYTES = 64 << 10
PAUSE_S = 0.02
"""Before what has come is read: a line that was written in pieces mostly passes whole, and a script that prints line by line wakes
the agent 50 times a second at most. Nobody sees it."""
FLUSH_S = 5.0
"""Longest wait once the script has ended: for whoever reads our output, and for the store."""
_FIRST_FD = 200
"""Descriptors that are handed down lie above those that shell scripts choose by number."""
_STDOUT, _STDERR = 1, 2


class _Way(msgspec.Struct, frozen=True):
    """The way of one stream: `pipe` and `target` are (device, inode), by which they are recognised; `fd` is the target's."""

    name: str
    pipe: tuple[int, int]
    fd: int
    target: tuple[int, int]


class _Mark(msgspec.Struct, frozen=True):
    """What `$OUTLAST_OUTPUT` holds: whose the pipes are, and where they lead."""

    owner: ProcessId
    ways: tuple[_Way, ...]


@dataclass(frozen=True)
class Stream:
    """A stream to be read: its name, the pipe's end, and where it is passed on to, if that is known."""

    name: str
    source: int
    target: int | None


class Tee:
    """Passes on what comes on each stream and gives it to `printed`, in a thread for each.

    Args:
        streams: what is read.
        printed: keeps it.
        owner: an agent that reads them until it is gone.
    """

    def __init__(self, streams: tuple[Stream, ...], printed: Printed, owner: ProcessId | None = None) -> None:
        self.printed = printed
        self._copies = [_Copy(stream, printed.keep, owner) for stream in streams]

    def end(self, within_s: float) -> None:
        """The script has ended: pass on what it has printed and put it; wait for so long, for each of the two."""
        until_s = time.monotonic() + within_s
        for copy in self._copies:
            copy.drain(max(until_s - time.monotonic(), 0.0))
        self.printed.end(within_s)


@dataclass(frozen=True)
class Outlets:
    """What a script is started with so that its output goes through this agent."""

    tee: Tee
    stdout: int
    stderr: int
    inherited: tuple[int, ...]
    env: Mapping[str, str]


def open_outlets(env: Mapping[str, str]) -> Outlets | None:
    """Lay the pipes for all scripts that this agent starts; None where `$OUTLAST_LOGS` is 0.

    The write ends stay open here, so that no pipe ends before this process does.
    """
    if env.get("OUTLAST_LOGS") == "0":
        return None
    identities = [_identity(_STDOUT), _identity(_STDERR)]
    if None in identities:
        return None  # closed: there is nothing to pass on to
    names = {"both": _STDOUT} if identities[0] == identities[1] else {"stdout": _STDOUT, "stderr": _STDERR}
    laid = {name: _lay(fd) for name, fd in names.items()}
    streams = tuple(Stream(name, pipe.source, pipe.target) for name, pipe in laid.items())
    ways = tuple(
        _Way(name, _known(pipe.sink), pipe.target, _known(pipe.target)) for name, pipe in laid.items()
    )
    mark = msgspec.json.encode(_Mark(process_id(os.getpid()), ways)).decode()
    sinks = [pipe.sink for pipe in laid.values()]
    return Outlets(
        tee=Tee(streams, Printed()),
        stdout=sinks[0],
        stderr=sinks[-1],
        inherited=tuple(fd for pipe in laid.values() for fd in (pipe.source, pipe.target)),
        env={**_size(env), OUTPUT: mark},
    )


def take_over(env: Mapping[str, str]) -> Tee | None:
    """Read the outputs of the script that this agent was started by, once the agent that reads them is gone.

    None where they are none of Outlast's pipes.
    """
    mark = _read_mark(env)
    ends = {way: fd for way in mark.ways for fd in _outputs_into(way)} if mark is not None else {}
    if mark is None or not ends:
        return None
    streams = tuple(Stream(way.name, _open_source(fd), _target(way)) for way, fd in ends.items())
    return Tee(streams, Printed(), mark.owner)


def print_by_lines(env: Mapping[str, str]) -> None:
    """Have what this script prints leave it line by line, as on a terminal.

    In a pipe Python holds back 8 KiB, and they are lost when it is killed. (PYTHONUNBUFFERED would tear lines: it writes each
    argument of a `print` by itself.)
    """
    mark = _read_mark(env)
    if isinstance(sys.stdout, io.TextIOWrapper) and mark is not None and any(map(_outputs_into, mark.ways)):
        sys.stdout.reconfigure(line_buffering=True)


def handed_down(env: Mapping[str, str]) -> tuple[int, ...]:
    """Descriptors that an agent that takes over needs beside its own outputs."""
    mark = _read_mark(env)
    targets = map(_target, mark.ways if mark is not None else ())
    return tuple(fd for fd in targets if fd is not None)


def give_back(env: Mapping[str, str]) -> None:
    """No agent reads any more what this process prints: what waits goes where it belongs, and from now on all does."""
    mark = _read_mark(env)
    if mark is None or process_alive(mark.owner) is not False:
        return
    for way in mark.ways:
        target = _target(way)
        if target is None:
            continue
        for fd in _outputs_into(way):
            source = _open_source(fd)
            os.dup2(target, fd)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(source, READ_BYTES):
                    _pass_on(target, data)
            os.close(source)


class _Copy:
    """Copies one stream, in a thread of its own: an output that nobody reads must not hold up the other one."""

    def __init__(self, stream: Stream, keep: Callable[[str, bytes], None], owner: ProcessId | None) -> None:
        self._stream = stream
        self._keep = keep
        self._owner = owner
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_empty = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"outlast-{stream.name}", daemon=True)
        self._thread.start()

    def drain(self, within_s: float) -> None:
        """Wait until all that was written before is passed on."""
        if self._owner is not None and process_alive(self._owner) is not False:
            return  # it reads them
        self._is_empty.clear()
        os.eventfd_write(self._wake, 1)
        self._is_empty.wait(within_s)

    def _run(self) -> None:
        if self._owner is not None and not _wait_until_gone(self._owner):
            return
        poll = select.poll()
        poll.register(self._stream.source, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            is_asked = self._wake in {fd for fd, _ in poll.poll()}
            if is_asked:
                os.eventfd_read(self._wake)
            else:
                time.sleep(PAUSE_S)
            while self._move():
                pass
            if is_asked:
                self._is_empty.set()

    def _move(self) -> bool:
        """Pass on what is there; False where there was no more."""
        try:
            data = os.read(self._stream.source, READ_BYTES)
        except BlockingIOError:
            return False
        self._keep(self._stream.name, data)  # first: passing on may take as long as somebody likes
        if self._stream.target is not None:
            _pass_on(self._stream.target, data)
        return len(data) == READ_BYTES


@dataclass(frozen=True)
class _Pipe:
    source: int
    sink: int
    target: int


def _lay(fd: int) -> _Pipe:
    """A pipe that leads to where `fd` does."""
    source, sink = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, PIPE_BYTES)  # this user may have too much already
    high = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD)
    os.close(source)
    os.set_blocking(high, False)
    return _Pipe(high, sink, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD))


def _open_source(fd: int) -> int:
    """Open the read end of the pipe that this process writes to as `fd`."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _pass_on(target: int, data: bytes) -> None:
    """Write all of it. Where nobody reads it any more, or a disk is full, the script goes on without."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(target, rest) :]
        except BlockingIOError:
            select.select([], [target], [])
        except OSError:
            return


def _wait_until_gone(owner: ProcessId) -> bool:
    """Wait until a process has ended; False where that cannot be seen from here."""
    try:
        pidfd = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        return process_alive(owner) is not None
    try:
        alive = process_alive(owner)
        if alive:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll()
        return alive is not None
    finally:
        os.close(pidfd)


def _read_mark(env: Mapping[str, str]) -> _Mark | None:
    try:
        return msgspec.json.decode(env.get(OUTPUT, ""), type=_Mark)
    except msgspec.MsgspecError:
        return None


def _outputs_into(way: _Way) -> list[int]:
    """Which of this process's outputs is the way's pipe."""
    return [fd for fd in (_STDOUT, _STDERR) if _identity(fd) == way.pipe]


def _target(way: _Way) -> int | None:
    """Where a way leads; None where this process has not inherited that, or something else has the number."""
    return way.fd if _identity(way.fd) == way.target else None


def _known(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        return _known(fd)
    except OSError:
        return None


def _size(env: Mapping[str, str]) -> dict[str, str]:
    """A terminal's width, which progress bars cannot ask a pipe for."""
    if not os.isatty(_STDOUT) or "COLUMNS" in env:
        return {}
    size = os.get_terminal_size(_STDOUT)
    return {"COLUMNS": str(size.columns), "LINES": str(size.lines)}


settle(_Mark)
