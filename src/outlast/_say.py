"""Lines for the person who watches: on stderr, one prefix, never buffered."""

from __future__ import annotations

import atexit
import queue
import sys
import threading
import time

LINES_KEPT = 1000
"""So many lines wait for a reader who stands still; what comes after them is not said."""
LAST_WORDS_S = 1.0
"""Longest wait for that reader at the end."""

_waiting: queue.Queue[str] | None = None


def say(message: str) -> None:
    """Write a line, or several, to stderr; a closed stderr is no reason to stop training."""
    if _waiting is None:
        _write(message)
        return
    try:
        _waiting.put_nowait(message)
    except queue.Full:
        pass  # nobody has read for long


def wait_for_nobody() -> None:
    """From here on `say` returns at once: a terminal that was stopped, or a pager, must not keep an agent from saving."""
    global _waiting  # noqa: PLW0603 - one stderr, one thread that writes to it
    if _waiting is None:
        _waiting = queue.Queue(LINES_KEPT)
        threading.Thread(target=_speak, args=(_waiting,), name="outlast-say", daemon=True).start()
        atexit.register(said, LAST_WORDS_S)


def said(within_s: float) -> None:
    """Wait until all lines are written, for so long."""
    until_s = time.monotonic() + within_s
    while _waiting is not None and _waiting.unfinished_tasks and time.monotonic() < until_s:
        time.sleep(0.005)


def _speak(waiting: queue.Queue[str]) -> None:
    while True:
        _write(waiting.get())
        waiting.task_done()


def _write(message: str) -> None:
    try:
        for line in message.splitlines():
            sys.stderr.write(f"outlast: {line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody is listening any more
