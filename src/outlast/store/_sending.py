"""Sends a body to a bucket, and can stop in the midst of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import obstore
from obstore.store import ObjectStore

from outlast.store.base import Unwanted

_LOOK_S = 0.1
_LET_GO_S = 5.0
"""For so long, at the most, what was on its way when a write was given up is waited for: it still reads the caller's memory."""


def put(
    client: ObjectStore,
    path: str,
    body: bytes | Iterable[memoryview],
    is_wanted: Callable[[], bool] | None,
    **how: Any,
) -> None:
    """Put an object, as `obstore.put` does; `is_wanted` is asked every tenth of a second.

    Raises:
        Unwanted: it said False. Requests under way are cut off, and nobody reads the body any more.
        obstore.exceptions.BaseError: as `obstore.put` does.
    """
    if is_wanted is None:
        obstore.put(client, path, body, **how)
        return
    given: list[memoryview] = []
    failed = asyncio.run(
        _put(client, path, body if isinstance(body, bytes) else _kept(body, given), is_wanted, how)
    )
    try:
        if isinstance(failed, Unwanted):
            _let_go(given)
        if failed is not None:
            raise failed
    finally:
        del failed  # or it would keep this frame, which keeps it, and all views of the body with them


async def _put(
    client: ObjectStore,
    path: str,
    body: bytes | Iterator[memoryview],
    is_wanted: Callable[[], bool],
    how: dict[str, Any],
) -> BaseException | None:
    """Return what it failed with."""
    sending = asyncio.ensure_future(obstore.put_async(client, path, body, **how))
    while not (await asyncio.wait({sending}, timeout=_LOOK_S))[0]:
        if not is_wanted():
            sending.cancel()
            await asyncio.wait({sending})
            return Unwanted()
    return sending.exception()


def _kept(body: Iterable[memoryview], given: list[memoryview]) -> Iterator[memoryview]:
    """The same views, and a note of each."""
    for view in body:
        given.append(view)
        yield view


def _let_go(views: list[memoryview]) -> None:
    """Wait until nobody reads them: a view that is read cannot be released."""
    until = time.monotonic() + _LET_GO_S
    for view in views:
        while time.monotonic() < until:
            with contextlib.suppress(BufferError):
                view.release()
                break
            time.sleep(0.01)
