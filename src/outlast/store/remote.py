"""A run in a bucket, through obstore. S3 for now; another cloud is another client in `_client.connect`."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from outlast._errors import ObjectDamaged, ObjectMissing, StoreDenied
from outlast.store._client import Patience, Result, connect, persist, status_of
from outlast.store._keys import check_key, folder_of, is_key
from outlast.store.base import ObjectInfo

_PIECE_BYTES = 8 << 20
"""One part of an upload and one range of a download: AWS advises 8-16 MB per request (S3 performance guidelines)."""
_IN_FLIGHT = 8
"""Requests at once for one object; a connection to S3 carries some 85-90 MB/s (the same guidelines)."""
_SLOW_PIECE_BYTES = 5 << 20
"""The smallest part that S3 takes, for the second try over a line that was too slow for the first."""
_DELETED_AT_ONCE = 1000
"""The most that one DeleteObjects request of S3 takes."""

_CONFLICT, _RANGE_BEYOND_END, _NOT_IMPLEMENTED = 409, 416, 501
"""HTTP statuses that are an answer here. S3 says 409 to a create beside a delete or another create: ask again."""


class RemoteStore:
    """The objects of one run below `s3://bucket/prefix`. Thread-safe."""

    def __init__(self, url: str, *, patience: Patience | None = None) -> None:
        self._patience = patience or Patience.from_environment()
        self._clients = connect(url, self._patience)
        self._url = url.rstrip("/")
        self._honours_create: bool | None = None
        self._probing = threading.Lock()
        self._serves_ranges = True

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return self._url

    @property
    def is_local_disk(self) -> bool:
        """False: a bucket outlives the machine."""
        return False

    @property
    def honours_create(self) -> bool:
        """Whether the store refuses the second of two creates; asked once, with an object that is deleted again."""
        with self._probing:
            if self._honours_create is None:
                self._honours_create = self._probe()
            return self._honours_create

    def create(self, key: str, data: bytes) -> bool:
        """Put `data` only if `key` does not exist; False if it does.

        On a store that ignores the condition: check, put and read back.
        """
        check_key(self._url, key)
        if self.honours_create:
            return self._create(key, data) is True
        if self._exists(key):
            return False
        self._put(key, data)
        return self.get(key) == data

    def put(self, key: str, data: bytes) -> None:
        """Put a small object whole; `ObjectDamaged` if other bytes are there already."""
        if not self.create(key, data) and self.get(key) != data:
            msg = f"{self._name(key)}: other bytes are there already; what is saved is never changed"
            raise ObjectDamaged(msg)

    def write(self, key: str, parts: Sequence[memoryview]) -> None:
        """Write one large object, in several requests at once; what an earlier write left there is replaced.

        It appears whole, when the last request is done. A write that is killed leaves parts that no listing shows:
        let a lifecycle rule of the bucket abort incomplete multipart uploads.
        """
        check_key(self._url, key)
        views = [part.cast("B") for part in parts]
        if sum(map(len, views)) <= _PIECE_BYTES:
            self._put(key, b"".join(views))
            return
        manners = iter([(_PIECE_BYTES, _IN_FLIGHT)])

        def upload() -> None:
            piece_bytes, in_flight = next(manners, (_SLOW_PIECE_BYTES, 1))
            obstore.put(
                self._clients.bucket,
                self._path(key),
                _pieces(views, piece_bytes),
                use_multipart=True,
                chunk_size=piece_bytes,
                max_concurrency=in_flight,
            )

        persist(self._patience, self._name(key), upload, tries=2)

    def get(self, key: str) -> bytes:
        """Return a whole small object."""
        path = self._path(check_key(self._url, key))
        return self._ask(key, lambda: obstore.get(self._clients.bucket, path).bytes().to_bytes())

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fill `target` from `offset` of the object, by several ranges at once."""
        check_key(self._url, key)
        target = target.cast("B")
        starts = range(0, len(target), _PIECE_BYTES)
        if len(starts) <= 1:
            self._read_piece(key, offset, target)
            return
        with ThreadPoolExecutor(min(_IN_FLIGHT, len(starts)), "outlast-read") as pool:
            pieces = [
                pool.submit(self._read_piece, key, offset + at, target[at : at + _PIECE_BYTES])
                for at in starts
            ]
            try:
                for piece in pieces:
                    piece.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """List every object below the folder `prefix`, sorted by key; what has no name of ours is not one.

        All pages or an error, never a part.
        """
        folder = self._clients.prefix + folder_of(self._url, prefix)
        strip = len(self._clients.prefix)

        def ask() -> list[ObjectInfo]:
            listed = obstore.list(self._clients.bucket, folder or None).collect()
            return [ObjectInfo(meta["path"][strip:], meta["size"]) for meta in listed]

        found = self._ask(prefix, ask)
        return sorted((info for info in found if is_key(info.key)), key=lambda info: info.key)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is already gone is no error."""
        for key in keys:
            check_key(self._url, key)
        for at in range(0, len(keys), _DELETED_AT_ONCE):
            some = keys[at : at + _DELETED_AT_ONCE]
            try:
                self._delete(some)
            except ObjectMissing:
                for key in some:
                    with contextlib.suppress(ObjectMissing):
                        self._delete([key])

    def _delete(self, keys: Sequence[str]) -> None:
        paths = [self._path(key) for key in keys]
        self._ask(keys[0], lambda: obstore.delete(self._clients.bucket, paths))

    def _create(self, key: str, data: bytes) -> bool | None:
        """Create by `If-None-Match: *`; False if the object exists, None if the store knows no such condition.

        The client does not repeat this by itself: after a lost answer the object that refuses us may be our own, and
        then the bytes tell.
        """
        path = self._path(key)
        tries = 0

        def ask() -> bool | None:
            nonlocal tries
            tries += 1
            try:
                obstore.put(self._clients.once, path, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError) as error:
                if status_of(error) == _CONFLICT:
                    raise
                return False
            except BaseError as error:
                if status_of(error) == _NOT_IMPLEMENTED:
                    return None
                raise
            return True

        created = self._ask(key, ask)
        if created is False and tries > 1:
            return self.get(key) == data
        return created

    def _probe(self) -> bool:
        key = f"probe/{secrets.token_hex(8)}"
        if self._create(key, b"1") is None:
            return False
        honours = self._create(key, b"2") is False
        with contextlib.suppress(
            StoreDenied
        ):  # may write but not delete: the probe stays, and nothing reads it
            self.delete([key])
        return honours

    def _put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        self._ask(key, lambda: obstore.put(self._clients.bucket, path, data, use_multipart=False))

    def _exists(self, key: str) -> bool:
        try:
            self._size(key)
        except ObjectMissing:
            return False
        return True

    def _size(self, key: str) -> int:
        path = self._path(key)
        return self._ask(key, lambda: obstore.head(self._clients.bucket, path)["size"])

    def _read_piece(self, key: str, offset: int, target: memoryview) -> None:
        if not target:
            return
        count = self._ask(key, lambda: self._read_once(self._path(key), offset, target))
        if count < len(target):
            msg = f"{self._name(key)} has {self._size(key)} bytes, expected at least {offset + len(target)}: it was cut"
            raise ObjectDamaged(msg)

    def _read_once(self, path: str, offset: int, target: memoryview) -> int:
        """Return how many bytes there were for `target`."""
        if not self._serves_ranges:
            return self._read_skipping(path, offset, target)
        try:
            got = memoryview(obstore.get_range(self._clients.bucket, path, start=offset, length=len(target)))
        except BaseError as error:
            if "non-partial response" in str(error):
                self._serves_ranges = False
                return self._read_skipping(path, offset, target)
            if status_of(error) == _RANGE_BEYOND_END or "range starting at" in str(error):
                return 0
            raise
        target[: len(got)] = got
        return len(got)

    def _read_skipping(self, path: str, offset: int, target: memoryview) -> int:
        """Read a range off the whole object.

        A few S3 look-alikes (rclone, lakeFS) answer a range with 200 instead of 206, which the client refuses.
        """
        at = 0
        for block in obstore.get(self._clients.bucket, path).stream(_PIECE_BYTES):
            wanted = memoryview(block)[max(0, offset - at) : max(0, offset + len(target) - at)]
            to = max(0, at - offset)
            target[to : to + len(wanted)] = wanted
            at += len(block)
            if at >= offset + len(target):
                break
        return max(0, min(at - offset, len(target)))

    def _ask(self, key: str, ask: Callable[[], Result]) -> Result:
        return persist(self._patience, self._name(key), ask)

    def _path(self, key: str) -> str:
        return self._clients.prefix + key

    def _name(self, key: str) -> str:
        return f"{self._url}/{key}"


def _pieces(views: Sequence[memoryview], piece_bytes: int) -> Iterator[memoryview]:
    for view in views:
        for at in range(0, len(view), piece_bytes):
            yield view[at : at + piece_bytes]
