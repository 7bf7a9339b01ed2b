"""Tell a trainer what was logged before: its trackers continue from there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice

from outlast._errors import OutlastError
from outlast._types import Logged
from outlast.agent.protocol import ReadLogged, ToldLogged
from outlast.agent.wire import Closed
from outlast.checkpoint.lineage import logged
from outlast.checkpoint.manifest import AttemptRecord
from outlast.store.base import Store

STEPS_TOLD = 2000
"""At once: some hundred kilobytes."""


class Retelling:
    """Answers `ReadLogged`, each in a thread of its own.

    Args:
        store: the run's store.
        record: the attempt's.
        rank: whose metrics.
        send: sends to the trainer.
        say: prints a line.
    """

    def __init__(
        self,
        store: Store,
        record: AttemptRecord,
        rank: int,
        *,
        send: Callable[[ToldLogged], None],
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._record = record
        self._rank = rank
        self._send = send
        self._say = say
        self._going: dict[int, tuple[tuple[int, int], Iterator[Logged]]] = {}

    def answer(self, request: ReadLogged) -> None:
        """Begin to answer; a reader asks again only once it has its answer."""
        threading.Thread(target=self._tell, args=(request,), name="outlast-retelling", daemon=True).start()

    def _tell(self, request: ReadLogged) -> None:
        try:
            told = self._next(request)
        except OutlastError as error:
            told = ToldLogged(reader=request.reader, steps=(), more=False, error=str(error))
        try:
            self._send(told)
        except Closed:
            pass  # the trainer is gone

    def _next(self, request: ReadLogged) -> ToldLogged:
        """The next steps: where the request goes on from the one before, nothing is looked for again."""
        at, steps = self._going.pop(request.reader, (None, iter(())))
        if at != (request.after, request.upto):
            steps = logged(
                self._store,
                self._record.attempt,
                self._record.nonce,
                self._rank,
                after=request.after,
                upto=request.upto,
                report=self._say,
            )
        some = tuple(islice(steps, STEPS_TOLD))
        more = len(some) == STEPS_TOLD
        if more:
            self._going[request.reader] = ((some[-1].step, request.upto), steps)
        return ToldLogged(reader=request.reader, steps=some, more=more, error=None)
