"""When a snapshot is taken, and how it gets into an arena and to the agent."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from outlast._config import Saving
from outlast._say import say
from outlast._types import Json, Reason
from outlast.agent.control import Word
from outlast.agent.link import Link
from outlast.agent.protocol import Saved, Snapshot
from outlast.snapshot.digests import chunk_digests
from outlast.snapshot.stager import Layout, fits, layout, moves, stage
from outlast.state.table import TensorTable
from outlast.trainer.frozen import (
    Digests,
    Prints,
    Stored,
    digest_copies,
    frozen_digests,
    frozen_names,
    frozen_prints,
    mark,
)
from outlast.trainer.overlapping import Overlapping
from outlast.trainer.room import Room

_FIRST_SHARE = 1 / 16
"""An attempt's first save comes after this share of the interval, the next after twice that, up to the whole: a
machine that lives shorter than the interval gets on all the same."""
RETAKES = 2
"""How often in a row a snapshot that was not what the live state was is taken again at once."""


@dataclass(frozen=True)
class Whole:
    """A complete state: plain values with tensors referred to, and the position in plain words."""

    tree: Json
    position: Json
    settings: dict[str, Json]


@dataclass(frozen=True)
class Order:
    """A snapshot that is to be taken.

    Attributes:
        hold: keep it in memory; it becomes durable if this process or machine goes.
        best: value of the metric that is the best so far.
    """

    step: int
    reason: Reason
    hold: bool = False
    pinned: bool = False
    finished: bool = False
    best: float | None = None


@dataclass(frozen=True)
class _Taken:
    """A snapshot that is not answered yet.

    Attributes:
        frozen: digests of frozen parameters, known to be stored once it is durable.
        prints: fingerprints of those among them that lie on a GPU.
        lasting: whether frozen parameters lie in the arena.
    """

    order: Order
    index: int
    frozen: Digests
    prints: Prints
    lasting: bool


class Saver:
    """Takes snapshots at safe points. Used in the main thread only.

    Args:
        link: to the agent, the attempt claimed.
        saving: how this run saves.
        gather: puts the whole state of this moment together.
        deadline_s: monotonic time at which this machine goes; None while none is known.
        resumed: what the checkpoint holds that was resumed from.
        overlapping: lets copies of interval saves go on under the next step; None: all is copied at the safe point.

    Attributes:
        redo: a snapshot that was not what the live state was, and is due again.
        durable: the last step that is known to be durable; None while none is.
    """

    def __init__(
        self,
        link: Link,
        saving: Saving,
        gather: Callable[[TensorTable], Whole],
        deadline_s: Callable[[], float | None],
        resumed: Stored | None,
        *,
        overlapping: Overlapping | None = None,
    ) -> None:
        self._link = link
        self._every = saving.every
        self._verify = saving.verify
        self._gather = gather
        self._deadline_s = deadline_s
        self._room = Room(link, saving.host_memory_bytes)
        self._layout: Layout | None = None
        self._stored = resumed
        self._overlapping = overlapping
        self._unanswered: dict[int, _Taken] = {}
        self._kept: Snapshot | None = None
        self._number = 0
        self._repeat: tuple[int, int] = (-1, 0)
        self._share = _FIRST_SHARE
        self._tuned_ns = self._paused_ns = 0
        self._last_ns = time.monotonic_ns()
        self._last_step = 0
        self._sizing = False
        self._late_said = False
        self._retakes = 0
        self.redo: Order | None = None
        self.durable: int | None = None

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
        if seconds is None:
            return math.inf
        if self._every.max_lost is not None and self._link.page is not None:
            # An agent that has just taken over knows nothing yet: what the one before it said still holds.
            self._tuned_ns = self._link.page[Word.INTERVAL_NS] or self._tuned_ns
        return self._last_ns + (self._tuned_ns or seconds * self._share * 1e9)

    @property
    def due_step(self) -> float:
        """Step of the next interval save; infinite where intervals are counted in seconds."""
        steps = self._every.steps
        return math.inf if steps is None else self._last_step + steps

    def take(self, order: Order, *, in_loop: bool = False, keep: bool = False) -> int | None:
        """Copy the state into an arena and hand it over; its number, or None where no arena became free in time.

        An interval save and a held one do not wait: the next safe point tries again. So does, `in_loop`, an emergency save,
        and any save while the store fails, since training goes on then. The agent sees on the page that one is taken.

        With `keep` the agent does not get it before `hand_over_kept`, nor at all if `drop_kept` comes instead: such a one takes the place
        of none that is complete, and waits for none.
        """
        self._show_taking(1)
        try:
            return self._take(order, in_loop=in_loop, keep=keep)
        finally:
            self._show_taking(0)

    def _take(self, order: Order, *, in_loop: bool, keep: bool) -> int | None:
        self.settle()
        began_ns = time.monotonic_ns()
        may_wait = not keep and (order.hold or order.reason is not Reason.INTERVAL)
        if self._overlapping is not None and not self._overlapping.give_way(
            urgent=not keep and order.reason is Reason.EMERGENCY, may_wait=may_wait
        ):
            return None
        index = self._room.free(lambda: 0.0) if keep else self._free_arena(order, in_loop=in_loop)
        if index is None:
            self._link.raise_if_lost()
            return None
        with _no_collection(), torch.no_grad():
            table = TensorTable()
            whole = self._gather(table)
            frozen = frozen_names(whole.tree["states"], table.entries)
            plain = self._layout_of(table, frozen)
            prints = frozen_prints(table.entries, frozen)
            base = None if self._link.page is None or self._link.page[Word.WHOLE] else self._stored
            marked = mark(plain, self._digests(table, frozen), prints, frozen, base)
            copied_whole = all(new.at == old.at for new, old in zip(marked.placed, plain.placed, strict=True))
            lasting = any(box.at >= plain.lasting_at for box in marked.placed)
            targets = self._room.targets(index, plain, lasting=lasting)
            hand_over = self._copy(order, table, marked, targets)
            marked = digest_copies(marked, targets, prints)
            of_frozen = {
                b.name: b.digests for b in marked.placed if b.name in frozen and b.digests is not None
            }
        self._number += 1
        repeat = self._repeat[1] + 1 if self._repeat[0] == order.step else 0
        self._repeat = (order.step, repeat)
        self._unanswered[self._number] = _Taken(order, index, of_frozen, prints, lasting)
        (self._keep if keep else hand_over)(
            Snapshot(
                number=self._number,
                index=index,
                step=order.step,
                repeat=repeat,
                reason=order.reason,
                pinned=order.pinned,
                finished=order.finished,
                hold=order.hold,
                tree=whole.tree,
                position=whole.position,
                settings=whole.settings,
                tensors=marked.placed,
                base=None if copied_whole or base is None else base.checkpoint,
                best=order.best,
            )
        )
        self._note_pause(order, time.monotonic_ns() - began_ns)
        if not (order.hold or keep):
            self.start(order.step)
            self._share = min(self._share * 2, 1.0)
            self.redo = None
        return self._number

    def hand_over_kept(self) -> int | None:
        """Hand over the snapshot that was kept; its number, or None where none is."""
        kept, self._kept = self._kept, None
        if kept is None:
            return None
        self._link.submit(kept)
        return kept.number

    def drop_kept(self) -> None:
        """The snapshot that was kept is not what counts any more."""
        kept, self._kept = self._kept, None
        if kept is not None:
            self._link.withdraw(Saved(number=kept.number, checkpoint=None, error=None))

    def _keep(self, snapshot: Snapshot) -> None:
        self._link.reserve(snapshot)
        self._kept = snapshot

    def settle(self) -> None:
        """Learn from what the agent has answered, and go on with what is copied under training."""
        if self._overlapping is not None:
            self._overlapping.look()
        self._link.retake = False
        for number, taken in sorted(self._unanswered.items()):
            saved = self._link.answer(number)
            if saved is None:
                continue
            del self._unanswered[number]
            if saved.checkpoint is not None:
                self._retakes = 0
                self.durable = taken.order.step
                if taken.frozen:
                    self._stored = Stored(saved.checkpoint, taken.frozen, taken.prints)
                    if taken.lasting:
                        self._room.give_back(taken.index)
            elif saved.retake:
                self._stored = None
                if self._retakes < RETAKES:
                    self._retakes += 1
                    self.redo = replace(taken.order, hold=False)

    @property
    def is_copying(self) -> bool:
        """Whether a copy goes on under training, that `settle` has to look at."""
        return self._overlapping is not None and self._overlapping.is_copying

    def finish(self) -> None:
        """Wait until no copy is under way any more."""
        if self._overlapping is not None:
            self._overlapping.finish()

    def retake(self, number: int) -> int | None:
        """Take snapshot `number`, which was not what the live state was, again now; as `take`."""
        taken = self._unanswered.get(number)
        self.settle()
        order = self.redo if taken is None else replace(taken.order, hold=False)
        return None if order is None else self.take(order)

    @property
    def prepared(self) -> bool:
        """Whether the arenas are made."""
        return self._room.is_made

    def prepare(self) -> None:
        """Make the arenas and touch their pages in the background, so that the first save is not slow.

        Not at the first safe point: only from the second on is it known which gradients the loop drops unread, and an
        arena that has room for them would be too large for ever.
        """
        if self.prepared:
            return
        if not self._sizing:
            self._sizing = True
            return
        with _no_collection(), torch.no_grad():
            table = TensorTable()
            whole = self._gather(table)
            self._room.make(self._layout_of(table, frozen_names(whole.tree["states"], table.entries)))

    def _show_taking(self, taking: int) -> None:
        page = self._link.page
        if page is not None:
            page[Word.TAKING] = taking

    def _note_pause(self, order: Order, pause_ns: int) -> None:
        """Tell the agent for how long training stood still."""
        self._paused_ns += pause_ns
        page = self._link.page
        if page is not None:
            page[Word.PAUSED_NS] = self._paused_ns
            if order.reason is Reason.INTERVAL and not order.hold:
                page[Word.PAUSE_NS] = pause_ns

    def _copy(
        self, order: Order, table: TensorTable, marked: Layout, targets: Sequence[torch.Tensor]
    ) -> Callable[[Snapshot], None]:
        """Copy the state, or begin to; returns what the snapshot is handed to."""
        late: frozenset[str] = frozenset()
        if (
            self._overlapping is not None
            and not self._retakes
            and order == Order(order.step, Reason.INTERVAL)
        ):
            late = self._overlapping.suited(table.entries)
        # First what is waited for: a device copies one after the other.
        stage(table.entries, marked, targets, but=late)
        if self._overlapping is None or not late:
            return self._link.submit
        hand_over = self._overlapping.begin(moves(table.entries, marked, targets, late))
        if hand_over is None:
            stage(table.entries, marked, targets, but=table.entries.keys() - late)
        return hand_over or self._link.submit

    def _layout_of(self, table: TensorTable, frozen: set[str]) -> Layout:
        if self._layout is None or not fits(self._layout, table.entries, frozen):
            self._layout = layout(table.entries, frozen)
        return self._layout

    def _digests(self, table: TensorTable, frozen: set[str]) -> Digests:
        """Digests of live tensors, which what is written is compared with."""
        of_frozen = frozen_digests(table.entries, frozen)
        if not self._verify:
            return of_frozen
        rest = [name for name in table.entries if name not in of_frozen]
        of_rest = chunk_digests([table.entries[name] for name in rest])
        return dict(zip(rest, of_rest, strict=True)) | of_frozen

    def _free_arena(self, order: Order, *, in_loop: bool) -> int | None:
        """An arena that nothing reads; where a newer state may take the place of one that waits or is held, it does."""
        index = self._room.free(lambda: 0.0)
        if index is not None:
            return index
        # An emergency save in the loop is one that training goes on after.
        waits = order.reason in (Reason.USER, Reason.FINAL) or (
            order.reason is Reason.EMERGENCY and not in_loop
        )
        waits = waits and not order.hold
        soon = self._room.pass_over(waits=waits)
        if waits:
            return self._room.free(lambda: self._until(soon) if in_loop else self._deadline_s())
        if soon is None:
            return None
        is_given = self._every.max_lost is None  # else the agent says it, with what it means
        if is_given and not self._late_said and not order.hold and order.reason is Reason.INTERVAL:
            self._late_said = True
            say(
                "a save takes longer than the interval between two: what waits is passed over for the newest state, and "
                "saves come as often as the store allows"
            )
        return self._room.free(soon)

    def _until(self, soon: Callable[[], float] | None) -> float | None:
        """How long a loop waits for an arena: while the store fails, only for one that was asked for."""
        page = self._link.page
        if page is None or not page[Word.STORE_LOST_NS]:
            return self._deadline_s()
        return 0.0 if soon is None else soon()


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection meanwhile: ten thousand small objects set off several, each over the whole heap."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
