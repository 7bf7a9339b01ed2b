"""Snapshots whose copy goes on under the next forward and backward: when that is allowed, and what becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch

from outlast._say import say
from outlast.agent.protocol import Saved, Snapshot
from outlast.snapshot.moves import Copier, Move
from outlast.snapshot.overlap import Overlapped, begin
from outlast.state.steps import StepWatch

_LARGE_BYTES = 1 << 20
"""Below, a tensor is copied at the safe point: to launch its fingerprint takes as long (20 to 40 us)."""
_MOST_CHANGED = 2
"""So many snapshots in a row thrown away, and overlapping does not suit this script."""


class Handing(Protocol):
    """What takes a snapshot over; see `agent/link.py`."""

    def reserve(self, snapshot: Snapshot) -> None:
        """Announce a snapshot that is not complete yet."""

    def submit(self, snapshot: Snapshot) -> None:
        """Hand it over, complete."""

    def withdraw(self, saved: Saved) -> None:
        """Answer it here: it does not come."""


class Overlapping:
    """Decides what is copied late, and watches it. Used in the main thread.

    Args:
        link: to the agent.
        states: what the script handed in.
        watch: over its optimizers; their steps are hooked.
        copier: copies while this process goes on.
    """

    def __init__(self, link: Handing, states: Mapping[str, object], watch: StepWatch, copier: Copier) -> None:
        self._link = link
        self._states = states
        self._watch = watch
        self._copier = copier
        self._copying: tuple[Snapshot, Overlapped] | None = None
        self._comparing: threading.Thread | None = None
        self._lock = threading.Lock()
        self._dropped = False
        self._changed_in_a_row = 0
        self._out_of_memory_said = False
        watch.hook_before()
        watch.before_step = self._before_step

    @property
    def is_copying(self) -> bool:
        """Whether a copy goes on, as far as this has looked."""
        return self._copying is not None

    @property
    def is_under_way(self) -> bool:
        """Whether a copy, or its comparison, goes on."""
        return self.is_copying or (self._comparing is not None and self._comparing.is_alive())

    def look(self) -> None:
        """Have a copy that is complete compared, and handed over; called at safe points."""
        if self._copying is not None and self._copying[1].is_done():
            self._compare()

    def finish(self) -> None:
        """Wait until what is under way is handed over, or thrown away."""
        self._compare()
        if self._comparing is not None:
            self._comparing.join()
            self._comparing = None

    def give_way(self, *, urgent: bool, may_wait: bool) -> bool:
        """A newer snapshot is due; whether it may be taken now. One copy at a time is under way.

        Args:
            urgent: this machine goes: what is under way is thrown away for it.
            may_wait: training may wait until what is under way is handed over.
        """
        if not self.is_under_way:
            return True
        if urgent:
            with self._lock:
                self._dropped = True
            self._compare()
            return True
        if may_wait:
            self.finish()
        return may_wait

    def suited(self, entries: Mapping[str, torch.Tensor]) -> frozenset[str]:
        """Choose what may be copied late at this safe point: large parameters and optimizer state.

        Only what nothing but an optimizer's step, which waits, is expected to change. Nothing where a step cannot be
        made to wait.
        """
        if self._changed_in_a_row >= _MOST_CHANGED or not self._watch.can_hold():
            return frozenset()
        places = {tensor.data_ptr() for tensor in _changed_by_steps(self._states)}
        return frozenset(
            name
            for name, tensor in entries.items()
            if self._copier.takes(tensor)
            and tensor.is_contiguous()
            and tensor.numel() * tensor.element_size() >= _LARGE_BYTES
            and tensor.data_ptr() in places
        )

    def begin(self, moves: Sequence[Move]) -> Callable[[Snapshot], None] | None:
        """Begin to copy; returns what takes the snapshot they belong to. None where that must be done at once."""
        try:
            copies = begin(moves, self._copier)
        except torch.OutOfMemoryError:
            if not self._out_of_memory_said:
                self._out_of_memory_said = True
                say("no room on the GPU for fingerprints (64 MiB): snapshots are copied at the safe point")
            return None
        return lambda snapshot: self._hand_over(snapshot, copies)

    def _before_step(self) -> None:
        if self._copying is not None:
            self._copying[1].hold_back()

    def _hand_over(self, snapshot: Snapshot, copies: Overlapped) -> None:
        """Hand the snapshot over once it is known to be what the state was."""
        self._link.reserve(snapshot)
        self._copying, self._dropped = (snapshot, copies), False

    def _compare(self) -> None:
        """Wait for the copy under way, if there is one, and begin to compare it."""
        if self._copying is None:
            return
        (snapshot, copies), self._copying = self._copying, None
        compare = copies.wait()
        # Not a daemon: a copy that is complete must not be lost to the end of the script.
        self._comparing = threading.Thread(
            target=self._judge, args=(snapshot, compare), name="outlast-overlap"
        )
        self._comparing.start()

    def _judge(self, snapshot: Snapshot, compare: Callable[[], list[str]]) -> None:
        changed = [] if self._dropped else compare()
        with self._lock:
            if self._dropped:
                self._link.withdraw(Saved(snapshot.number, None, "a newer state took its place"))
                return
            if not changed:
                self._changed_in_a_row = 0
                self._link.submit(snapshot)
                return
            self._changed_in_a_row += 1
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            said = (
                f"{changed[0]}{more} changed outside an optimizer's step while a snapshot was copied under it"
            )
            off = self._changed_in_a_row >= _MOST_CHANGED
            end = "; from here on snapshots are copied at the safe point" if off else ""
            say(f"step {snapshot.step}: {said}: thrown away, and taken again without overlap{end}")
            self._link.withdraw(Saved(snapshot.number, None, said, retake=True))


def _changed_by_steps(states: Mapping[str, object]) -> Iterator[torch.Tensor]:
    """Go through the parameters that optimizers train, and their state; frozen ones have a way of their own."""
    for state in states.values():
        if isinstance(state, torch.optim.Optimizer):
            yield from (p for group in state.param_groups for p in group["params"] if p.requires_grad)
            for values in state.state.values():
                yield from (value for value in values.values() if isinstance(value, torch.Tensor))
