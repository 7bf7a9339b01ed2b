"""`Run`: what a training script touches."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch

from outlast import _config, _process
from outlast._errors import ConfigError, NotYetAvailable, OutlastError
from outlast._say import say
from outlast._types import Guarantee
from outlast.agent.link import Link
from outlast.agent.protocol import PROTOCOL, Hello
from outlast.agent.tee import print_by_lines
from outlast.data.source import Source
from outlast.data.workers import shield_every_loader
from outlast.notice.grace import grace_s
from outlast.state.capture import check_states
from outlast.state.settings import describe
from outlast.state.steps import StepWatch
from outlast.trainer.batches import Batches
from outlast.trainer.ending import end_with, ended_by, first_at_exit, watch_exceptions
from outlast.trainer.first_calls import settle_first_calls
from outlast.trainer.frozen import stored
from outlast.trainer.loop import Kind, Loop
from outlast.trainer.metrics import as_number
from outlast.trainer.resume import open_run
from outlast.trainer.room import module_bytes, refuse_without_room
from outlast.trainer.signals import Signals
from outlast.trainer.tracker import TrackedRun, Tracker
from outlast.trainer.vars import release_vars

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
        save_every: between two saves: seconds, a `timedelta`, a text ("5m", "25 steps"), or "auto": computed while
            training goes on, from what saves take and how often machines like this one go. See docs/how-often-to-save.md.
        seed: of the data order; default `torch.initial_seed()`, so `torch.manual_seed` decides it.
        keep_last: how many of the newest checkpoints are kept.
        keep_every: keep one checkpoint per span as well: a duration, or a text such as "1000 steps".
        keep_best: a logged metric and which way is better, ("val_loss", "min"): a value that is the best so far is saved at
            the next safe point, and the best checkpoint is kept.
        host_memory: the most bytes that snapshots may take, a number or a text ("64GB"). Default: half of what is free.
        verify_snapshots: compare every snapshot with a digest of the live state, taken at the safe point.
        snapshot: "copy" at the safe point, or "overlap": on CUDA, the copy runs under the next forward and backward.
        on_store_loss: while the store fails "continue" training, "pause" at a safe point, or "exit" with code 74.
        allow_local_store: save to a disk of this machine although it is known to be preemptible, which is an error else.
        max_lost_work: the most work that an interruption without a notice may cost, which bounds "auto": seconds, a `timedelta`, a
            text ("10m"), or a share of the run so far ("2%"). Default: 10 minutes.
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
        max_lost_work: float | timedelta | str | None = None,
        keep_last: int = 3,
        keep_every: float | timedelta | str | None = None,
        keep_best: tuple[str, Literal["min", "max"]] | None = None,
        host_memory: int | str | None = None,
        verify_snapshots: bool = False,
        snapshot: Literal["copy", "overlap"] = "copy",
        on_store_loss: Literal["continue", "pause", "exit"] = "continue",
        allow_local_store: bool = False,
        seed: int | None = None,
        **state: Any,
    ) -> None:
        watch_exceptions()
        print_by_lines(os.environ)
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
            every=_config.save_every(save_every, env, max_lost_work),
            host_memory_bytes=_config.host_memory_bytes(host_memory),
            verify=_config.verify_snapshots(verify_snapshots, env),
            mode=_config.snapshot_mode(snapshot),
            on_loss=_config.store_loss(on_store_loss),
            best=kept.best,
        )
        refuse_without_room(module_bytes(state), saving.host_memory_bytes)
        settle_first_calls()

        self._pid = os.getpid()
        self._left = False
        self._over: str | None = None
        watch = StepWatch(state)
        settings = {**describe(state), "arguments": _config.arguments_digest(sys.argv)}
        signals = Signals(grace_s(env))
        shield_every_loader()
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
                settings=settings,
                keep=kept,
                rejoin=None,
                allow_local_store=allow_local_store,
                max_lost=saving.every.max_lost,
                root=place.root,
                capacity=_config.capacity(env),
            )
        )
        resumed, offer = open_run(link, state, watch, settings)
        assert link.welcome is not None
        self.attempt = link.welcome.attempt
        self.resumed = resumed is not None
        self._loop = Loop(
            link,
            saving,
            signals,
            states=state,
            watch=watch,
            settings=settings,
            seed=(torch.initial_seed() if seed is None else seed) & (2**63 - 1),
            resumed=resumed,
            stored=stored(offer.checkpoint, offer.tensors),
        )
        self.vars = self._loop.vars
        self._keeper = self._loop.keeper
        self._tracked = TrackedRun(
            link.welcome.run_id, offer.url.rstrip("/").rpartition("/")[2], self.attempt
        )
        self._cut_with: object = None
        self._exiting = threading.Lock()
        _active.append(self)
        atexit.register(self._at_exit)
        signals.tell(link.notice)
        for note in (place.note, *watch.notes):
            if note:
                say(note)
        begins = f"resuming from {resumed.checkpoint}" if resumed else "starting at step 0"
        say(f"{offer.url}: attempt {self.attempt}, {begins}")

    @property
    def epoch(self) -> int:
        """The epoch that the loop is in, from 0."""
        return self._loop.epoch

    @property
    def step(self) -> int:
        """Optimizer updates so far."""
        return self._loop.step

    @property
    def guarantee(self) -> Guarantee:
        """What the resume promises; final once the loop has begun."""
        return self._loop.resumed.promise.guarantee if self._loop.resumed else Guarantee.BIT_EXACT

    def epochs(self, n: int) -> Iterator[int]:
        """Iterate the epochs that are left of `n`; the one that was interrupted comes first.

        What follows the batches in the body (validation, `scheduler.step()`) is the epoch's tail: a run that is
        interrupted there enters the same epoch again with no batches left, and runs the tail whole.
        """
        self._enter("epochs", done=self.epoch >= n, at_end=self._is_at_end_of(n))
        with self._noting_a_break():
            while self.epoch < n:
                self._loop.begin_head()
                yield self.epoch
                self._loop.close_epoch()
        self._finish()

    def batches(self, loader: Any, *, epochs: int | None = None, steps: int | None = None) -> Batches[Any]:
        """Iterate the loader's batches, from where the last attempt stopped.

        Inside `run.epochs` this is one epoch. Elsewhere it is the whole loop: `epochs` of them (default 1), or
        until `steps` optimizer updates are done.
        """
        source = self._loop.source_of(loader)
        return Batches(lambda: self._iterate(source, epochs, steps), source.__len__)

    def enumerate(self, loader: Any, *, epochs: int | None = None, steps: int | None = None) -> Batches[Any]:
        """`batches` with each batch's true index in its epoch: (i, batch)."""
        source = self._loop.source_of(loader)

        def numbered() -> Iterator[tuple[int, Any]]:
            for batch in self._iterate(source, epochs, steps):
                yield source.batches_done - 1, batch

        return Batches(numbered, source.__len__)

    def steps(self, n: int) -> Iterator[int]:
        """Iterate the steps that are left of `n`, for a loop that needs no loader; each is one optimizer update.

        The body draws its data from `run.step` and the global generators, which are as they were.
        """
        self._enter("steps", done=self.step >= n, at_end=self.step == n)
        self._loop.begin_reading(None, own_loop=True)
        with self._noting_a_break():
            while self.step < n:
                yield self.step
                self._loop.boundary(always=True)
        self._finish()

    def safe_point(self) -> None:
        """Say that the state is whole here: between two steps of a loop of your own.

        Inside `run.batches` and `run.steps`, which know their safe points, and in an epoch's tail it does nothing.
        """
        loop = self._loop
        if loop.kind is None:
            self._enter("own", done=False, at_end=False)
            loop.begin_reading(None, own_loop=True)
        if loop.kind in {"own", "epochs"} and loop.source is None and not loop.tail_open:
            loop.own_points = loop.kind == "epochs"
            loop.boundary(always=True)

    def save(self, *, pin: bool = False) -> None:
        """Save at the next safe point, or at once when no loop runs. A pinned checkpoint is never deleted.

        Where `should_stop()` was true since the last safe point and an optimizer has stepped since, a `break` may follow: then the
        state of this call is saved, so that the call belongs at the end of the loop's body.
        """
        self._loop.broken_off()
        self._keeper.ask(pin=pin)
        if self._loop.kind is None or self._left:
            self._loop.save_asked()
        else:
            self._loop.save_before_break()

    def log(self, **metrics: float) -> None:
        """Record metrics of the present step; they are durable before the checkpoint of a later step is."""
        values = {name: as_number(name, value) for name, value in metrics.items()}
        self._keeper.log(values)
        self._keeper.tracking.log(self.step, values)
        self._keeper.record(kind="metrics", attempt=self.attempt, step=self.step, values=values)

    def track(self, *trackers: Tracker) -> None:
        """Show what `log` records in these as well, each step once it is durable; to be called before anything is logged.

        A tracker that fails or hangs costs neither training nor saving anything. See docs/trackers.md.
        """
        for tracker in trackers:
            if not all(callable(getattr(tracker, name, None)) for name in ("open", "write", "close")):
                msg = (
                    f"run.track({tracker!r}): expected a tracker, such as outlast.integrations.wandb.WandB(...), "
                    "or an object with open, write and close of your own"
                )
                raise ConfigError(msg)
        if not self._keeper.tracking.may_add:
            msg = "run.track() came after run.log(): put it right after outlast.Run(...), so that the tracker misses nothing"
            raise ConfigError(msg)
        first_at_exit(self._at_exit)
        for tracker in trackers:
            self._keeper.tracking.add(tracker, self._tracked, self.step if self.resumed else None)

    def should_stop(self) -> bool:
        """Whether this machine goes away or Ctrl-C came: long evaluation may ask, and return early.

        An epoch's tail that was told so is not counted: the next attempt runs it whole. A loop needs not ask in order to leave:
        it does so by itself, at its next safe point, and saves. One that is left by a `break` after it was told is not over
        either: the script ends with 75 all the same, and the next attempt goes on from the last save, which `run.save()` before
        the `break` makes one of this step.
        """
        self._loop.broken_off()
        stop = self._keeper.should_stop()
        if stop and not self._left:
            self._loop.told_to_stop()
        return stop

    def _is_at_end_of(self, epochs: int | None) -> bool:
        return self.epoch == epochs and not self._loop.resumed_in_epoch

    def _enter(self, kind: Kind, *, done: bool, at_end: bool) -> None:
        """Begin the loop, unless all of it is done. `at_end`: whether the run stands where the loop ends, and not beyond."""
        if self._loop.kind is not None or (self._over and kind != "own"):
            msg = (
                f"a run has one loop, and run.{self._loop.kind or self._over} has begun already. For several epochs write "
                "`for epoch in run.epochs(n):` around it, or give the number: run.batches(loader, epochs=n)"
            )
            raise ConfigError(msg)
        release_vars(self.vars)
        if done:
            say(f"this run is finished: epoch {self.epoch}, step {self.step}; there is nothing to train")
            if self._keeper.is_finished or not (at_end and self.resumed):
                self._end_loop(kind)
            else:  # it was told to leave right after its last step: what is left is to say that that was the last one
                self._loop.enter(kind)
                self._loop.begin_reading(None)
                self._finish()
            return
        self._loop.enter(kind)

    def _iterate(self, source: Source, epochs: int | None, steps: int | None) -> Iterator[Any]:
        if self._loop.kind == "epochs":
            yield from self._loop.one_epoch(source, None)
            return
        most = 1 if epochs is None and steps is None else epochs
        over = (most is not None and self.epoch >= most) or (steps is not None and self.step >= steps)
        self._enter("flat", done=over, at_end=self.step == steps or self._is_at_end_of(most))
        with self._noting_a_break():
            while not over:
                before = self.step
                yield from self._loop.one_epoch(source, steps)
                if source.batches_done == 0 and self.step == before:
                    msg = f"epoch {self.epoch} has no batches: the loader is empty (is drop_last larger than the data?)"
                    raise ConfigError(msg)
                over = steps is not None and self.step >= steps
                if not over:
                    self._loop.close_epoch()
                    over = most is not None and self.epoch >= most
        self._finish()

    def _finish(self) -> None:
        if self._loop.kind is None:
            return
        self._keeper.finish(self.step)
        self._end_loop(self._loop.kind)

    def _end_loop(self, kind: Kind) -> None:
        self._loop.kind, self._over = None, kind
        if self in _active:
            _active.remove(self)

    @contextmanager
    def _noting_a_break(self) -> Iterator[None]:
        """A `break` closes the loop's generator."""
        try:
            yield
        except GeneratorExit:
            self._left = self._loop.body_left = True
            raise

    def _at_exit(self) -> None:
        if os.getpid() != self._pid:
            return  # a process that the script forked
        with self._exiting:
            self._save_at_exit()
        if isinstance(self._cut_with, int) and threading.current_thread() is threading.main_thread():
            end_with(self._cut_with)

    def _save_at_exit(self) -> None:
        # A loop that was left without a sign of it, as where a progress bar keeps its iterator.
        if ended_by() is None:
            self._loop.broken_off(at_exit=True)
        if self._keeper.is_asked and ended_by() is None and not self._loop.is_cut:
            try:
                self._loop.save_asked()
            except (OutlastError, SystemExit) as error:
                say(f"the save that was asked for at step {self.step} is not durable: {error}")
        if self._loop.is_cut and ended_by() is None:
            try:
                self._loop.leave_cut()
            except SystemExit as left:
                self._cut_with = left.code
            except OutlastError as error:
                say(f"leaving at step {self.step}: {error}")
                self._cut_with = error.exit_code
        self._keeper.close(self.attempt, self.step)
