"""The arenas of this process: how many there are, which one is free, what they take of the machine's memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from outlast._memory import free_bytes
from outlast._say import say
from outlast.agent.link import Link
from outlast.policy.memory import Plan, plan_arenas
from outlast.snapshot.arena import Arena, page_ceil
from outlast.snapshot.pinned import Pin
from outlast.snapshot.stager import Layout, looks

_DROPPED_WITHIN_S = 0.05
"""How long training waits for the agent to drop a snapshot that waits: it answers in a millisecond, or has begun it."""


def module_bytes(states: Mapping[str, object]) -> int:
    """Bytes of the modules among the states: what is known of a snapshot's size before anything was trained."""
    tensors = {
        id(tensor): tensor.numel() * tensor.element_size()
        for state in states.values()
        if isinstance(state, nn.Module)
        for tensor in (*state.parameters(), *state.buffers())
        if not is_lazy(tensor)
    }
    return sum(tensors.values())


def refuse_without_room(state_bytes: int, cap_bytes: int | None) -> None:
    """Raise ConfigError, with the numbers, if not even one snapshot of so many bytes has room."""
    plan_arenas(state_bytes, free_bytes(), cap_bytes)


class Room:
    """One or two arenas. Used in the main thread only.

    Args:
        link: to the agent, which maps them too.
        cap_bytes: `host_memory`; None: what is sensible.
    """

    def __init__(self, link: Link, cap_bytes: int | None) -> None:
        self._link = link
        self._cap_bytes = cap_bytes
        self._plan: Plan | None = None
        self._used: tuple[int, ...] = (0,)
        self._arenas: dict[int, Arena] = {}
        self._pins: dict[int, Pin] = {}
        self._looks: dict[int, tuple[Layout, list[torch.Tensor]]] = {}
        self._passed_over = 0

    @property
    def is_made(self) -> bool:
        """Whether there are as many arenas as there will be."""
        return self._plan is not None and all(index in self._arenas for index in self._used)

    def make(self, layout: Layout) -> None:
        """Make every arena, and touch in the background what each snapshot will write.

        Raises:
            ConfigError: the state does not fit.
        """
        plan = self._planned(layout, 0)
        for index in self._used:
            if index not in self._arenas:
                self._make(index, plan.arena_bytes).populate(layout.lasting_at)

    def free(self, deadline_s: Callable[[], float | None]) -> int | None:
        """An arena that nothing reads; None once `deadline_s()` has passed, or no agent is left.

        Not the one that holds the newest durable snapshot, if there is a choice: a script that crashes is restored from
        there.
        """
        self._drop_unused()
        newest = self._link.newest_index
        return self._link.wait_free(tuple(sorted(self._used, key=lambda index: index == newest)), deadline_s)

    def pass_over(self, *, waits: bool) -> Callable[[], float] | None:
        """Ask for the arena of a snapshot that waits.

        Args:
            waits: whether the newer state waits as long as it takes. Else it is asked for once, and for a moment: a
                snapshot that is dropped later than that would leave nothing in its place.

        Returns:
            A deadline, soon, for the arena to be free; None where nothing waits, or it was asked for before.
        """
        number = self._link.waiting
        if number is None or (number == self._passed_over and not waits):
            return None
        self._passed_over = number
        now_ns = time.monotonic_ns()
        self._link.give_back(number, None if waits else now_ns + int(_DROPPED_WITHIN_S / 2 * 1e9))
        until_s = now_ns / 1e9 + _DROPPED_WITHIN_S
        return lambda: until_s

    def targets(self, index: int, layout: Layout, *, lasting: bool) -> list[torch.Tensor]:
        """Return where the tensors of a layout go in a free arena; `lasting`: whether the lasting part is written too.

        Raises:
            ConfigError: the state has grown, and does not fit any more.
        """
        arena = self._arenas.get(index)
        if arena is None or arena.size_bytes < layout.size_bytes:
            arena = self._make(index, self._planned(layout, index).arena_bytes)
        known = self._looks.get(index)
        if lasting or known is None or known[0] is not layout:
            arena.settle()  # in another layout what is copied may lie where the lasting part was
        if known is None or known[0] is not layout:
            self._pin(index, layout)
            known = self._looks[index] = (layout, looks(layout, arena))
        return known[1]

    def give_back(self, index: int) -> None:
        """Give back what the lasting part of an arena takes: the next snapshots leave it uncopied."""
        if index in self._looks and self._link.is_free(index):
            self._arenas[index].give_back(self._looks[index][0].lasting_at)

    def _planned(self, layout: Layout, index: int) -> Plan:
        """The plan; made anew, and said, where the state has outgrown it. Where there is one arena, it is `index`."""
        if self._plan is None or layout.size_bytes > self._plan.arena_bytes:
            held = sum(arena.size_bytes for arena in self._arenas.values())
            plan = plan_arenas(layout.size_bytes, free_bytes() + held, self._cap_bytes)
            if self._plan is None or plan.arenas != self._plan.arenas:
                say(plan.text())
            self._plan = plan
            self._used = (index,) if plan.arenas == 1 else (0, 1)
        return self._plan

    def _pin(self, index: int, layout: Layout) -> None:
        """Pin what each snapshot copies from a GPU: never the lasting part, which is given back."""
        nbytes = page_ceil(layout.lasting_at) if any(box.device == "cuda" for box in layout.placed) else 0
        pin = self._pins.get(index)
        if nbytes == (0 if pin is None else pin.nbytes):
            return
        if pin is not None:
            self._pins.pop(index).release()
        if nbytes:
            self._pins[index] = Pin(self._arenas[index], nbytes)

    def _drop_unused(self) -> None:
        """Give back an arena that a grown state leaves no room for, once nothing reads it."""
        for index in [index for index in self._arenas if index not in self._used]:
            if self._link.is_free(index):
                self._make(index, 1)  # the agent maps the other until this one takes its place
                del self._arenas[index]

    def _make(self, index: int, size_bytes: int) -> Arena:
        self._looks.pop(index, None)
        pin = self._pins.pop(index, None)
        if pin is not None:
            pin.release()
        arena = Arena.create(size_bytes)
        self._link.add_arena(
            index, arena
        )  # first: an agent that is started just now is handed what stands there
        old, self._arenas[index] = self._arenas.get(index), arena
        if old is not None:
            old.close()
        return arena
