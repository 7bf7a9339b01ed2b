"""Threads that give way: a save that can wait takes what training leaves of the cores and the disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading

NICE = 10
"""Added to the thread's niceness: a core that training wants gives such a thread a tenth (weight 110 to 1024, sched(7))."""

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
