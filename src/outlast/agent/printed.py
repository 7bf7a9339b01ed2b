"""What the script prints, on its way to the store: the newest of it in memory, a put every few seconds, never in the way of a save."""

from __future__ import annotations

import codecs
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from outlast._errors import OutlastError
from outlast._say import say
from outlast.agent.claim import utc_now
from outlast.checkpoint.manifest import AttemptRecord
from outlast.checkpoint.output import OutputLog, fold
from outlast.store.base import Store

PUT_EVERY_S = 2.5
"""Between puts, while there is something new: with the put itself, a line is durable less than 5 s after it was printed."""
RETRY_S = 15.0
"""After a put that failed. That the store is away, the saves say."""
LOOK_S = 0.2
"""Between looks whether a save is over."""
MOST_WAITING_BYTES = 128 << 10
"""Of what waits for the next put the newest stay: of a script that prints more than 50 KB/s the rest is left out."""

RECORD_BYTES = 150
"""What a piece costs beside its text: streams that alternate make many."""
JOINED_BYTES = 16 << 10
"""About so much is one record."""


@dataclass(frozen=True)
class _Piece:
    utc: str
    stream: str
    at: int
    nbytes: int
    text: str


class Printed:
    """Keeps what a script prints, and puts it where the attempt's output belongs. Thread-safe; `keep` waits for nothing.

    What is printed before an attempt is claimed belongs to that attempt.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}
        self._waiting: deque[_Piece] = deque()
        self._waiting_bytes = 0
        self._at = 0
        self._begin_at = 0
        self._to: OutputLog | None = None
        self._may_put: Callable[[], bool] = lambda: True
        self._is_ending = False
        self._next_s = 0.0
        self._failed: str | None = None
        self._thread = threading.Thread(target=self._run, name="outlast-printed", daemon=True)
        self._thread.start()

    def keep(self, stream: str, data: bytes) -> None:
        """Keep what was read from the script: a small part of what may wait."""
        with self._changed:
            self._at += len(data)
            decoder = self._decoders.setdefault(stream, _new_decoder())
            piece = _Piece(utc_now(), stream, self._at - len(data), len(data), decoder.decode(data))
            self._waiting.append(piece)
            self._waiting_bytes += _weight(piece)
            while self._waiting_bytes > MOST_WAITING_BYTES:
                self._waiting_bytes -= _weight(self._waiting.popleft())
            self._changed.notify_all()

    def claimed(self, store: Store, record: AttemptRecord, rank: int, may_put: Callable[[], bool]) -> None:
        """From now on it belongs to this attempt; nothing is put while `may_put()` is False."""
        with self._changed:
            if self._to is not None:  # another script of the same command
                self._begin_at = self._waiting[0].at if self._waiting else self._at
                self._failed = None
            self._to = OutputLog(store, record.attempt, record.nonce, rank)
            self._may_put = may_put
            self._changed.notify_all()

    def end(self, within_s: float) -> None:
        """The script has ended: put the rest, once, and wait so long for that. What comes from now on is another attempt's."""
        with self._changed:
            if self._to is not None:
                self._is_ending = True
                self._changed.notify_all()
                if not self._changed.wait_for(lambda: not self._is_ending, within_s):
                    self._failed = self._failed or f"the store did not answer within {within_s:.1f} s"
                if self._failed is not None:
                    say(f"the last lines of the script's output are not on the store: {self._failed}")
            self._to, self._failed, self._is_ending = None, None, False
            self._begin_at = self._at

    def _run(self) -> None:
        try:
            while True:
                self._wait_until_due()
                self._put()
        except Exception:  # a fault of ours: training and saving go on
            traceback.print_exc()

    def _wait_until_due(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._to is not None and (self._waiting or self._is_ending))
                may_put = self._may_put
                wait_s = self._next_s - time.monotonic()
                if self._is_ending:
                    return
            if wait_s <= 0 and may_put():
                return
            with self._changed:
                self._changed.wait_for(lambda: self._is_ending, max(wait_s, LOOK_S))

    def _put(self) -> None:
        """One try. While the store fails nothing more is taken, so that what waits stays bounded."""
        with self._changed:
            log, is_ending, begin_at = self._to, self._is_ending, self._begin_at
            if log is None:
                return
            pieces = self._take() if is_ending or self._failed is None else []
        for piece in _joined(pieces):
            log.add(
                utc=piece.utc,
                stream=piece.stream,
                at=piece.at - begin_at,
                nbytes=piece.nbytes,
                text=fold(piece.text),
            )
        failed = None
        try:
            log.flush()
        except OutlastError as error:
            failed = str(error)
        with self._changed:
            self._next_s = time.monotonic() + (PUT_EVERY_S if failed is None else RETRY_S)
            if log is self._to:
                self._failed = failed
                self._is_ending = self._is_ending and not is_ending
            self._changed.notify_all()

    def _take(self) -> list[_Piece]:
        pieces = list(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        return pieces


def _weight(piece: _Piece) -> int:
    return piece.nbytes + RECORD_BYTES


def _joined(pieces: list[_Piece]) -> Iterator[_Piece]:
    """What follows each other on one stream, together: a line may have come in many pieces."""
    together: list[_Piece] = []
    for piece in pieces:
        if together and (
            piece.stream != together[0].stream or sum(p.nbytes for p in together) > JOINED_BYTES
        ):
            yield _join(together)
            together = []
        together.append(piece)
    if together:
        yield _join(together)


def _join(pieces: list[_Piece]) -> _Piece:
    first = pieces[0]
    text = "".join(piece.text for piece in pieces)
    return _Piece(first.utc, first.stream, first.at, sum(piece.nbytes for piece in pieces), text)


def _new_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("backslashreplace")
