"""How a script ends: our errors get their exit codes, and what ended it is kept for the decision on a relaunch."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from outlast._errors import EXIT_INTERRUPTED, OutlastError
from outlast._say import say

_MOST_CHARACTERS = 1000
_MOST_OF_TRACE = 8000
"""The last ones: where it happened stands at the end."""

_ended_by: list[str] = []
_trace: list[str] = []
_before: list[Callable[[type[BaseException], BaseException, TracebackType | None], object]] = []
"""The script's own hook."""
_tail_resumed: list[int] = []
_TAIL_HINT = (
    "epoch {} was resumed in its tail, so the loop over its batches ran no body, and names that only the body sets do not "
    "exist. Set them before the loop, or keep them in run.vars"
)


def ended_by() -> str | None:
    """The exception that ended the script, on one line; None while none has."""
    return _ended_by[-1] if _ended_by else None


def trace_of_end() -> str:
    """The traceback of that exception, as Python prints it; empty while none has."""
    return "".join(_trace)[-_MOST_OF_TRACE:]


def tail_resumed(epoch: int | None) -> None:
    """Epoch `epoch` is entered with no batches left; None: its tail is over."""
    _tail_resumed[:] = [] if epoch is None else [epoch]


def flush_logging() -> threading.Thread | None:
    """Begin to flush the handlers of every logger; in a daemon thread, since one of them may wait for a network.

    Returns:
        The thread; None where none can be started any more.
    """

    def flush() -> None:
        loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
        for handler in {
            h for logger in loggers if isinstance(logger, logging.Logger) for h in logger.handlers
        }:
            try:
                handler.flush()
            except Exception as error:  # one handler's fault is not the others'
                say(f"warning: what was logged through {handler!r} is not flushed: {error}")

    thread = threading.Thread(target=flush, name="outlast-logging", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None  # in an exit hook some versions of Python start none; `logging` flushes in one of its own
    return thread


def first_at_exit(hook: Callable[[], None]) -> None:
    """Call an exit hook as soon as the main thread has ended, before those of others, which may hang.

    Where other threads go on then, which may be what trains, it is left to its turn.
    """

    def wait() -> None:
        main = threading.main_thread()
        main.join()
        if all(thread.daemon or thread is main for thread in threading.enumerate()):
            hook()

    threading.Thread(target=wait, name="outlast-main", daemon=True).start()


def end_with(code: int) -> NoReturn:
    """End this process now: at its exit there is no other way to say with which code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody is listening any more
    os._exit(code)


def exit_by(at_s: float, code: int, last: Callable[[], None]) -> None:
    """End this process at `at_s` (monotonic) with `code`, unless it has ended before, whatever still runs in it.

    Args:
        at_s: when.
        code: its exit code.
        last: called before, in a thread of its own.
    """

    def end() -> None:
        time.sleep(max(at_s - time.monotonic(), 0.0))
        last()
        end_with(code)

    with contextlib.suppress(RuntimeError):  # in an exit hook, as above: this process ends by itself
        threading.Thread(target=end, name="outlast-exit", daemon=True).start()


def watch_exceptions() -> None:
    """From now on an exception that nothing catches is noted, and ends the script with its exit code."""
    if sys.excepthook is not _end:
        _before[:] = [sys.excepthook]
        sys.excepthook = _end


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _ended_by.append(f"{kind.__name__}: {error}"[:_MOST_CHARACTERS])
    _trace[:] = traceback.format_exception(kind, error, trace)
    if isinstance(error, OutlastError):
        say(f"{kind.__name__}: {error}")
        raise SystemExit(error.exit_code)
    (_before[0] if _before else sys.__excepthook__)(kind, error, trace)
    if _tail_resumed and issubclass(kind, NameError):
        say(_TAIL_HINT.format(_tail_resumed[0]))
    if issubclass(kind, KeyboardInterrupt):
        raise SystemExit(EXIT_INTERRUPTED)
