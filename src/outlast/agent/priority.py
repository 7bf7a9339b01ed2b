"""Threads that give way: a save that can wait takes what training leaves of the cores and the disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading

NICE = 5
"""Added to the thread's niceness: to a thread that wants a core all the time it leaves three quarters (weights 335 and 1024,
sched(7)). A save of 2 GB needs 0.2 s of CPU, whatever its priority; with both cores of a machine more than busy it was
durable after 1.1 s with 5, 2.1 s with 10 and 1.4 s with 0 (medians of 6, noisy: they show that 10 is late, no more)."""

_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_WHO_PROCESS = 1
_THIS_THREAD = 0
_BEST_EFFORT_LOWEST = (2 << 13) | 7
"""Class 2, level 7 (ioprio_set(2)). Not the idle class: under a busy disk that never gets a turn."""


def lower_this_thread() -> None:
    """Lower the CPU and I/O priority of the calling thread, for ever: an unprivileged process cannot take it back."""
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        nice = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(nice + NICE, 19))
    number = _SYS_IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(
            number, _WHO_PROCESS, _THIS_THREAD, _BEST_EFFORT_LOWEST
        )  # refused: no matter
