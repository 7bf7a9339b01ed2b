"""A run in a folder, where durable means durable.

An object is written into a file without a name (`O_TMPFILE`), fsynced, and only then linked under its key, which
never replaces anything. So a crash at any instant leaves the whole object or nothing, not even garbage. Folders are
opened one below the other without following symbolic links, so that a link planted inside the run leads nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from outlast._errors import ObjectDamaged, ObjectMissing, StoreDenied, StoreError, StoreFull, StoreUnavailable
from outlast.store._direct import read_at, write_all
from outlast.store._keys import check_key, folder_of, is_key
from outlast.store._mounts import is_shared
from outlast.store.base import ObjectInfo

_FILE_MODE = 0o600
_FOLDER_MODE = 0o700
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
"""What open(2) answers where the filesystem, or the kernel, has no `O_TMPFILE`."""
_READ_BYTES = 16 << 20
"""One read of `get`; the objects read by it are small."""
_PRUNED_RACES = 100
"""How often a folder may vanish under a writer (`delete` removes empty ones) before that is called a fault."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = {
    errno.EACCES: "no permission: check the owner and mode of the folder",
    errno.EPERM: "not permitted, or a filesystem without hard links, which durable saves need",
    errno.EROFS: "the filesystem is mounted read-only",
    errno.ELOOP: "a symbolic link is not followed inside a run: what it points to has to lie there itself",
    errno.ENOTDIR: "a file or a symbolic link is where a folder should be: remove it",
    errno.ENAMETOOLONG: "the path is too long: choose a shorter one",
}


class LocalStore:
    """The objects of one run as files below `root`, which is made by the first write. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root.expanduser()))  # noqa: PTH100 - resolve() would read the disk
        self._known: set[str] = set()
        self._known_lock = threading.Lock()

    @property
    def url(self) -> str:
        """`file:///absolute/path`."""
        return self._root.as_uri()

    @property
    def is_local_disk(self) -> bool:
        """Whether the filesystem of the root (or of its nearest parent that exists) is this machine's own."""
        return not is_shared(self._root)

    @property
    def honours_create(self) -> bool:
        """True: link(2) never replaces."""
        return True

    def create(self, key: str, data: bytes) -> bool:
        """Put `data` only if `key` does not exist; False if it does."""
        return self._place(key, [memoryview(data)])

    def put(self, key: str, data: bytes) -> None:
        """Put a small object whole; `ObjectDamaged` if other bytes are there already."""
        if not self.create(key, data) and self.get(key) != data:
            msg = f"{self._name(key)}: other bytes are there already; what is saved is never changed"
            raise ObjectDamaged(msg)

    def write(
        self,
        key: str,
        parts: Sequence[memoryview],
        *,
        is_wanted: Callable[[], bool] | None = None,  # noqa: ARG002 - a disk is done before it would be asked
    ) -> None:
        """Write one large object; what an earlier write left under the key is replaced."""
        while not self._place(key, parts):
            with self._errors(key), contextlib.suppress(FileNotFoundError), self._folder(key) as folder:
                os.unlink(_last(key), dir_fd=folder)

    def get(self, key: str) -> bytes:
        """Return a whole object."""
        blocks = []
        with self._errors(key), self._open(key) as file:
            while block := os.read(file, _READ_BYTES):
                blocks.append(block)
        return b"".join(blocks)

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fill `target` from `offset` of the object."""
        target = target.cast("B")
        with self._errors(key), self._open(key) as file:
            count = read_at(file, offset, target)
            size_bytes = os.fstat(file).st_size
        if count < len(target):
            msg = f"{self._name(key)} has {size_bytes} bytes, expected at least {offset + len(target)}: it was cut"
            raise ObjectDamaged(msg)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """List every object below the folder `prefix`, sorted by key; what has no name of ours is not one."""
        folder = folder_of(self.url, prefix)
        found: list[ObjectInfo] = []
        with self._errors(prefix), contextlib.suppress(FileNotFoundError), self._folder(folder) as top:
            found.extend(_walk(top, folder))
        return sorted(found, key=lambda info: info.key)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects in the order given, each folder durably before the next, and the folders left empty."""
        for key in keys:
            check_key(self.url, key)
        for at, key in enumerate(keys):
            with self._errors(key), contextlib.suppress(FileNotFoundError), self._folder(key) as folder:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(_last(key), dir_fd=folder)
                if at + 1 == len(keys) or _parent(keys[at + 1]) != _parent(key):
                    os.fsync(folder)
        for parent in sorted({_parent(key) for key in keys}, key=len, reverse=True):
            with self._errors(parent):
                self._remove_empty(parent)

    def _place(self, key: str, parts: Sequence[memoryview]) -> bool:
        """Make the object durable and only then visible; False if the key is taken."""
        check_key(self.url, key)
        for _ in range(_PRUNED_RACES):
            with (
                self._errors(key),
                contextlib.suppress(FileNotFoundError),
                self._folder(key, make=True) as folder,
            ):
                return _place(folder, _last(key), parts)
        msg = f"{self._name(key)}: its folder is deleted again and again by somebody else"
        raise StoreUnavailable(msg)

    @contextlib.contextmanager
    def _open(self, key: str) -> Iterator[int]:
        """Open an object's file for reading. A FIFO must not block, hence `O_NONBLOCK`."""
        check_key(self.url, key)
        with self._folder(key) as folder:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(_last(key), flags, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                msg = f"{self._name(key)} is no regular file"
                raise ObjectMissing(msg)
            yield file
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _folder(self, key: str, *, make: bool = False) -> Iterator[int]:
        """Open the folder that holds `key` (or is it, with a `/` at the end), and with `make` make it durable."""
        if make:
            self._make_root()
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = ""
            for part in key.split("/")[:-1]:
                path += part + "/"
                below = self._enter(folder, part, path, make=make)
                os.close(folder)
                folder = below
            yield folder
        finally:
            os.close(folder)

    def _enter(self, above: int, part: str, path: str, *, make: bool) -> int:
        """Open a folder below another.

        One that this store has not seen yet may have been made by a process that has not fsynced it: its entry is
        made durable before anything in it counts as such.
        """
        made = False
        while True:
            try:
                below = os.open(part, _FOLDER_FLAGS, dir_fd=above)
                break
            except FileNotFoundError:
                if not make:
                    raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, _FOLDER_MODE, dir_fd=above)
                made = True
        if make and (made or path not in self._known):
            try:
                os.fsync(above)
            except BaseException:
                os.close(below)
                raise
            with self._known_lock:
                self._known.add(path)
        return below

    def _make_root(self) -> None:
        if "" in self._known:
            if self._root.is_dir():
                return
            msg = f"{self._root} is gone: the folder was deleted or moved, or is no longer mounted"
            raise StoreUnavailable(msg)
        missing = []
        at = self._root
        while not at.is_dir():
            missing.append(at)
            at = at.parent
        for folder in reversed(missing):
            try:
                folder.mkdir(_FOLDER_MODE, exist_ok=True)
            except FileNotFoundError as error:
                if not folder.parent.is_dir():
                    raise  # it was deleted meanwhile
                msg = f"{folder} cannot be made: {folder.parent} takes no new folders; choose another place"
                raise StoreDenied(msg) from error
            _fsync_folder(folder.parent)
        _fsync_folder(self._root.parent)
        with self._known_lock:
            self._known.add("")

    def _remove_empty(self, path: str) -> None:
        while path:
            above, part = _parent(path), _last(path)
            with self._known_lock:
                self._known.discard(path + "/")
            try:
                with self._folder(path) as folder:
                    os.rmdir(part, dir_fd=folder)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return
                raise
            path = above

    def _name(self, key: str) -> str:
        return str(self._root / key)

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Say in the store's own errors what the system said."""
        try:
            yield
        except _LinkInside as error:
            raise _translated(error, self._name(error.key)) from error
        except OSError as error:
            raise _translated(error, self._name(key)) from error


class _LinkInside(OSError):
    """A listing came upon a symbolic link, which need not be what was asked for."""

    def __init__(self, key: str) -> None:
        super().__init__(errno.ELOOP, os.strerror(errno.ELOOP))
        self.key = key


def _place(folder: int, name: str, parts: Sequence[memoryview]) -> bool:
    try:
        file = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, _FILE_MODE, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
        return _place_named(folder, name, parts)
    try:
        if not Path(f"/proc/self/fd/{file}").exists():
            return _place_named(folder, name, parts)
        _fill(file, parts)
        return _link(f"/proc/self/fd/{file}", name, folder)
    finally:
        os.close(file)


def _place_named(folder: int, name: str, parts: Sequence[memoryview]) -> bool:
    """The same through a hidden name, on filesystems (nfs, most of fuse) that have no files without one."""
    hidden = f".tmp-{secrets.token_hex(8)}"
    file = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _FILE_MODE, dir_fd=folder)
    try:
        try:
            _fill(file, parts)
        finally:
            os.close(file)
        return _link(hidden, name, folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden, dir_fd=folder)


def _fill(file: int, parts: Sequence[memoryview]) -> None:
    write_all(file, parts)
    os.fsync(file)


def _link(source: str, name: str, folder: int) -> bool:
    """Give a whole file its name, durably; False if the name is taken.

    The folder is fsynced in both cases: another process that put the object may not have got so far, and the caller
    now builds on it.
    """
    taken = False
    try:
        os.link(source, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:
        taken = True
    os.fsync(folder)
    return not taken


def _walk(folder: int, path: str) -> Iterator[ObjectInfo]:
    """Yield the objects below an open folder. A folder that is deleted meanwhile holds none.

    A symbolic link is an error and not passed over: with `checkpoints` moved to another disk and linked, a listing
    that says "nothing here" would start the run afresh.
    """
    below = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_key(entry.name):
                continue
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                elif entry.is_symlink():
                    raise _LinkInside(path + entry.name)
                elif entry.is_file(follow_symlinks=False):
                    size = entry.stat(follow_symlinks=False).st_size
                    yield ObjectInfo(path + entry.name, size)
    for name in below:
        try:
            opened = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
        except FileNotFoundError:
            continue
        try:
            yield from _walk(opened, f"{path}{name}/")
        finally:
            os.close(opened)


def _fsync_folder(path: Path) -> None:
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        os.sync()  # a parent that may be passed but not read cannot be fsynced alone
        return
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _translated(error: OSError, name: str) -> StoreError:
    said = os.strerror(error.errno) if error.errno else str(error)
    if isinstance(error, FileNotFoundError):
        return ObjectMissing(f"{name} does not exist")
    if error.errno in _FULL:
        return StoreFull(f"{name}: {said}: free space there, or raise the quota")
    if error.errno in _DENIED:
        return StoreDenied(f"{name}: {said}: {_DENIED[error.errno]}")
    return StoreUnavailable(f"{name}: {said}")


def _parent(key: str) -> str:
    return key.rpartition("/")[0]


def _last(key: str) -> str:
    return key.rpartition("/")[2]
