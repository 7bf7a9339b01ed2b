"""A watched file: the notice of systems that can run a hook on the machine. It exists: notice. It goes: cancelled.

It may be empty, or hold one JSON object: `{"deadline_utc": "2026-01-31T12:00:00Z"}` or `{"seconds": 120}`, which count from when
the file was put there: an agent that takes the place of a killed one gives no more time than that did.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from outlast.notice.base import DEFAULT_GRACE_S, Notice, Polled
from outlast.notice.deadline import MAX_BYTES, seconds_left


class FileSource:
    """Watches one path. A change of content is a change of the same notice; a file that comes back is a new one.

    A file that exists is a notice whatever it holds: a save for nothing costs seconds, a notice missed costs work. Only one
    that another user owns, or others may write, is not believed.
    """

    def __init__(self, path: Path, default_grace_s: float = DEFAULT_GRACE_S) -> None:
        self._path = path
        self._default_grace_s = default_grace_s
        self._seen: tuple[int, ...] | None = None
        self._content = b""
        self._standing: Notice | None = None
        self._count = 0
        self._last_warning = ""

    def poll(self, now_s: float, now_utc: datetime) -> Polled:
        """Look at the file; it is read only when it has changed."""
        try:
            placed_s = os.lstat(self._path).st_ctime
            fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return self._gone()
        except OSError as error:
            return self._warn(f"cannot be read ({error.strerror}); no notice is taken from it")
        try:
            info = os.fstat(fd)
            fault = _fault(info)
            if fault:
                return self._warn(f"{fault}; no notice is taken from it")
            seen = (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size)
            if seen == self._seen:
                return Polled()
            self._seen = seen
            content = os.read(fd, MAX_BYTES + 1)
            if self._standing is not None and content == self._content:
                return Polled()  # touched, or written again: the end that it tells of comes no later
            self._content = content
        except OSError as error:
            return self._warn(f"cannot be read ({error.strerror}); no notice is taken from it")
        finally:
            os.close(fd)
        # Not the time of its content, which a file that is moved into place keeps; a clock that is ahead gives no more time.
        since_utc = min(datetime.fromtimestamp(max(placed_s, info.st_ctime), UTC), now_utc)
        return self._there(content, since_utc, now_s, now_utc)

    def fileno(self) -> None:
        """None: looked at in intervals, which works on every filesystem."""
        return

    def close(self) -> None:
        """Nothing is held."""

    def _there(self, content: bytes, since_utc: datetime, now_s: float, now_utc: datetime) -> Polled:
        after_s, complaint = _seconds_after(content, since_utc, self._default_grace_s)
        left_s = max(after_s - (now_utc - since_utc).total_seconds(), 0.0)
        warnings: tuple[str, ...] = ()
        if complaint:
            warnings = self._warn(f"{complaint}; taken as a notice of {left_s:.0f} s").warnings
            if self._standing is not None:
                return Polled(warnings=warnings)
        if self._standing is None:
            self._count += 1
        notice = Notice(
            id=f"file-{self._path}-{self._count}",
            source=f"file {self._path}",
            kind="machine",
            deadline_s=now_s + left_s,
            deadline_utc=now_utc + timedelta(seconds=left_s),
        )
        self._standing = notice
        return Polled((notice,), warnings)

    def _gone(self) -> Polled:
        standing, self._standing, self._seen, self._last_warning = self._standing, None, None, ""
        if standing is None:
            return Polled()
        return Polled((dataclasses.replace(standing, cancelled=True),))

    def _warn(self, text: str) -> Polled:
        """Say it, once."""
        if text == self._last_warning:
            return Polled()
        self._last_warning = text
        return Polled(warnings=(f"the notice file {self._path} {text}",))


def _fault(info: os.stat_result) -> str:
    """Why the file is not to be believed; "" if it is."""
    if not stat.S_ISREG(info.st_mode):
        return "is not a regular file"
    if info.st_uid not in {0, os.geteuid()}:
        return f"belongs to user {info.st_uid}, neither to root nor to this one ({os.geteuid()})"
    if info.st_mode & stat.S_IWOTH:
        return "can be written by everybody (chmod o-w)"
    return ""


def _seconds_after(content: bytes, since_utc: datetime, default_s: float) -> tuple[float, str]:
    """Seconds from `since_utc` to the deadline, and what is wrong with the content ("" if nothing)."""
    if not content.strip():
        return default_s, ""
    try:
        return seconds_left(content, since_utc), ""
    except ValueError as error:
        return default_s, str(error)
