"""Direct I/O on filesystems that take it, take it in part, or do not: the bytes are the same."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
from pathlib import Path

import pytest

from outlast.store import open_store
from outlast.store.local import LocalStore

MIB = 1 << 20
PAGE = 4096
DATA = random.Random(3).randbytes(3 * MIB + 77)


def arena(data: bytes) -> memoryview:
    """The same bytes in memory that starts at a page, as a snapshot's."""
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memoryview(memory)


def is_direct(file: int) -> bool:
    return bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.fixture
def writes(monkeypatch):
    """Every write of `os.write`: how many bytes it was asked for, and whether it went past the page cache."""
    seen, real = [], os.write

    def write(file, view):
        seen.append((len(view), is_direct(file)))
        return real(file, view)

    monkeypatch.setattr(os, "write", write)
    return seen


def test_an_aligned_arena_is_written_as_it_lies(tmp_path, writes):
    """Whole blocks go in one direct write from the arena itself, the odd tail in one ordinary write."""
    open_store(str(tmp_path)).write("segments/x.bin", [arena(DATA)])
    tail = len(DATA) % PAGE
    assert [size for size, _ in writes] == [len(DATA) - tail, tail]
    assert writes[1][1] is False
    if not writes[0][1]:
        pytest.skip("this filesystem takes no direct I/O")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_refusal_at_any_write_is_outlived(tmp_path, monkeypatch, at):
    """A filesystem may take the switch and the first writes, and refuse a later one: the rest is written ordinarily."""
    count, real = 0, os.write

    def write(file, view):
        nonlocal count
        if is_direct(file):
            count += 1
            if count > at:
                raise OSError(errno.EINVAL, "Invalid argument")
        return real(file, view)

    monkeypatch.setattr(os, "write", write)
    parts = [arena(DATA), arena(DATA[:MIB]), memoryview(DATA)]
    open_store(str(tmp_path)).write("segments/x.bin", parts)
    assert (tmp_path / "segments/x.bin").read_bytes() == DATA + DATA[:MIB] + DATA


def test_a_write_that_stops_between_two_blocks_is_finished(tmp_path, monkeypatch):
    """What was taken may end where no direct write can go on, as on network filesystems."""
    real, cut = os.write, []

    def write(file, view):
        if is_direct(file) and not cut:
            cut.append(True)
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)
            done = real(file, view[: MIB + 5])
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)
            return done
        return real(file, view)

    monkeypatch.setattr(os, "write", write)
    open_store(str(tmp_path)).write("segments/x.bin", [arena(DATA)])
    assert cut
    assert (tmp_path / "segments/x.bin").read_bytes() == DATA


@pytest.mark.parametrize("taken", [0, MIB, MIB + 5])
def test_a_read_that_is_refused_or_stops_early_is_finished(tmp_path, monkeypatch, taken):
    """Direct reads that are refused after `taken` bytes are ordinary ones from there on."""
    store = open_store(str(tmp_path))
    store.write("segments/x.bin", [arena(DATA)])
    real = os.preadv

    def preadv(file, buffers, offset):
        if not is_direct(file):
            return real(file, buffers, offset)
        if offset >= taken:
            raise OSError(errno.EINVAL, "Invalid argument")
        whole = bytearray(PAGE * (taken // PAGE + 1))
        got = min(real(file, [memoryview(arena(whole))], offset), taken)
        buffers[0][:got] = DATA[offset : offset + got]
        return got

    monkeypatch.setattr(os, "preadv", preadv)
    target = arena(bytes(2 * MIB))
    store.read_into("segments/x.bin", 0, target)
    assert target == DATA[: 2 * MIB]


def test_memory_that_is_a_file_itself_takes_everything():
    """tmpfs, with and without direct I/O (Linux takes it there from 6.6 on)."""
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("no /dev/shm here")
    root = shm / f"outlast-test-{os.getpid()}"
    store = LocalStore(root)
    try:
        store.write("segments/x.bin", [arena(DATA), memoryview(DATA)])
        target = bytearray(len(DATA))
        store.read_into("segments/x.bin", len(DATA), memoryview(target))
        assert target == DATA
    finally:
        store.delete([info.key for info in store.list()])
        root.rmdir()
