"""Arenas: anonymous memory files that trainer and agent share.

The trainer creates one, passes its descriptor over the socket, and both map it. Nothing has a name in a
filesystem, so nothing is left when everything is killed; the memory goes with the last process that maps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import threading

PAGE_BYTES = mmap.PAGESIZE
ALIGN_BYTES = 64
"""Small tensors start at a cache line; those of a page or more start at a page, for direct I/O."""

_MADV_POPULATE_WRITE = 23
"""Linux 5.14: map pages writable without changing them; Python's mmap has no name for it."""
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
"""Of fallocate(2); Python has no name for them either."""
_TOUCH_BYTES = 64 << 20
"""Pages mapped at a time: a fault of the copy waits no longer than this takes (20 ms)."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""A descriptor that cannot be resized: neither side can make the other fault on a page that is gone."""


class Arena:
    """One mapped memory file.

    Attributes:
        fd: its descriptor, to be passed on; owned by this object.
        size_bytes: its size, a multiple of the page size.
        view: its bytes, writable.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size_bytes = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, self.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # A forked loader worker must not keep the memory of a dead trainer.
        self._map.madvise(mmap.MADV_DONTFORK)
        self.view = memoryview(self._map)
        self._giving_back: threading.Thread | None = None

    @classmethod
    def create(cls, size_bytes: int) -> Arena:
        """Create an arena of at least `size_bytes`; its pages are touched by `populate`."""
        fd = os.memfd_create("outlast-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, max(page_ceil(size_bytes), PAGE_BYTES))
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    def populate(self, nbytes: int | None = None) -> None:
        """Map the first `nbytes` (default: every page) in the background, so that the first copy is not slow.

        It needs no interpreter lock. Where memory is short the copy that needs it will say so.
        """
        # The thread holds an export of the mapping: closed or not meanwhile, its addresses stay this arena's.
        size = self.size_bytes if nbytes is None else min(page_ceil(nbytes), self.size_bytes)
        pages = (ctypes.c_char * size).from_buffer(self._map)
        threading.Thread(target=_touch, args=(pages,), name="outlast-populate", daemon=True).start()

    def give_back(self, start: int) -> None:
        """Give the memory of all whole pages from `start` on back to the machine, in the background.

        They read as zeros afterwards. Nothing may write there until `settle`.
        """
        start = page_ceil(start)
        if start < self.size_bytes:
            self.settle()
            fd = os.dup(self.fd)  # the thread's own: this arena may be closed meanwhile
            self._giving_back = threading.Thread(
                target=_punch,
                args=(fd, start, self.size_bytes - start),
                name="outlast-give-back",
                daemon=True,
            )
            self._giving_back.start()

    def settle(self) -> None:
        """Wait until what was given back is gone."""
        if self._giving_back is not None:
            self._giving_back.join()
            self._giving_back = None

    def share_with_forks(self) -> None:
        """Keep it mapped in processes that are forked from here."""
        self._map.madvise(mmap.MADV_DOFORK)

    def close(self) -> None:
        """Unmap and close. A view that is still held elsewhere keeps the mapping until it goes."""
        if self.fd < 0:
            return
        self.view.release()
        with contextlib.suppress(
            BufferError
        ):  # a tensor still looks into it; the mapping goes with the last view
            self._map.close()
        os.close(self.fd)
        self.fd = -1


def page_ceil(nbytes: int) -> int:
    """Round up to a whole page."""
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def place(offset: int, nbytes: int) -> int:
    """Where in an arena a tensor of `nbytes` goes that may not start before `offset`."""
    align = PAGE_BYTES if nbytes >= PAGE_BYTES else ALIGN_BYTES
    return -(-offset // align) * align


def _touch(pages: ctypes.Array[ctypes.c_char]) -> None:
    libc = ctypes.CDLL(None)
    start, size = ctypes.addressof(pages), ctypes.sizeof(pages)
    for at in range(0, size, _TOUCH_BYTES):
        length = min(_TOUCH_BYTES, size - at)
        if libc.madvise(ctypes.c_void_p(start + at), ctypes.c_size_t(length), _MADV_POPULATE_WRITE) != 0:
            return  # a kernel before 5.14, or memory is short: the first copy maps the pages itself


def _punch(fd: int, start: int, nbytes: int) -> None:
    libc = ctypes.CDLL(None)
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    libc.fallocate(
        fd, mode, ctypes.c_long(start), ctypes.c_long(nbytes)
    )  # where it fails the memory stays taken
    os.close(fd)
