"""What a trainer has told its agent and the agent has not answered: the one that takes its place is told it again."""

from __future__ import annotations

import math
from collections.abc import Iterator

from outlast.agent.protocol import ArenaMessage, Events, GiveBack, Message, NoticeHeard, Snapshot
from outlast.snapshot.arena import Arena


class Told:
    """The lock is its owner's.

    Attributes:
        arenas: by index.
        unsaved: snapshots that are not answered, by number.
        given_back: what was asked for last.
    """

    def __init__(self) -> None:
        self.arenas: dict[int, Arena] = {}
        self.unsaved: dict[int, Snapshot] = {}
        self.given_back: GiveBack | None = None
        self._events: list[dict[str, object]] = []
        self._kept_events = 0
        self._heard_until_s: dict[str, float] = {}

    def sent(self, events: list[dict[str, object]]) -> None:
        """These are on their way, until the agent has them durable: it may be killed alone before."""
        self._events += events

    def kept(self, count: int) -> None:
        """The agent has made so many of its events durable."""
        del self._events[: max(count - self._kept_events, 0)]
        self._kept_events = max(count, self._kept_events)

    def heard(self, source: str, grace_s: float, now_s: float) -> None:
        """A signal reached this process; a repetition does not move its deadline."""
        if now_s > self._heard_until_s.get(source, -math.inf):
            self._heard_until_s[source] = now_s + grace_s

    def again(self, now_s: float) -> Iterator[tuple[Message, tuple[int, ...]]]:
        """Yield all of it for a new agent, in order: messages and the descriptors that go with them."""
        self._kept_events = 0
        for source, until_s in self._heard_until_s.items():
            yield NoticeHeard(source=source, grace_s=until_s - now_s), ()
        for index, arena in self.arenas.items():
            yield ArenaMessage(index=index), (arena.fd,)
        if self._events:
            yield Events(records=tuple(self._events)), ()
        for number in sorted(self.unsaved):
            yield self.unsaved[number], ()
        if self.given_back is not None and self.given_back.number in self.unsaved:
            yield self.given_back, ()
