"""Listens to a metadata service in a thread of its own, so that a slow one never holds up the agent's loop."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from outlast.notice.base import Kind, Notice, Polled

MAX_PAUSE_S = 5.0
"""Between looks at a service that fails and fails: rare enough to be no load, often enough for a notice of 30 s."""
PATIENT_LOOKS = 10
"""So many failures in a row change no pause: a service that stumbles may tell of the end in its very next answer."""
SAY_AGAIN_S = 600.0
"""A warning that still holds is said again after this long."""
ACKNOWLEDGE_S = 3.0
"""How long the end of a run waits for a notice to be acknowledged: the machine goes anyway, only not sooner."""


class NotHere(Exception):
    """This machine has no such service; the source is silent from here on. Its text is a line for the user."""


class Metadata(Protocol):
    """A source that blocks while it looks. Final implementations, one file each.

    Attributes:
        name: as people name it: "AWS".
        pause_s: between two looks.
    """

    name: str
    pause_s: float

    def look(self, now_s: float, now_utc: datetime) -> Polled:
        """Ask the service what is new.

        Raises:
            NotHere: this machine has no such service.
            OSError: it did not answer, or not as documented; asked again later.
        """

    def acknowledge(self, notice_id: str) -> None:
        """Tell the service that the machine may go at once; does nothing where it cannot be told.

        Raises:
            OSError: it did not answer.
        """

    def close(self) -> None:
        """End a request that waits, and ask no more. May come from another thread, and again."""


def pause_after_s(pause_s: float, failed: int) -> float:
    """How long to wait until the next look, where `failed` in a row have failed."""
    return min(pause_s * 2.0 ** min(max(failed - PATIENT_LOOKS, 0), 16), max(pause_s, MAX_PAUSE_S))


class ThreadedSource:
    """Offers what a metadata service says to a loop that must not block. The thread starts at once, and asks by itself."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._found: queue.SimpleQueue[Polled] = queue.SimpleQueue()
        self._to_acknowledge: queue.SimpleQueue[tuple[str, threading.Event]] = queue.SimpleQueue()
        self._said_s: dict[str, float] = {}
        self._wanted = threading.Event()
        self._closing = threading.Lock()
        self._closed = False
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=f"notice-{metadata.name}", daemon=True)
        self._thread.start()

    def poll(self, now_s: float, now_utc: datetime) -> Polled:  # noqa: ARG002 - the thread has its own clock
        """What the thread has found since the last poll."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)
        notices: list[Notice] = []
        warnings: list[str] = []
        with contextlib.suppress(queue.Empty):
            while True:
                polled = self._found.get_nowait()
                notices += polled.notices
                warnings += polled.warnings
        return Polled(tuple(notices), tuple(warnings))

    def fileno(self) -> int:
        """Readable when the thread has found something."""
        return self._read

    def acknowledge(self, notice_id: str) -> None:
        """Have the thread tell the service, and wait a moment until it has: what follows may be this process's end."""
        told = threading.Event()
        self._to_acknowledge.put((notice_id, told))
        self._wanted.set()
        told.wait(ACKNOWLEDGE_S)

    def close(self) -> None:
        """End the thread."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            os.close(self._write)
            os.close(self._read)
        self._wanted.set()
        self._metadata.close()
        self._thread.join(ACKNOWLEDGE_S)

    def _run(self) -> None:
        try:
            self._listen()
        finally:
            self._metadata.close()

    def _listen(self) -> None:
        failed = 0
        while not self._closed:
            self._acknowledge_all()
            try:
                polled = self._metadata.look(time.monotonic(), datetime.now(UTC))
                failed = 0
            except NotHere as none:
                self._report(Polled(warnings=(str(none),)))
                return
            except Exception as error:  # a fault while listening must not end the training
                failed += 1
                polled = Polled(warnings=(f"{self._metadata.name} notices cannot be heard for now: {error}",))
            self._report(polled)
            self._wanted.wait(pause_after_s(self._metadata.pause_s, failed))
            self._wanted.clear()

    def _report(self, polled: Polled) -> None:
        now_s = time.monotonic()
        fresh = tuple(
            line for line in polled.warnings if now_s - self._said_s.get(line, -SAY_AGAIN_S) >= SAY_AGAIN_S
        )
        self._said_s.update(dict.fromkeys(fresh, now_s))
        if not polled.notices and not fresh:
            return
        with self._closing:
            if self._closed:
                return
            self._found.put(Polled(polled.notices, fresh))
            with contextlib.suppress(BlockingIOError):  # it is readable as it is
                os.write(self._write, b"\0")

    def _acknowledge_all(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                notice_id, told = self._to_acknowledge.get_nowait()
                try:
                    self._metadata.acknowledge(notice_id)
                except Exception as error:  # as above: the machine goes without it, only later
                    self._report(
                        Polled(warnings=(f"{self._metadata.name}: a notice was not acknowledged: {error}",))
                    )
                told.set()


@dataclass(frozen=True)
class Found:
    """One thing that a service says now. `key` is the same for every answer about it."""

    key: str
    source: str
    kind: Kind
    deadline_utc: datetime | None
    confidence: float = 1.0


def one_by_one(
    pieces: Iterable[bytes],
    read: Callable[[bytes], Found | None],
    key: Callable[[bytes], str | None],
    last: Mapping[str, Found],
) -> tuple[dict[str, Found], tuple[str, ...]]:
    """Judge each thing that a service says by itself: one that cannot be believed hides no other, and stands as it did before.

    Args:
        pieces: what the service says, one thing each.
        read: what a piece tells, None where that is nothing. Raises ValueError or OverflowError where it cannot be believed.
        key: of what such a piece is about; None where it does not say even that, and all that stood stands.
        last: what stood before, by key.

    Returns:
        What stands now, by key, and a complaint for each piece that is not believed.
    """
    found: dict[str, Found] = {}
    complaints = []
    for piece in pieces:
        try:
            one = read(piece)
        except (ValueError, OverflowError) as error:
            complaints.append(f"{piece[:200]!r} is not as documented ({error})")
            its = key(piece)
            found = {name: was for name, was in last.items() if its in (None, name)} | found
        else:
            if one is not None:
                found[one.key] = one
    return found, tuple(complaints)


class Standing:
    """What a service said last: tells what is new, what changed, and what was taken back.

    What is gone before its deadline was cancelled; after it, the deadline alone says what became of it. What comes
    back after it was gone is another notice. An end becomes a hint only by another deadline, not because its own has come.
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[Found, Notice]] = {}
        self._counts: dict[str, int] = {}

    def changes(self, found: Iterable[Found], now_s: float, now_utc: datetime) -> tuple[Notice, ...]:
        """Compare all that stands now with what stood before."""
        now = {one.key: one for one in found}
        changed: list[Notice] = []
        for key in [key for key in self._found if key not in now]:
            _, notice = self._found.pop(key)
            if notice.deadline_utc is None or notice.deadline_utc > now_utc:
                changed.append(dataclasses.replace(notice, cancelled=True))
        for key, one in now.items():
            known = self._found.get(key)
            if known is not None and _is_as_before(known[0], one):
                continue
            if known is None:
                self._counts[key] = self._counts.get(key, 0) + 1
            deadline_s = None
            if one.deadline_utc is not None:
                deadline_s = now_s + max((one.deadline_utc - now_utc).total_seconds(), 0.0)
            notice = Notice(
                id=f"{key}-{self._counts[key]}",
                source=one.source,
                kind=one.kind,
                deadline_s=deadline_s,
                deadline_utc=one.deadline_utc,
                confidence=one.confidence,
            )
            self._found[key] = (one, notice)
            changed.append(notice)
        return tuple(changed)

    def key_of(self, notice_id: str) -> str | None:
        """Of what stands, which one a notice is of; None if it does not stand any more."""
        return next((key for key, (_, notice) in self._found.items() if notice.id == notice_id), None)


def _is_as_before(known: Found, one: Found) -> bool:
    """Whether nothing changed but, at most, that an end is told as a hint now, with the same deadline."""
    return one in (known, dataclasses.replace(known, kind="hint"))
