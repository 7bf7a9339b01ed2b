"""Any command that prints a deadline: the notice of a world that Outlast knows nothing of.

Run every 5 s, without a shell. It prints nothing: no notice, and one that stood is taken back. It prints what a notice file
may hold, or a bare time: notice. Anything else, or another exit status than 0, is a fault that says nothing either way.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from outlast._errors import ConfigError
from outlast.notice.base import Polled
from outlast.notice.deadline import MAX_BYTES, seconds_left_or_time
from outlast.notice.threaded import Found, Standing

TIMEOUT_S = 10.0
"""A command that takes longer hangs: a cloud's command line tool answers in 1 to 3 s."""
SAME_S = 1.0
"""Deadlines this near to each other are one: a command that prints what is left names a slightly other time each time."""
_LOOK_UP_S = 0.1
"""How soon a command that still runs when listening ends is killed."""


def arguments(env: Mapping[str, str]) -> list[str]:
    """Read `$OUTLAST_NOTICE_COMMAND` as a shell would split it; empty where there is none.

    Raises:
        ConfigError: a quote is left open.
    """
    text = env.get("OUTLAST_NOTICE_COMMAND", "")
    try:
        return shlex.split(text)
    except ValueError as error:
        msg = f"OUTLAST_NOTICE_COMMAND is {text!r}, which cannot be split into words ({error})"
        raise ConfigError(msg) from error


class CommandMetadata:
    """Runs one command now and then. What it said last stands until it says something else."""

    pause_s = 5.0

    def __init__(self, arguments: Sequence[str], timeout_s: float = TIMEOUT_S) -> None:
        self._arguments = tuple(arguments)
        self.name = f"command {self._arguments[0]}"
        self._timeout_s = timeout_s
        self._closed = False
        self._standing = Standing()
        self._last = b""
        self._deadline_utc: datetime | None = None
        self._is_failing = False

    def look(self, now_s: float, now_utc: datetime) -> Polled:
        """Run the command once; a fault is said once, until the command works again."""
        try:
            output = self._run()
            ran_utc = now_utc + timedelta(seconds=time.monotonic() - now_s)
            found = self._found(output, ran_utc)
        except (OSError, ValueError) as error:
            if self._is_failing or self._closed:
                return Polled()
            self._is_failing = True
            return Polled(warnings=(f"the notice {self.name} {error}; no notice is taken from it",))
        self._is_failing = False
        return Polled(self._standing.changes(found, now_s, now_utc))

    def acknowledge(self, notice_id: str) -> None:
        """A command takes none."""

    def close(self) -> None:
        """End a command that runs."""
        self._closed = True

    def _found(self, output: bytes, now_utc: datetime) -> tuple[Found, ...]:
        if not output.strip():
            self._last, self._deadline_utc = b"", None
            return ()
        if output != self._last or self._deadline_utc is None:
            deadline = now_utc + timedelta(seconds=seconds_left_or_time(output, now_utc))
            self._last = output
            moved = self._deadline_utc is None or abs(deadline - self._deadline_utc) > timedelta(
                seconds=SAME_S
            )
            self._deadline_utc = deadline if moved else self._deadline_utc
        return (Found(self.name.replace(" ", "-"), self.name, "machine", self._deadline_utc),)

    def _run(self) -> bytes:
        """Give back what the command prints, at most `MAX_BYTES` + 1.

        Raises:
            OSError: it cannot be started, fails or hangs.
        """
        until_s = time.monotonic() + self._timeout_s
        # A session of its own: what is sent to the trainer's group is not for it, and all that it starts ends with it.
        with subprocess.Popen(
            self._arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                output = self._read(process, until_s)
                while len(output) <= MAX_BYTES and not self._ended(process):
                    self._check(until_s)
                    time.sleep(_LOOK_UP_S / 10)
            finally:
                if not self._ended(process):
                    os.killpg(process.pid, signal.SIGKILL)
        if len(output) <= MAX_BYTES and process.returncode != 0:
            msg = f"ended with {process.returncode}; expected 0, also where there is no notice"
            raise OSError(msg)
        return output

    def _read(self, process: subprocess.Popen[bytes], until_s: float) -> bytes:
        output = bytearray()
        assert process.stdout is not None
        while len(output) <= MAX_BYTES:
            self._check(until_s)
            if select.select([process.stdout], [], [], _LOOK_UP_S)[0]:
                piece = os.read(process.stdout.fileno(), MAX_BYTES + 1 - len(output))
                if not piece:
                    break
                output += piece
        return bytes(output)

    def _ended(self, process: subprocess.Popen[bytes]) -> bool:
        return process.poll() is not None

    def _check(self, until_s: float) -> None:
        if self._closed or time.monotonic() > until_s:
            msg = f"did not end within {self._timeout_s:g} s, and was killed"
            raise TimeoutError(msg)
