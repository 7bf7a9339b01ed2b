"""What signals do to a trainer: they set flags, and the loop leaves at its next safe point."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias

from outlast._errors import Preempted
from outlast._say import say

_PASSED_ON = (signal.SIGTERM, signal.SIGUSR2)
_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None
_wakeup: int | None = None
"""The descriptor that the interpreter writes signals to, while that is one of ours."""


class Signals:
    """SIGTERM, SIGUSR2 and SIGINT of this process.

    Attributes:
        stop: a signal asked to leave.
        deadline_s: monotonic time at which the machine is expected to go.
        interrupted: Ctrl-C came once.
        any: one of the two.
        abandon: Ctrl-C came twice: leave at once, wait for nothing.
        at_once: whether there is nothing to save, so that a signal ends the script where it is.
    """

    def __init__(self, grace_s: float) -> None:
        self.stop = False
        self.deadline_s: float | None = None
        self.interrupted = False
        self.any = False
        self.abandon = False
        self.at_once = True
        self._grace_s = grace_s
        self._pid = os.getpid()
        self._heard: Callable[[str, float], None] | None = None
        self._before: dict[int, _Handler] = {}
        self._held_back = ""
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._read, True)
        if threading.current_thread() is not threading.main_thread():
            say("outlast.Run was made outside the main thread: signals reach this run through its agent only")
            return
        for number in _PASSED_ON:
            self._before[number] = _not_ours(signal.signal(number, self._terminate), number)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)
        _wake_by(self._write)

    def tell(self, heard: Callable[[str, float], None]) -> None:
        """From now on call `heard(source, grace_s)`, in a thread of its own, for each signal."""
        self._heard = heard
        threading.Thread(target=self._forward, name="outlast-signals", daemon=True).start()

    def _forward(self) -> None:
        # A handler runs between any two bytecodes of the main thread, which may hold any lock: it only writes here. In a long call
        # (a kernel, a collective that hangs) there are none: then only the interpreter itself has written, and the handler does it
        # again when it runs. Whoever hears of a signal twice knows it already.
        while number := os.read(self._read, 1):
            if number[0] in _PASSED_ON and self._heard is not None:
                if self.deadline_s is None:
                    self.deadline_s = time.monotonic() + self._grace_s
                self._heard(signal.Signals(number[0]).name, self._grace_s)
            told, self._held_back = self._held_back, ""
            if told:
                say(told)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            _in_a_fork(number)
            return
        if self.deadline_s is None:
            self.deadline_s = time.monotonic() + self._grace_s
        self.stop = self.any = True
        self._call_before(number, frame)
        try:
            os.write(self._write, bytes([number]))
        except BlockingIOError:
            pass  # it was told often enough
        if self.at_once:
            self.at_once = False  # once: what ends the script now may have cleaning up to do
            msg = f"{signal.Signals(number).name} outside of the training loop: what is saved stands"
            raise Preempted(msg)

    def _call_before(self, number: int, frame: FrameType | None) -> None:
        """Call the handler that the script had set. What it raises would end the script before its save: it leaves anyway."""
        before = self._before.get(number)
        if not callable(before):
            return
        try:
            before(number, frame)
        except BaseException as error:
            if self.at_once:
                raise
            name = signal.Signals(number).name
            self._held_back = f"the script's own handler of {name} raised {error!r}: held back, since the script saves and leaves"

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # the trainer answers Ctrl-C, its workers go on until it has
        if self.interrupted or self.at_once:
            self.abandon = self.interrupted
            raise KeyboardInterrupt
        self.interrupted = self.any = True
        say("Ctrl-C: saving at the next safe point, then leaving; again to leave at once")


def _not_ours(handler: _Handler, number: int) -> _Handler:
    """What a script had set before its first run."""
    of = getattr(handler, "__self__", None)
    return of._before.get(number) if isinstance(of, Signals) else handler  # noqa: SLF001 - another of these


def _wake_by(fd: int) -> None:
    """Have the interpreter write the number of each signal to `fd` as it arrives; not where somebody else's is written to."""
    global _wakeup  # noqa: PLW0603 - the interpreter has one for the whole process
    before = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    if before not in (-1, _wakeup):
        signal.set_wakeup_fd(before)
        return
    if _wakeup is None:
        os.register_at_fork(after_in_child=_wake_no_more)
    _wakeup = fd


def _wake_no_more() -> None:
    """In a process that was forked: what it is sent (a loader ends its workers by SIGTERM) is not what its parent is told."""
    before = signal.set_wakeup_fd(-1)
    if before not in (-1, _wakeup):
        signal.set_wakeup_fd(before)


def _in_a_fork(number: int) -> None:
    """In a process that the script forked: as if nobody had set a handler. A loader's workers are shielded, and get here never."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
