"""Where a loop stands: epoch, step and data, and what is done as it goes from one to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NoReturn, TypeAlias

import torch

from outlast._config import Saving
from outlast._errors import ConfigError
from outlast._say import say
from outlast._types import Guarantee, Json
from outlast.agent.control import Phase, Word
from outlast.agent.link import Link
from outlast.data.source import Source, take_over
from outlast.snapshot.pinned import DeviceCopier
from outlast.state.capture import capture_states
from outlast.state.rng import capture_rng, restore_rng
from outlast.state.steps import StepWatch
from outlast.state.table import TensorTable
from outlast.state.tree import decode, encode
from outlast.trainer.ending import tail_resumed
from outlast.trainer.frozen import Stored
from outlast.trainer.keeper import Keeper
from outlast.trainer.overlapping import Overlapping
from outlast.trainer.resume import Resumed, compare_data, put_back
from outlast.trainer.saver import Whole
from outlast.trainer.signals import Signals
from outlast.trainer.vars import Vars, restore_vars, values_of

Kind: TypeAlias = Literal["epochs", "flat", "steps", "own"]
"""How a script goes through its work: `run.epochs`, `run.batches` alone, `run.steps`, `run.safe_point`."""


class Loop:
    """The position of a run, and its moves. Used in the main thread.

    Args:
        link: to the agent, the attempt claimed.
        saving: how this run saves.
        signals: of this process.
        states: what the script handed in.
        watch: over its optimizers.
        settings: what is compared between attempts.
        seed: of the data order; that of the save where there is one.
        resumed: what came back; None for a fresh start.
        stored: what the checkpoint holds that it came from.

    Attributes:
        kind: the loop that runs; None before and after.
        epoch: the epoch that the loop is in, from 0.
        step: optimizer updates so far.
        vars: the script's plain values.
        source: what the epoch's batches come from, while they are read.
        tail_open: whether the epoch's batches are over, and its tail is not.
        tail_cut: whether that tail was told to stop.
        body_cut: whether what is under way before the tail was told so; a `break` then ends no epoch and no run.
        body_left: whether the iterator over the batches was closed: by a `break` or `return`, or by an exception on its way.
        own_points: whether `run.safe_point` was called within an epoch that reads no batches.
        keeper: saves, and leaves.
    """

    def __init__(
        self,
        link: Link,
        saving: Saving,
        signals: Signals,
        *,
        states: Mapping[str, object],
        watch: StepWatch,
        settings: dict[str, Json],
        seed: int,
        resumed: Resumed | None,
        stored: Stored | None,
    ) -> None:
        assert link.welcome is not None
        self.kind: Kind | None = None
        self.epoch = 0
        self.step = 0
        self.vars = Vars()
        self.source: Source | None = None
        self.tail_open = self.tail_cut = self.body_cut = self.body_left = self.own_points = False
        self.resumed = resumed
        self._attempt = link.welcome.attempt
        self._states = states
        self._watch = watch
        self._settings = settings
        self._seed = seed
        self._last_epoch_read = -1
        self._kept: int | None = None
        self._saved_at: int | None = None
        self._taken: tuple[object, Source] | None = None
        self._source_position: object = None
        self._data: Json = None
        self._head: tuple[Json, dict[str, torch.Tensor]] = (None, {})
        self._said: set[str] = set()
        saved_as = None if resumed is None else "finished" if resumed.finished else "whole"
        # On the CPU the copy is made at the safe point, always: on busy cores to overlap it costs as much.
        overlaps = saving.mode == "overlap" and torch.cuda.is_available()
        self.keeper = Keeper(
            link,
            saving,
            signals,
            self.gather,
            saved_as=saved_as,
            stored=stored,
            overlapping=Overlapping(link, states, watch, DeviceCopier()) if overlaps else None,
        )
        watch.is_due = lambda: self.keeper.due_next or self.keeper.should_stop()
        if resumed is not None:
            self._continue(resumed)

    def enter(self, kind: Kind) -> None:
        """The loop begins: state and generators are as saved, whatever ran before it."""
        self.kind = kind
        self.keeper.begin(self.step)
        if self.keeper.should_stop():
            self.keeper.leave(self.epoch, self.step)
        resumed = self.resumed
        if resumed is not None and kind != "own":  # whose first step is done when it is first heard of
            if not resumed.in_epoch:
                put_back(resumed, self._states, self._watch, self.vars, after="what ran before the loop")
            restore_rng(resumed.tree["rng"], resumed.tensors)

    def save_asked(self) -> None:
        """Save outside the loop what was asked for, and wait until it is durable; not where that would be no whole state."""
        if self._saved_at is not None:  # and waited for as the script ends: nothing was trained since
            self.keeper.drop_asked()
            return
        if (why := self._not_whole()) is not None:
            self.keeper.drop_asked()
            say(
                f"run.save() after the loop was left: the state is not saved, since {why}. Call it right before the break, after the "
                "optimizer's step"
            )
            return
        if self._watch.stepped():
            self.step += 1
            self._watch.mark()
        self.keeper.save_asked(self.step)

    def _not_whole(self) -> str | None:
        """Why the state is not one to go on from, where the loop was left and has not ended; None where it is."""
        if self.kind == "epochs" and self.is_cut:
            return "the epoch's tail, which the next start runs again, may have changed it"
        if self.kind == "flat" and self.source is not None and not self._watch.stepped():
            return "no optimizer has stepped since the last batch was read, which may be part of it or not"
        return None

    def save_before_break(self) -> None:
        """Keep what was asked for in a body that was told to stop, once its step is done, as the loop's next move would save it.

        It counts if the loop is left; if it goes on, what the rest of the body does belongs to the step as well. Not where the loop's
        data are not ours: an epoch of which nobody knows where it stands is run again whole.
        """
        is_ours = self.source is not None or self.kind == "steps"
        if self.body_left or not (self.body_cut and is_ours and self._watch.stepped()):
            return
        self._kept = None
        self.step += 1
        try:
            if self.keeper.keep(self.step):
                self._kept = self.step
        finally:
            self.step -= 1

    def broken_off(self, *, at_exit: bool = False) -> None:
        """Save what was kept for it, if the loop is left for good.

        `at_exit`: the script ends, without an exception. Where something keeps the loop's iterator, that is the first sign of it; in
        `run.epochs` what was kept may then be of the tail, and is let go.
        """
        if self._kept is not None and (self.body_left or (at_exit and self.kind != "epochs")):
            self._saved_at, self._kept = self._kept, None
            self.keeper.hand_over_kept()

    def one_epoch(self, source: Source, steps: int | None) -> Iterator[Any]:
        """Iterate the batches that are left of this epoch, until `steps` updates are done; its tail is open then."""
        if self._last_epoch_read == self.epoch:
            msg = (
                f"a second run.batches in epoch {self.epoch}: after a resume, what lies between the two loops would run "
                "again. Use one loop per epoch, or one epoch of run.epochs for each"
            )
            raise ConfigError(msg)
        self._last_epoch_read = self.epoch
        self.body_left = False
        if self.tail_open:  # the last attempt was interrupted in this epoch's tail
            tail_resumed(self.epoch)
            self.begin_reading(None)
            self.keeper.page[Word.PHASE] = Phase.TAIL
            return
        self.source = source
        iterator = source.begin(self.epoch, self._source_position)
        self._say_notes(source)
        self.begin_reading(source)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                break
            except Exception:
                if self.keeper.should_stop():  # a SIGTERM to the whole group took what feeds the loop first
                    self.keeper.leave(self.epoch, self.step)
                raise
            try:
                yield batch
            except GeneratorExit:
                self.body_left = True
                raise
            self.boundary()
            if steps is not None and self.step >= steps:
                return
        self._leave_source()
        self.body_cut = False  # though no step was left to end on: nothing was cut
        self.tail_open = True
        if self.kind == "epochs":
            self.keeper.page[Word.PHASE] = Phase.TAIL
            self.keeper.hold(self.step)

    def boundary(self, *, always: bool = False) -> None:
        """The loop asks for the next batch: a safe point, if an optimizer has stepped since the last one."""
        self.keeper.batch()
        if self._kept is not None:
            self._kept = None
            self.keeper.drop_kept()
        if not (self._watch.stepped() or always):
            return
        self.body_cut = False
        self.step += 1
        self.keeper.safe_point(self.epoch, self.step)
        self._watch.mark()

    def close_epoch(self) -> None:
        """The body of an epoch is over: what its tail changed belongs to the next epoch's beginning."""
        if self.resumed is not None and not self.resumed.announced:
            self.resumed.promise.weaken(
                Guarantee.APPROXIMATE,
                "the epoch read no run.batches: where its data stand is not known, only the generators are restored",
            )
            self._announce(self.resumed)
        if self.tail_cut or self.body_cut:
            self.leave_cut()
        self.epoch += 1
        self.tail_open = self.own_points = False
        tail_resumed(None)
        self._leave_source()
        if self._watch.stepped():
            self.step += 1
        self.keeper.page[Word.PHASE] = Phase.TRAINING
        taken = self.keeper.safe_point(self.epoch, self.step)
        if self.kind == "epochs" and not taken:
            self.keeper.hold(self.step)
        self._watch.mark()

    def told_to_stop(self) -> None:
        """The script was told that it should stop, and may leave what it is in by a `break` or `return`."""
        if self.kind is not None:
            self.tail_cut = self.tail_cut or self.tail_open
            self.body_cut = self.body_cut or not self.tail_open

    @property
    def resumed_in_epoch(self) -> bool:
        """Whether this attempt began within an epoch."""
        return self.resumed is not None and self.resumed.in_epoch

    @property
    def is_cut(self) -> bool:
        """Whether the script has left its loop, after it was told to stop, and has not ended by that yet."""
        return self.kind is not None and (self.tail_cut or self.body_cut) and not self.keeper.has_left

    def leave_cut(self) -> NoReturn:
        """Leave where the script has cut short a tail or a body: what is whole was saved or held before it."""
        self.broken_off()
        if self.body_cut and self.keeper.is_unsaved:
            say(
                "the loop was left by a break, because run.should_stop() said so, and what came after the last save is lost with "
                "it: within its loop a run leaves by itself, at the next safe point, where it can save; so does run.save() before the break"
            )
        self.keeper.leave(self.epoch, self.step if self._saved_at is None else self._saved_at, cut=True)

    def begin_head(self) -> None:
        """An epoch is entered: its head, up to the batches, draws what it drew when it first ran."""
        resumed = self.resumed
        head = resumed.tree["head"] if resumed is not None and not resumed.announced else None
        if resumed is not None and resumed.in_epoch and head and head["rng"] is not None:
            names = {name: tensor for name, tensor in resumed.tensors.items() if name.startswith("head/")}
            self._head = (head["rng"], {n: t.clone() for n, t in decode(head["tensors"], names).items()})
            restore_rng(*self._head)
            return
        table = TensorTable()
        tree = capture_rng(table)
        self._head = (tree, table.entries)

    def begin_reading(self, source: Source | None, *, own_loop: bool = False) -> None:
        """The loop's first look at data in this attempt: what the epoch's head did and drew once more is undone."""
        resumed = self.resumed
        if resumed is None or resumed.announced:
            return
        if resumed.in_epoch:
            put_back(resumed, self._states, self._watch, self.vars, after="the head of the epoch")
            restore_rng(resumed.tree["rng"], resumed.tensors)
        if source is not None:
            compare_data(resumed, source)
        if own_loop:
            resumed.promise.reasons.append(
                "as far as this loop draws its data from run.step and the global generators alone"
            )
        if resumed.position.get("own_points"):
            resumed.promise.weaken(
                Guarantee.APPROXIMATE,
                "run.safe_point() saved within an epoch whose data are not run.batches'",
            )
        self._announce(resumed)

    def source_of(self, loader: Any) -> Source:
        """How a loader's epochs are read; the same one as long as the loader is."""
        if self._taken is None or self._taken[0] is not loader:
            source = take_over(loader, seed=self._seed)
            self._say_notes(source)
            self._taken = (loader, source)
        return self._taken[1]

    def gather(self, table: TensorTable) -> Whole:
        """The whole state at this safe point."""
        source = self.source
        position = source.position() if source is not None else self._source_position
        tree: dict[str, Json] = {
            "states": capture_states(self._states, table),
            "grads": self._watch.capture(table),
            "rng": capture_rng(table),
            "vars": encode(dict(values_of(self.vars)), "vars", table),
            "source": encode(position, "source", table),
            "head": {"rng": self._head[0], "tensors": encode(dict(self._head[1]), "head", table)},
        }
        settings = {**self._settings, "data": source.describe() if source is not None else self._data}
        plain: dict[str, Json] = {
            "epoch": self.epoch,
            "step": self.step,
            "tail_open": self.tail_open,
            "own_points": self.own_points,
            "seed": self._seed,
            "best": self.keeper.best.position,
            "batches": source.batches_done if source is not None else self._as_resumed("batches"),
            "samples": source.samples_done if source is not None else self._as_resumed("samples"),
        }
        return Whole(tree, plain, settings)

    def _as_resumed(self, name: str) -> Json:
        """Where an epoch stands of which this attempt has read nothing, as in a run whose last step was done before."""
        at = self.resumed.position if self.resumed is not None and self._last_epoch_read < 0 else None
        return at[name] if at is not None and at["epoch"] == self.epoch else None

    def _leave_source(self) -> None:
        """The epoch's batches are over. The position stays: some loaders count epochs in a state of their own."""
        if self.source is not None:
            self._source_position, self._data = self.source.position(), self.source.describe()
            self.source = None

    def _announce(self, resumed: Resumed) -> None:
        """Say, once, what this resume promises."""
        resumed.release()
        text = resumed.promise.text()
        say(f"resumed at epoch {self.epoch}, step {self.step}: {text}")
        self.keeper.record(
            kind="resume",
            attempt=self._attempt,
            step=self.step,
            checkpoint=resumed.checkpoint,
            guarantee=resumed.promise.guarantee.label,
            why=text,
        )

    def _say_notes(self, source: Source) -> None:
        for note in source.notes:
            if note not in self._said:
                self._said.add(note)
                say(note)

    def _continue(self, resumed: Resumed) -> None:
        position = resumed.position
        self.step = int(position["step"])
        self.epoch = int(position["epoch"])
        self.tail_open = bool(position["tail_open"])
        self._seed = int(position["seed"])
        self._source_position = resumed.source_position
        self._data = resumed.settings.get("data")
        self.keeper.best.resume(position.get("best"))
        restore_vars(self.vars, resumed.variables)
        restore_rng(resumed.tree["rng"], resumed.tensors)
