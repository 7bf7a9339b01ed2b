"""When a snapshot is taken, and how it gets into an arena and to the agent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from outlast._config import Every
from outlast._say import say
from outlast._types import Json, Reason
from outlast.agent.link import Link
from outlast.agent.protocol import Snapshot
from outlast.snapshot.arena import Arena
from outlast.snapshot.stager import layout, stage
from outlast.state.table import TensorTable

_ARENAS = 2
_FIRST_SHARE = 1 / 16
"""An attempt's first save comes after this share of the interval, the next after twice that, up to the whole: a
machine that lives shorter than the interval gets on all the same."""
_HEADROOM = 1.02
"""An arena is made a little larger than needed, so that a state that grows by a few values fits again."""


@dataclass(frozen=True)
class Whole:
    """A complete state: plain values with tensors referred to, and the position in plain words."""

    tree: Json
    position: Json
    settings: dict[str, Json]


class Saver:
    """Takes snapshots at safe points. Used in the main thread only.

    Args:
        link: to the agent, the attempt claimed.
        every: the interval between saves.
        gather: puts the whole state of this moment together.
        deadline_s: monotonic time at which this machine goes; None while none is known.
    """

    def __init__(
        self,
        link: Link,
        every: Every,
        gather: Callable[[TensorTable], Whole],
        deadline_s: Callable[[], float | None],
    ) -> None:
        self._link = link
        self._every = every
        self._gather = gather
        self._deadline_s = deadline_s
        self._arenas: dict[int, Arena] = {}
        self._number = 0
        self._repeat: tuple[int, int] = (-1, 0)
        self._share = _FIRST_SHARE
        self._last_ns = time.monotonic_ns()
        self._last_step = 0
        self._sizing = False
        self._late_said = False

    @property
    def last_number(self) -> int | None:
        """Number of the last snapshot taken; None if there was none in this attempt."""
        return self._number or None

    def start(self, step: int) -> None:
        """Count intervals from here."""
        self._last_ns = time.monotonic_ns()
        self._last_step = step

    @property
    def due_ns(self) -> float:
        """Monotonic time of the next interval save; infinite where intervals are counted in steps."""
        seconds = self._every.seconds
        return math.inf if seconds is None else self._last_ns + seconds * self._share * 1e9

    @property
    def due_step(self) -> float:
        """Step of the next interval save; infinite where intervals are counted in seconds."""
        steps = self._every.steps
        return math.inf if steps is None else self._last_step + steps

    def take(
        self,
        step: int,
        reason: Reason,
        *,
        hold: bool = False,
        pinned: bool = False,
        finished: bool = False,
    ) -> int | None:
        """Copy the state into an arena and hand it over; None where no arena became free in time.

        An interval save and a held one do not wait: the next safe point tries again.
        """
        table = TensorTable()
        with torch.no_grad():
            whole = self._gather(table)
            planned = layout(table.entries)
            index = self._free_arena(planned.size_bytes, wait=not hold and reason is not Reason.INTERVAL)
            if index is None:
                if not self._late_said and not hold:
                    self._late_said = True
                    say(
                        "a save takes longer than the interval between two; saving as often as the store allows"
                    )
                return None
            stage(table.entries, planned, self._arenas[index])
        self._number += 1
        repeat = self._repeat[1] + 1 if self._repeat[0] == step else 0
        self._repeat = (step, repeat)
        self._link.submit(
            Snapshot(
                number=self._number,
                index=index,
                step=step,
                repeat=repeat,
                reason=reason,
                pinned=pinned,
                finished=finished,
                hold=hold,
                tree=whole.tree,
                position=whole.position,
                settings=whole.settings,
                tensors=planned.placed,
                base=None,
                best=None,
            )
        )
        if not hold:
            self.start(step)
            self._share = min(self._share * 2, 1.0)
        return self._number

    @property
    def prepared(self) -> bool:
        """Whether the arenas are made."""
        return bool(self._arenas)

    def prepare(self) -> None:
        """Make both arenas and touch their pages in the background, so that the first save is not slow.

        Not at the first safe point: only from the second on is it known which gradients the loop drops unread, and an
        arena that has room for them would be too large for ever.
        """
        if self._arenas:
            return
        if not self._sizing:
            self._sizing = True
            return
        table = TensorTable()
        with torch.no_grad():
            self._gather(table)
            size = layout(table.entries).size_bytes
        for index in range(_ARENAS):
            self._make_arena(index, size).populate()

    def _free_arena(self, size_bytes: int, *, wait: bool) -> int | None:
        index = self._link.wait_free(tuple(range(_ARENAS)), self._deadline_s if wait else lambda: 0.0)
        if index is None:
            self._link.raise_if_lost()
            return None
        arena = self._arenas.get(index)
        if arena is None or arena.size_bytes < size_bytes:
            if arena is not None:
                arena.close()
            self._make_arena(index, size_bytes)
        return index

    def _make_arena(self, index: int, size_bytes: int) -> Arena:
        arena = Arena.create(int(size_bytes * _HEADROOM))
        self._arenas[index] = arena
        self._link.add_arena(index, arena)
        return arena
