"""Wait for files to appear under a folder (Linux inotify), within microseconds."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import time
from collections import deque
from pathlib import Path
from typing import Self

_IN_CREATE = 0x00000100
_IN_MOVED_TO = 0x00000080
_IN_Q_OVERFLOW = 0x00004000
_IN_IGNORED = 0x00008000
_IN_ISDIR = 0x40000000
_EVENT = struct.Struct("iIII")
"""wd, mask, cookie, length of the name that follows (inotify(7))."""


class NewFiles:
    """The files that appear under `folder`, at any depth, after this object was made.

    A folder made at the same instant as its first file can hide that file: new folders are looked into.
    """

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._folders: dict[int, Path] = {}
        self._found: deque[Path] = deque()
        for path, _, _ in os.walk(folder):
            self._watch(Path(path))

    def wait(self, timeout_s: float) -> Path | None:
        """Return the next new file, or None if there is none within `timeout_s`. A file may be told of twice."""
        end = time.monotonic() + timeout_s
        while not self._found:
            left = max(end - time.monotonic(), 0.0)
            if not select.select([self._fd], [], [], left)[0]:
                return None
            self._read()
        return self._found.popleft()

    def _read(self) -> None:
        data = os.read(self._fd, 65536)
        at = 0
        while at < len(data):
            wd, mask, _, length = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0").decode()
            at += _EVENT.size + length
            if mask & (_IN_IGNORED | _IN_Q_OVERFLOW):
                continue
            path = self._folders[wd] / name
            if not mask & _IN_ISDIR:
                self._found.append(path)
                continue
            self._watch(path)
            for inside, folders, names in os.walk(path):
                for new in folders:
                    self._watch(Path(inside, new))
                self._found.extend(Path(inside, name) for name in names)

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watch(self, path: Path) -> None:
        wd = self._libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_CREATE | _IN_MOVED_TO)
        if wd >= 0:
            self._folders[wd] = path
        elif ctypes.get_errno() != errno.ENOENT:  # else it was deleted while we looked
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(path))
