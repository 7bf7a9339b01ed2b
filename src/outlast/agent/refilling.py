"""The trainer's side of a `Read`: which batches are still to come, from this agent or from the one that replaces it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from outlast._errors import StoreUnavailable
from outlast.agent.protocol import Filled, Message, Read, Taken
from outlast.snapshot.arena import Arena


class Refilling:
    """One request. All but `take` is called with the lock.

    Args:
        request: what is wanted.
        ring: its memory.
        changed: the link's lock, told when a batch is copied.
        send: sends to the present agent.
    """

    def __init__(
        self,
        request: Read,
        ring: Arena,
        changed: threading.Condition,
        send: Callable[[Message, tuple[int, ...]], None],
    ) -> None:
        self._request = request
        self._ring = ring
        self._changed = changed
        self._send = send
        self._asked = 0
        self._agent = 0
        self._left = set(range(len(request.batches)))
        self._copying = 0
        self._faults: list[str] = []

    @property
    def is_done(self) -> bool:
        """Whether every batch is copied."""
        return not self._left

    def has_news(self, agent: int, filled: list[Filled]) -> bool:
        """Whether there is anything to do."""
        self._agent = agent
        if agent != self._asked:
            return not self._copying
        return bool(not self._left or filled or self._faults)

    def next(self, filled: list[Filled]) -> Filled | None:
        """The next batch to copy; asks an agent that was not asked yet.

        Raises:
            StoreUnavailable: the store fails, or what it holds has become damaged.
        """
        if self._agent != self._asked:
            filled.clear()  # of the agent before
            self._asked, self._left = self._agent, set(range(len(self._request.batches)))
            self._send(self._request, (self._ring.fd,))
            return None
        batch = filled.pop(0) if filled else None
        if batch is not None and batch.error is not None:
            self._faults.append(batch.error)
        if self._faults:
            msg = f"{self._request.checkpoint} cannot be read again: {self._faults[0]}"
            raise StoreUnavailable(msg)
        self._copying += batch is not None
        return batch

    def take(self, taken: Taken) -> None:
        """A batch is copied. Called from any thread, without the lock."""
        with self._changed:
            self._copying -= 1
            if self._agent == self._asked:  # else the agent that waits for this is gone
                self._left.discard(taken.batch)
                self._faults += taken.refused
                self._send(taken, ())
            self._changed.notify_all()
