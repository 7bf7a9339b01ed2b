"""A run in a bucket of S3, Google Cloud Storage or Azure, through obstore."""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from outlast._errors import ObjectDamaged, ObjectMissing, StoreDenied
from outlast.store._client import Patience, Result, persist
from outlast.store._clouds import connect
from outlast.store._faults import status_of
from outlast.store._keys import check_key, folder_of, is_key
from outlast.store._sending import put
from outlast.store.base import ObjectInfo

_PIECE_BYTES = 8 << 20
"""One part of an upload and one range of a download: AWS advises 8-16 MB per request (S3 performance guidelines)."""
_IN_FLIGHT = 8
"""Requests at once for one object; a connection to S3 carries some 85-90 MB/s (the same guidelines)."""
_SLOW_PIECE_BYTES = 5 << 20
"""The smallest part that S3 takes, for the later tries over a line that was too slow for the first."""
_SLOW_IN_FLIGHT = 2
_UNKNOWN_IN_FLIGHT = 4
"""Before the line was measured: a few segments are written at a time, and with all their parts on the way at once a line of 60 MB/s
needs longer for each of them than a first try may take."""
_ARRIVED_KEPT = 4 * _IN_FLIGHT
_SHORT_S = 1e-6
_LEAST_HASTE = 4
"""What is in flight is what the line carries in this part of the time after which a first try is cut off."""
_BLOCK_BYTES = 1 << 20
"""A download is handed on in blocks of this size; larger and smaller ones cost more time (measured 64 KiB to 8 MiB)."""
_DELETED_AT_ONCE = 1000
"""The most that one DeleteObjects request of S3 takes."""

_CONFLICT, _RANGE_BEYOND_END, _NOT_IMPLEMENTED = 409, 416, 501
"""HTTP statuses that are an answer here. S3 says 409 to a create beside a delete or another create: ask again."""
_EXISTS_ON_AZURE = "BlobAlreadyExists"
"""The code with which Azure answers 409 to the second of two creates."""


class RemoteStore:
    """The objects of one run below `s3://`, `gs://` or `az://` `bucket/prefix`. Thread-safe."""

    def __init__(self, url: str, *, patience: Patience | None = None) -> None:
        self._patience = patience or Patience.from_environment()
        self._clients = connect(url, self._patience)
        self._url = url.rstrip("/")
        self._honours_create: bool | None = None
        self._probing = threading.Lock()
        self._serves_ranges: bool | None = None
        self._bytes_per_s = math.inf
        self._arrived: deque[_Arrived] = deque(maxlen=_ARRIVED_KEPT)
        self._counting = threading.Lock()
        self._under_way = 0

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`, with the scheme of its cloud."""
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

    def write(
        self, key: str, parts: Sequence[memoryview], *, is_wanted: Callable[[], bool] | None = None
    ) -> None:
        """Write one large object, in several requests at once; what an earlier write left there is replaced.

        It appears whole, when the last request is done. A write that is killed, or not wanted any more, leaves parts that no
        listing shows: let a lifecycle rule of the bucket abort incomplete multipart uploads.
        """
        check_key(self._url, key)
        views = [part.cast("B") for part in parts]
        path, nbytes = self._path(key), sum(map(len, views))

        def whole(slowness: int, _beside: int) -> None:
            # Not repeated by the client itself: a body that is too much for the line would be sent in vain again and again.
            client = self._clients.once_sending(slowness)
            put(client, path, b"".join(views), is_wanted, use_multipart=False)

        def in_pieces(slowness: int, beside: int) -> None:
            piece_bytes = _SLOW_PIECE_BYTES if slowness else _PIECE_BYTES
            put(
                self._clients.sending(slowness),
                path,
                _pieces(views, piece_bytes),
                is_wanted,
                use_multipart=True,
                chunk_size=piece_bytes,
                max_concurrency=_SLOW_IN_FLIGHT if slowness else self._parts_at_once(beside),
            )

        if nbytes <= _PIECE_BYTES:
            self._upload(key, nbytes, (nbytes, nbytes), whole)
        else:
            in_flight = _PIECE_BYTES * _SLOW_IN_FLIGHT, _SLOW_PIECE_BYTES * _SLOW_IN_FLIGHT
            self._upload(key, nbytes, in_flight, in_pieces)

    def get(self, key: str) -> bytes:
        """Return a whole small object."""
        path = self._path(check_key(self._url, key))
        return self._ask(key, lambda number: obstore.get(self._clients.at(number), path).bytes().to_bytes())

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fill `target` from `offset` of the object, by several ranges at once.

        Where the store serves no ranges, in one pass over the object from its start: read far at once there.
        """
        check_key(self._url, key)
        target = target.cast("B")
        if not target:
            return
        try:
            if self._serves_ranges is False:
                self._read_whole(key, offset, target)
            else:
                self._read_pieces(key, offset, target)
        except _NoRanges:
            self._serves_ranges = False
            self._read_whole(key, offset, target)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """List every object below the folder `prefix`, sorted by key; what has no name of ours is not one.

        All pages or an error, never a part. The empty object by which consoles show the folder itself is not in it.
        """
        below = folder_of(self._url, prefix)
        folder = self._clients.prefix + below
        strip = len(self._clients.prefix)

        def ask(number: int) -> list[ObjectInfo]:
            listed = obstore.list(self._clients.at(number), folder or None).collect()
            return [ObjectInfo(meta["path"][strip:], meta["size"]) for meta in listed]

        found = self._ask(prefix, ask)
        ours = (info for info in found if is_key(info.key) and info.key.startswith(below))
        return sorted(ours, key=lambda info: info.key)

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
        self._ask(keys[0], lambda number: obstore.delete(self._clients.at(number), paths))

    def _create(self, key: str, data: bytes) -> bool | None:
        """Create by `If-None-Match: *`; False if the object exists, None if the store knows no such condition.

        The client does not repeat this by itself: after a lost answer the object that refuses us may be our own, and
        then the bytes tell.
        """
        path = self._path(key)
        tries = 0

        def ask(number: int) -> bool | None:
            nonlocal tries
            tries = number + 1
            try:
                obstore.put(self._clients.once_at(number), path, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError) as error:
                if status_of(error) == _CONFLICT and _EXISTS_ON_AZURE not in str(error):
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

    def _upload(
        self, key: str, nbytes: int, in_flight: tuple[int, int], send: Callable[[int, int], None]
    ) -> None:
        """Call `send` until it succeeds, for a slower line from try to try, and from the first on for one that is known to be slow.

        An answer comes when a body has arrived, so a line that carries too little looks like a store that hangs; and what was
        sent in vain may still be on its way when the next try begins.

        Args:
            key: of the object.
            nbytes: its size.
            in_flight: bytes that `send` has on their way at once at the least, on a line that is not slow and on one that is.
            send: sends all of it, over a line of a slowness (0 to 2), as one of so many uploads.
        """

        def upload(number: int) -> None:
            with self._counting:
                self._under_way += 1
                beside = self._under_way
            try:
                fast_s, slow_s = (_LEAST_HASTE * each * beside / self._bytes_per_s for each in in_flight)
                known = (
                    0 if fast_s <= self._patience.quick_s else 1 if slow_s <= self._patience.request_s else 2
                )
                slowness = max(min(number, 2), known)
                began_s = time.monotonic()
                send(slowness, beside)
            finally:
                with self._counting:
                    self._under_way -= 1
            self._arrived.append(_Arrived(began_s, max(time.monotonic(), began_s + _SHORT_S), nbytes))
            if (
                slowness or nbytes > _PIECE_BYTES
            ):  # a small one that was fast enough tells of the store, not of the line
                self._bytes_per_s = _rate_since(began_s, list(self._arrived))

        persist(self._patience, self._name(key), upload, tries=3)

    def _parts_at_once(self, beside: int) -> int:
        """Of each of so many uploads on a line that is not slow: that none takes long enough to be cut off and sent in vain."""
        if self._bytes_per_s == math.inf:
            return _UNKNOWN_IN_FLIGHT
        carried_bytes = self._bytes_per_s * self._patience.quick_s / _LEAST_HASTE
        return max(min(int(carried_bytes / (beside * _PIECE_BYTES)), _IN_FLIGHT), _SLOW_IN_FLIGHT)

    def _put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        self._ask(key, lambda number: obstore.put(self._clients.at(number), path, data, use_multipart=False))

    def _exists(self, key: str) -> bool:
        try:
            self._size(key)
        except ObjectMissing:
            return False
        return True

    def _size(self, key: str) -> int:
        path = self._path(key)
        return self._ask(key, lambda number: obstore.head(self._clients.at(number), path)["size"])

    def _read_pieces(self, key: str, offset: int, target: memoryview) -> None:
        """Fill `target` by ranges. The first one ever is read alone: many at once would all find that there are none."""
        at = 0
        if self._serves_ranges is None:
            at = min(_PIECE_BYTES, len(target))
            self._read_piece(key, offset, target[:at])
            self._serves_ranges = True
        starts = range(at, len(target), _PIECE_BYTES)
        if len(starts) <= 1:
            self._read_piece(key, offset + at, target[at:])
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

    def _read_piece(self, key: str, offset: int, target: memoryview) -> None:
        """Fill `target` by one request; after a fault, another asks for the rest only."""
        if not target:
            return
        path = self._path(key)
        done = 0

        def ask(number: int) -> None:
            nonlocal done
            try:
                rest = (offset + done, offset + len(target))
                for block in obstore.get(self._clients.at(number), path, options={"range": rest}).stream(
                    _BLOCK_BYTES
                ):
                    target[done : done + len(block)] = block
                    done += len(block)
            except BaseError as error:
                if "non-partial response" in str(error):
                    raise _NoRanges from error
                if status_of(error) != _RANGE_BEYOND_END and "range starting at" not in str(error):
                    raise

        self._ask(key, ask, moved=lambda: done)
        self._check_length(key, offset, target, done)

    def _read_whole(self, key: str, offset: int, target: memoryview) -> None:
        """Fill `target` off the whole object.

        A few S3 look-alikes (rclone, lakeFS) answer a range with 200 instead of 206, which the client refuses.
        """
        path = self._path(key)
        done = 0

        def ask(_number: int) -> None:
            nonlocal done
            at = 0
            for block in obstore.get(self._clients.whole, path).stream(_BLOCK_BYTES):
                wanted = memoryview(block)[max(0, offset + done - at) :][: len(target) - done]
                target[done : done + len(wanted)] = wanted
                done += len(wanted)
                at += len(block)
                if done == len(target):
                    break

        self._ask(key, ask, moved=lambda: done)
        self._check_length(key, offset, target, done)

    def _check_length(self, key: str, offset: int, target: memoryview, done: int) -> None:
        if done < len(target):
            msg = f"{self._name(key)} has {self._size(key)} bytes, expected at least {offset + len(target)}: it was cut"
            raise ObjectDamaged(msg)

    def _ask(self, key: str, ask: Callable[[int], Result], *, moved: Callable[[], int] = lambda: 0) -> Result:
        return persist(self._patience, self._name(key), ask, moved=moved)

    def _path(self, key: str) -> str:
        return self._clients.prefix + key

    def _name(self, key: str) -> str:
        return f"{self._url}/{key}"


@dataclass(frozen=True)
class _Arrived:
    """An upload that has ended, by time.monotonic()."""

    began_s: float
    ended_s: float
    nbytes: int


def _rate_since(since_s: float, arrived: Sequence[_Arrived]) -> float:
    """Bytes per second of all uploads together from a time to the last one's end; of each the part that lies in there."""
    until_s = max(each.ended_s for each in arrived)
    parts = (
        each.nbytes * max(each.ended_s - max(each.began_s, since_s), 0.0) / (each.ended_s - each.began_s)
        for each in arrived
    )
    return sum(parts) / (until_s - since_s)


class _NoRanges(Exception):
    """The store answers a range with the whole object."""


def _pieces(views: Sequence[memoryview], piece_bytes: int) -> Iterator[memoryview]:
    for view in views:
        for at in range(0, len(view), piece_bytes):
            yield view[at : at + piece_bytes]
