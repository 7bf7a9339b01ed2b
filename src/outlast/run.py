"""`Run`: what a training script touches."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch

from outlast import _config, _process
from outlast._errors import ConfigError, NotYetAvailable, OutlastError
from outlast._say import say
from outlast._types import Guarantee, Json
from outlast.agent.control import Phase, Word
from outlast.agent.link import Link
from outlast.agent.protocol import PROTOCOL, Hello
from outlast.data.source import Source, take_over
from outlast.notice.signals import grace_s
from outlast.state.capture import capture_states, check_states
from outlast.state.rng import capture_rng, restore_rng
from outlast.state.settings import describe
from outlast.state.steps import StepWatch
from outlast.state.table import TensorTable
from outlast.state.tree import decode, encode
from outlast.trainer.batches import Batches
from outlast.trainer.ending import ended_by, tail_resumed, watch_exceptions
from outlast.trainer.keeper import Keeper
from outlast.trainer.metrics import as_number
from outlast.trainer.resume import Resumed, compare_data, open_run, put_back
from outlast.trainer.saver import Whole
from outlast.trainer.signals import Signals
from outlast.trainer.vars import Vars, release_vars, restore_vars, values_of

_active: list[Run] = []
"""The run of this process, until it is finished."""


class Run:
    """A training run that survives interruption.

    Made once all objects that change while training exist. Everything that is handed in is saved together at safe
    points and comes back together: the weights and the optimizer are those of the same step as the data position and
    the random generators. If the store holds a checkpoint of this run, the objects are as saved once this returns.

    Args:
        name_or_url: the run's place: a URL or path, or a name under `$OUTLAST_STORE`. See docs/settings.md.
        resume: "auto" resumes what is there, else starts; "must" needs a checkpoint; "never" starts a new run.
        save_every: between two saves: seconds, a `timedelta`, a text ("5m", "25 steps"), or "auto" (5 minutes).
        seed: of the data order; default `torch.initial_seed()`, so `torch.manual_seed` decides it.
        keep_last: how many of the newest checkpoints are kept.
        keep_every: keep one checkpoint per span as well: a duration, or a text such as "1000 steps".
        keep_best: a logged metric and which way is better, ("val_loss", "min"): a value that is the best so far is saved at
            the next safe point, and the best checkpoint is kept.
        host_memory: the most bytes that snapshots may take, a number or a text ("64GB"). Default: half of what is free.
        verify_snapshots: compare every snapshot with a digest of the live state, taken at the safe point.
        snapshot: "copy" at the safe point, or "overlap": on CUDA, the copy runs under the next forward and backward.
        on_store_loss: while the store fails "continue" training, "pause" at a safe point, or "exit" with code 74.
        max_lost_work: not there yet, as `allow_local_store`.
        **state: what changes while training, by names of your choice: modules, optimizers, schedulers, anything with
            `state_dict()` and `load_state_dict()`, or `outlast.Value(x)`.

    Attributes:
        epoch: the epoch that the loop is in, from 0.
        step: optimizer updates so far.
        attempt: which start of this run this is, from 1.
        resumed: whether it continues from a checkpoint.
        guarantee: what the resume promises; `BIT_EXACT` for a fresh start.
        vars: plain values that are saved as well: `run.vars.best = 0.0`.

    Raises:
        ConfigError: of one kind or another; ends the script with exit code 78 if nothing catches it.
        StoreError: the store is out of reach, refuses or is full; exit code 74.
    """

    def __init__(
        self,
        name_or_url: str | None = None,
        *,
        resume: Literal["auto", "must", "never"] = "auto",
        save_every: float | timedelta | str = "auto",
        max_lost_work: Any = None,
        keep_last: int = 3,
        keep_every: float | timedelta | str | None = None,
        keep_best: tuple[str, Literal["min", "max"]] | None = None,
        host_memory: int | str | None = None,
        verify_snapshots: bool = False,
        snapshot: Literal["copy", "overlap"] = "copy",
        on_store_loss: Literal["continue", "pause", "exit"] = "continue",
        allow_local_store: Any = None,
        seed: int | None = None,
        **state: Any,
    ) -> None:
        watch_exceptions()
        _config.reject_unavailable(max_lost_work=max_lost_work, allow_local_store=allow_local_store)
        if _active:
            msg = (
                "this process has an unfinished outlast.Run already: one run per process, or finish the first"
            )
            raise ConfigError(msg)
        check_states(state)
        env = os.environ
        world = _process.world(env)
        if world.size > 1:
            msg = f"{world.size} ranks: training on several ranks is not there yet; start the script as one process"
            raise NotYetAvailable(msg)
        place = _config.resolve_place(name_or_url, env, sys.argv, Path.cwd())
        kept = _config.keep(keep_last, keep_every, keep_best)
        saving = _config.Saving(
            every=_config.save_every(save_every, env),
            host_memory_bytes=_config.host_memory_bytes(host_memory),
            verify=_config.verify_snapshots(verify_snapshots, env),
            mode=_config.snapshot_mode(snapshot),
            on_loss=_config.store_loss(on_store_loss),
            best=kept.best,
        )

        self.epoch = 0
        self.step = 0
        self.resumed = False
        self.vars = Vars()
        self._states = state
        self._pid = os.getpid()
        self._watch = StepWatch(state)
        self._settings = {**describe(state), "arguments": _config.arguments_digest(sys.argv)}
        self._seed = (torch.initial_seed() if seed is None else seed) & (2**63 - 1)
        self._signals = Signals(grace_s(env))
        self._loop: Literal["epochs", "flat", "steps", "own"] | None = None
        self._left = False
        self._over: str | None = None
        self._tail_open = self._tail_cut = self._own_points = False
        self._last_epoch_read = -1
        self._source: Source | None = None
        self._taken: tuple[object, Source] | None = None
        self._source_position: object = None
        self._data: Json = None
        self._head: tuple[Json, dict[str, torch.Tensor]] = (None, {})
        self._said: set[str] = set()

        link = Link(
            Hello(
                protocol=PROTOCOL,
                trainer=_process.process_id(),
                rank=0,
                world_size=1,
                global_batch=None,
                url=place.url,
                resume=_config.resume_mode(resume, env),
                take_over=env.get("OUTLAST_TAKE_OVER") == "1",
                launch_id=_process.launch_id(env),
                job_id=_process.job_id(env),
                interval_s=saving.every.seconds,
                interval_steps=saving.every.steps,
                settings=self._settings,
                keep=kept,
                rejoin=None,
            )
        )
        self._resumed, offer = open_run(link, state, self._watch, self._settings)
        assert link.welcome is not None
        self.attempt = link.welcome.attempt
        saved_as = None if self._resumed is None else "finished" if self._resumed.finished else "whole"
        self._keeper = Keeper(link, saving, self._signals, self._gather, saved_as)
        _active.append(self)
        atexit.register(self._at_exit)
        self._signals.tell(link.notice)
        for note in (place.note, *self._watch.notes):
            if note:
                say(note)
        if self._resumed is None:
            say(f"{offer.url}: attempt {self.attempt}, starting at step 0")
        else:
            self._continue(self._resumed)
            say(f"{offer.url}: attempt {self.attempt}, resuming from {self._resumed.checkpoint}")

    @property
    def guarantee(self) -> Guarantee:
        """What the resume promises; final once the loop has begun."""
        return self._resumed.promise.guarantee if self._resumed else Guarantee.BIT_EXACT

    def epochs(self, n: int) -> Iterator[int]:
        """Iterate the epochs that are left of `n`; the one that was interrupted comes first.

        What follows the batches in the body (validation, `scheduler.step()`) is the epoch's tail: a run that is
        interrupted there enters the same epoch again with no batches left, and runs the tail whole.
        """
        self._enter("epochs", done=self.epoch >= n)
        with self._noting_a_break():
            while self.epoch < n:
                self._begin_head()
                yield self.epoch
                self._close_epoch()
        self._finish()

    def batches(self, loader: Any, *, epochs: int | None = None, steps: int | None = None) -> Batches[Any]:
        """Iterate the loader's batches, from where the last attempt stopped.

        Inside `run.epochs` this is one epoch. Elsewhere it is the whole loop: `epochs` of them (default 1), or
        until `steps` optimizer updates are done.
        """
        source = self._take(loader)
        return Batches(lambda: self._iterate(source, epochs, steps), source.__len__)

    def enumerate(self, loader: Any, *, epochs: int | None = None, steps: int | None = None) -> Batches[Any]:
        """`batches` with each batch's true index in its epoch: (i, batch)."""
        source = self._take(loader)

        def numbered() -> Iterator[tuple[int, Any]]:
            for batch in self._iterate(source, epochs, steps):
                yield source.batches_done - 1, batch

        return Batches(numbered, source.__len__)

    def steps(self, n: int) -> Iterator[int]:
        """Iterate the steps that are left of `n`, for a loop that needs no loader; each is one optimizer update.

        The body draws its data from `run.step` and the global generators, which are as they were.
        """
        self._enter("steps", done=self.step >= n)
        self._begin_reading(None, own_loop=True)
        with self._noting_a_break():
            while self.step < n:
                yield self.step
                self._boundary(always=True)
        self._finish()

    def safe_point(self) -> None:
        """Say that the state is whole here: between two steps of a loop of your own.

        Inside `run.batches` and `run.steps`, which know their safe points, and in an epoch's tail it does nothing.
        """
        if self._loop is None:
            self._enter("own", done=False)
            self._begin_reading(None, own_loop=True)
        if self._loop in {"own", "epochs"} and self._source is None and not self._tail_open:
            self._own_points = self._loop == "epochs"
            self._boundary(always=True)

    def save(self, *, pin: bool = False) -> None:
        """Save at the next safe point, or at once when no loop runs. A pinned checkpoint is never deleted."""
        self._keeper.ask(pin=pin)
        if self._loop is None or self._left:
            self._save_what_was_asked()

    def log(self, **metrics: float) -> None:
        """Record metrics of the present step; they are durable before the checkpoint of a later step is."""
        values = {name: as_number(name, value) for name, value in metrics.items()}
        self._keeper.record(kind="metrics", attempt=self.attempt, step=self.step, values=values)

    def should_stop(self) -> bool:
        """Whether this machine goes away or Ctrl-C came: long evaluation may ask, and return early.

        An epoch's tail that was told so is not counted: the next attempt runs it whole.
        """
        stop = self._keeper.should_stop()
        self._tail_cut = self._tail_cut or (stop and self._tail_open)
        return stop

    def _enter(self, loop: Literal["epochs", "flat", "steps", "own"], *, done: bool) -> None:
        if self._loop is not None or (self._over and loop != "own"):
            msg = (
                f"a run has one loop, and run.{self._loop or self._over} has begun already. For several epochs write "
                "`for epoch in run.epochs(n):` around it, or give the number: run.batches(loader, epochs=n)"
            )
            raise ConfigError(msg)
        release_vars(self.vars)
        if done:
            say(f"this run is finished: epoch {self.epoch}, step {self.step}; there is nothing to train")
            self._end_loop(loop)
            return
        self._loop = loop
        self._keeper.begin(self.step)
        if self._keeper.should_stop():
            self._keeper.leave(self.epoch, self.step)
        resumed = self._resumed
        if resumed is not None and loop != "own":  # whose first step is done when it is first heard of
            if not resumed.in_epoch:
                put_back(resumed, self._states, self._watch, self.vars, after="what ran before the loop")
            restore_rng(resumed.tree["rng"], resumed.tensors)

    def _iterate(self, source: Source, epochs: int | None, steps: int | None) -> Iterator[Any]:
        if self._loop == "epochs":
            yield from self._one_epoch(source, None)
            return
        most = 1 if epochs is None and steps is None else epochs
        over = (most is not None and self.epoch >= most) or (steps is not None and self.step >= steps)
        self._enter("flat", done=over)
        with self._noting_a_break():
            while not over:
                before = self.step
                yield from self._one_epoch(source, steps)
                if source.batches_done == 0 and self.step == before:
                    msg = f"epoch {self.epoch} has no batches: the loader is empty (is drop_last larger than the data?)"
                    raise ConfigError(msg)
                over = steps is not None and self.step >= steps
                if not over:
                    self._close_epoch()
                    over = most is not None and self.epoch >= most
        self._finish()

    def _one_epoch(self, source: Source, steps: int | None) -> Iterator[Any]:
        if self._last_epoch_read == self.epoch:
            msg = (
                f"a second run.batches in epoch {self.epoch}: after a resume, what lies between the two loops would run "
                "again. Use one loop per epoch, or one epoch of run.epochs for each"
            )
            raise ConfigError(msg)
        self._last_epoch_read = self.epoch
        if self._tail_open:  # the last attempt was interrupted in this epoch's tail
            tail_resumed(self.epoch)
            self._begin_reading(None)
            self._keeper.page[Word.PHASE] = Phase.TAIL
            return
        self._source = source
        iterator = source.begin(self.epoch, self._source_position)
        self._say_notes(source)
        self._begin_reading(source)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                break
            except Exception:
                if self._keeper.should_stop():  # a SIGTERM to the whole group took what feeds the loop first
                    self._keeper.leave(self.epoch, self.step)
                raise
            yield batch
            self._boundary()
            if steps is not None and self.step >= steps:
                return
        self._leave_source()
        self._tail_open = True
        if self._loop == "epochs":
            self._keeper.page[Word.PHASE] = Phase.TAIL
            self._keeper.hold(self.step)

    def _boundary(self, *, always: bool = False) -> None:
        """The loop asks for the next batch: a safe point, if an optimizer has stepped since the last one."""
        self._keeper.batch()
        if not (self._watch.stepped() or always):
            return
        self.step += 1
        self._keeper.safe_point(self.epoch, self.step)
        self._watch.mark()
        self._watch.due = self._keeper.due_next

    def _close_epoch(self) -> None:
        """The body of an epoch is over: what its tail changed belongs to the next epoch's beginning."""
        if self._resumed is not None and not self._resumed.announced:
            self._resumed.promise.weaken(
                Guarantee.APPROXIMATE,
                "the epoch read no run.batches: where its data stand is not known, only the generators are restored",
            )
            self._announce(self._resumed)
        if self._tail_cut:
            self._keeper.leave(self.epoch, self.step, cut=True)
        self.epoch += 1
        self._tail_open = self._own_points = False
        tail_resumed(None)
        self._leave_source()
        if self._watch.stepped():
            self.step += 1
        self._keeper.page[Word.PHASE] = Phase.TRAINING
        taken = self._keeper.safe_point(self.epoch, self.step)
        if self._loop == "epochs" and not taken:
            self._keeper.hold(self.step)
        self._watch.mark()

    def _leave_source(self) -> None:
        """The epoch's batches are over. The position stays: some loaders count epochs in a state of their own."""
        if self._source is not None:
            self._source_position, self._data = self._source.position(), self._source.describe()
            self._source = None

    def _begin_head(self) -> None:
        """An epoch is entered: its head, up to the batches, draws what it drew when it first ran."""
        resumed = self._resumed
        head = resumed.tree["head"] if resumed is not None and not resumed.announced else None
        if resumed is not None and resumed.in_epoch and head and head["rng"] is not None:
            names = {name: tensor for name, tensor in resumed.tensors.items() if name.startswith("head/")}
            self._head = (head["rng"], {n: t.clone() for n, t in decode(head["tensors"], names).items()})
            restore_rng(*self._head)
            return
        table = TensorTable()
        tree = capture_rng(table)
        self._head = (tree, table.entries)

    def _begin_reading(self, source: Source | None, *, own_loop: bool = False) -> None:
        """The loop's first look at data in this attempt: what the epoch's head did and drew once more is undone."""
        resumed = self._resumed
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

    def _announce(self, resumed: Resumed) -> None:
        """Say, once, what this resume promises."""
        resumed.release()
        text = resumed.promise.text()
        say(f"resumed at epoch {self.epoch}, step {self.step}: {text}")
        self._keeper.record(
            kind="resume",
            attempt=self.attempt,
            step=self.step,
            checkpoint=resumed.checkpoint,
            guarantee=resumed.promise.guarantee.label,
            why=text,
        )

    def _take(self, loader: Any) -> Source:
        if self._taken is None or self._taken[0] is not loader:
            source = take_over(loader, seed=self._seed)
            self._say_notes(source)
            self._taken = (loader, source)
        return self._taken[1]

    def _say_notes(self, source: Source) -> None:
        for note in source.notes:
            if note not in self._said:
                self._said.add(note)
                say(note)

    def _gather(self, table: TensorTable) -> Whole:
        """The whole state at this safe point."""
        source = self._source
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
            "tail_open": self._tail_open,
            "own_points": self._own_points,
            "seed": self._seed,
            "batches": source.batches_done if source is not None else None,
            "samples": source.samples_done if source is not None else None,
        }
        return Whole(tree, plain, settings)

    def _continue(self, resumed: Resumed) -> None:
        position, self.resumed = resumed.position, True
        self.step = int(position["step"])
        self.epoch = int(position["epoch"])
        self._tail_open = bool(position["tail_open"])
        self._seed = int(position["seed"])
        self._source_position = resumed.source_position
        self._data = resumed.settings.get("data")
        restore_vars(self.vars, resumed.variables)
        restore_rng(resumed.tree["rng"], resumed.tensors)

    def _finish(self) -> None:
        if self._loop is None:
            return
        self._keeper.finish(self.step)
        self._end_loop(self._loop)

    def _end_loop(self, loop: str) -> None:
        self._loop, self._over = None, loop
        if self in _active:
            _active.remove(self)

    @contextmanager
    def _noting_a_break(self) -> Iterator[None]:
        """A `break` closes the loop's generator."""
        try:
            yield
        except GeneratorExit:
            self._left = True
            raise

    def _save_what_was_asked(self) -> None:
        if self._watch.stepped():
            self.step += 1
            self._watch.mark()
        self._keeper.save_asked(self.step)

    def _at_exit(self) -> None:
        if os.getpid() != self._pid:
            return  # a process that the script forked
        # A loop that was left without a sign of it, as where a progress bar keeps its iterator.
        if self._keeper.is_asked and ended_by() is None:
            try:
                self._save_what_was_asked()
            except (OutlastError, SystemExit) as error:
                say(f"the save that was asked for at step {self.step} is not durable: {error}")
        self._keeper.close(self.attempt, self.step)
