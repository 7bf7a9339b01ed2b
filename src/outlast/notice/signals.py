"""SIGTERM and SIGUSR2: what schedulers, clouds' shutdown scripts and people send before the end."""

from __future__ import annotations

import math
import os
import signal
from datetime import datetime, timedelta
from types import FrameType

from outlast.notice.base import Kind, Notice, Polled

KINDS: dict[signal.Signals, Kind] = {signal.SIGTERM: "signal", signal.SIGUSR2: "warning"}
"""SIGUSR2 is the warning that comes before (`sbatch --signal=B:USR2@120`): the job may still be left alone."""


class SignalSource:
    """Turns signals of this process into notices. Made, and closed, in the main thread.

    The handler only writes the signal's number into a pipe: what is done about it is done in the loop that polls,
    not wherever the signal happened to arrive. A signal that comes again before its deadline changes nothing: the
    deadline was set by the first. One that comes after it is a new notice.
    """

    def __init__(self, signals: tuple[signal.Signals, ...], grace_s: float) -> None:
        self._grace_s = grace_s
        self._count = 0
        self._deadline_s: dict[int, float] = {}
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._previous = {number: signal.signal(number, self._handle) for number in signals}

    def poll(self, now_s: float, now_utc: datetime) -> Polled:
        """Report each signal that arrived and is not the repetition of a standing one."""
        fresh = []
        for number in self._drain():
            if now_s > self._deadline_s.get(number, -math.inf):
                self._deadline_s[number] = now_s + self._grace_s
                fresh.append(self._notice(signal.Signals(number), now_s, now_utc))
        return Polled(tuple(fresh))

    def fileno(self) -> int:
        """The pipe's end that becomes readable when a signal has arrived."""
        return self._read

    def close(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(self._read)
        os.close(self._write)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        try:
            os.write(self._write, bytes([number]))
        except BlockingIOError:
            pass  # 64 KiB of unread signals: what they say is in the pipe already

    def _drain(self) -> bytes:
        try:
            return os.read(self._read, 65536)
        except BlockingIOError:
            return b""

    def _notice(self, number: signal.Signals, now_s: float, now_utc: datetime) -> Notice:
        self._count += 1
        return Notice(
            id=f"{number.name}-{self._count}",
            source=number.name,
            kind=KINDS[number],
            deadline_s=now_s + self._grace_s,
            deadline_utc=now_utc + timedelta(seconds=self._grace_s),
        )
