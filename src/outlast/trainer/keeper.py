"""Keeps a run safe: what is done at a safe point, on the way out, and at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NoReturn

from outlast._config import Saving
from outlast._errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_SUPERSEDED,
    Preempted,
    StoreError,
    Superseded,
)
from outlast._say import say
from outlast._types import Json, Reason
from outlast.agent.claim import utc_now
from outlast.agent.control import ControlPage, Phase, Stop, Word
from outlast.agent.link import Link
from outlast.agent.protocol import Ending
from outlast.state.table import TensorTable
from outlast.trainer.best import BestSoFar
from outlast.trainer.ending import ended_by, trace_of_end
from outlast.trainer.frozen import Stored
from outlast.trainer.outside import Outside
from outlast.trainer.overlapping import Overlapping
from outlast.trainer.saver import RETAKES, Order, Saver, Whole
from outlast.trainer.signals import Signals
from outlast.trainer.tracking import Tracking

_FLUSH_NS = 1e9
"""Metrics travel to the agent at least every second."""
_HELD_LOOK_S = 0.1
"""Between looks at a store that is waited for."""
_STOP, _INTERRUPTS, _BATCHES = int(Word.STOP), int(Word.INTERRUPTS), int(Word.BATCHES)
_EMERGENCIES = int(Word.EMERGENCIES)
_STEPS, _SAFE_NS, _SAFE_BATCHES = int(Word.STEPS), int(Word.SAFE_POINT_NS), int(Word.SAFE_POINT_BATCHES)


class Keeper:
    """Saves when it is time, leaves when it must. Used in the main thread.

    Args:
        link: to the agent, the attempt claimed.
        saving: how this run saves.
        signals: of this process.
        gather: puts the whole state of this moment together.
        saved_as: "finished" or "whole" when the state that training begins with is durable already, else None.
        stored: what the checkpoint holds that was resumed from.
        overlapping: lets copies go on under the next step; None where all is copied at the safe point.

    Attributes:
        best: the best value so far of the metric that `keep_best` names.
        due_next: whether the next safe point may save, so that what only a save needs is recorded from here on.
        tracking: hands what is logged to trackers.
    """

    def __init__(
        self,
        link: Link,
        saving: Saving,
        signals: Signals,
        gather: Callable[[TensorTable], Whole],
        *,
        saved_as: str | None,
        stored: Stored | None,
        overlapping: Overlapping | None,
    ) -> None:
        self._link = link
        self._saver = Saver(link, saving, gather, self._deadline_s, stored, overlapping=overlapping)
        self._on_loss = saving.on_loss
        self.best = BestSoFar(saving.best)
        self.tracking = Tracking(link.ask)
        self._outside = Outside(self.tracking, self._deadline_s)
        link.heard = self.tracking.heard
        self._signals = signals
        self._saved_as = saved_as
        self._changed = False
        self._user_save: bool | None = None
        self._emergencies = 0
        self._held: int | None = None
        self._handed_over: int | None = None
        self._batches = 0
        self._last_ns = 0
        self._due_ns = self._due_step = 0.0
        self._attend_ns = 0.0
        self.due_next = True
        self._ending: Ending = "ended"
        self._closed = self._give_up = False
        self._closing = threading.Lock()
        self._left: SystemExit | None = None

    @property
    def page(self) -> ControlPage:
        """The control page of the present agent."""
        page = self._link.page
        assert page is not None
        return page

    def begin(self, step: int) -> None:
        """The loop begins: from here on signals wait for a safe point, and intervals are counted."""
        self._stay_away()
        self._signals.at_once = False
        page = self.page
        page[Word.PHASE] = Phase.TRAINING
        page[Word.STEPS] = step
        page[Word.SAFE_POINT_NS] = time.monotonic_ns()
        self._saver.start(step)

    def should_stop(self) -> bool:
        """Whether to leave at the next safe point."""
        signals, page = self._signals, self.page
        return signals.stop or signals.interrupted or page[Word.STOP] != Stop.NO or page[Word.INTERRUPTS] > 0

    def batch(self) -> None:
        """The loop asks for a batch."""
        self._batches += 1
        self.page.words[_BATCHES] = self._batches

    def safe_point(self, epoch: int, step: int) -> bool:
        """The state is whole: leave if it must be, save if it is time. Whether a snapshot was taken.

        Runs once per step, nearly always without anything to do: this much must cost a microsecond.
        """
        self._changed = True
        now_ns = time.monotonic_ns()
        words = self.page.words
        words[_STEPS] = step
        words[_SAFE_BATCHES] = self._batches
        words[_SAFE_NS] = now_ns
        idle = not (
            self._signals.any
            or words[_STOP]
            or words[_INTERRUPTS]
            or self._link.retake
            or words[_EMERGENCIES] != self._emergencies
        )
        if idle and now_ns < self._attend_ns and step < self._due_step:
            self.due_next = 3 * now_ns - 2 * self._last_ns >= self._due_ns or step + 1 >= self._due_step
            self._last_ns = now_ns
            return False
        return self._attend(epoch, step, now_ns)

    def _attend(self, epoch: int, step: int, now_ns: int) -> bool:
        """Do what is due, and find out when something is due again."""
        self._stay_away()
        if self.should_stop():
            self.leave(epoch, step)
        self._link.raise_if_lost()
        self._link.flush_events()
        self._saver.settle()
        order = self._due(step, now_ns)
        taken = order is not None and self._take_due(order)
        if order is None:
            self._saver.prepare()
        if self.page[Word.STORE_LOST_NS] and self._on_loss != "continue":
            taken = self._store_is_lost(epoch, step) or taken
        self._last_ns = now_ns
        self._due_ns, self._due_step = self._saver.due_ns, self._saver.due_step
        self._attend_ns = 0.0 if self._saver.is_copying else min(now_ns + _FLUSH_NS, self._due_ns)
        self.due_next = now_ns + _FLUSH_NS >= self._due_ns or step + 1 >= self._due_step
        if not (self._user_save is None and self.best.due is None and self._saver.prepared):
            self._attend_ns, self.due_next = 0.0, True
        return taken

    def _due(self, step: int, now_ns: int) -> Order | None:
        """What is to be saved at this safe point: what was asked for, a best value, what must be taken again, an interval."""
        redo, best = self._saver.redo, self.best.due
        # Fewer than before are those of a new agent, which asks anew for the notices that stand.
        self._emergencies = min(self._emergencies, self.page[Word.EMERGENCIES])
        is_emergency = self.page[Word.EMERGENCIES] > self._emergencies
        if self._user_save is not None or best is not None or is_emergency:
            reason = Reason.EMERGENCY if is_emergency else Reason.USER
            order = Order(step, reason, pinned=bool(self._user_save), best=best)
            if redo is None:
                return order
            return replace(
                order, pinned=order.pinned or redo.pinned, best=redo.best if best is None else best
            )
        if redo is not None:
            return replace(redo, step=step)
        if now_ns >= self._saver.due_ns or step >= self._saver.due_step:
            return Order(step, Reason.INTERVAL)
        return None

    def hold(self, step: int) -> None:
        """Keep a snapshot of this moment in memory; it becomes durable if this process or machine goes."""
        self._stay_away()
        self._changed = True
        self._held = self._saver.take(Order(step, Reason.INTERVAL, hold=True))

    def ask(self, *, pin: bool) -> None:
        """Save at the next safe point."""
        self._user_save = pin or bool(self._user_save)
        self._attend_ns = 0.0
        self.due_next = True

    @property
    def is_finished(self) -> bool:
        """Whether what stands on the store is the end of the run."""
        return self._saved_as == "finished" and not self._changed

    @property
    def is_unsaved(self) -> bool:
        """Whether steps were done since a snapshot was taken."""
        return self._changed

    @property
    def has_left(self) -> bool:
        """Whether the script was told, by an exception, to end."""
        return self._left is not None

    @property
    def is_asked(self) -> bool:
        """Whether a save was asked for that no safe point has taken, and the script has not said how it ends."""
        return self._user_save is not None and self._ending == "ended"

    def save_asked(self, step: int) -> None:
        """Take the save that was asked for now, and wait until it is durable."""
        pinned, self._user_save = bool(self._user_save), None
        number = self._saver.take(Order(step, Reason.USER, pinned=pinned, best=self._take_best()))
        if not self._wait_saved(number, step, "the save is durable"):
            self._leave_unsaved(step)
        self._changed, self._held = False, None

    def drop_asked(self) -> None:
        """What was asked for cannot be saved."""
        self._user_save = None

    def keep(self, step: int) -> bool:
        """Take a snapshot of this moment that counts only if the loop is left by a `break`. Whether it was taken."""
        self._stay_away()
        self._saver.drop_kept()
        reason = Reason.EMERGENCY if self._is_preempted else Reason.USER
        order = Order(step, reason, pinned=bool(self._user_save), best=self.best.due)
        return self._saver.take(order, keep=True) is not None

    def drop_kept(self) -> None:
        """The loop goes on."""
        self._saver.drop_kept()

    def hand_over_kept(self) -> None:
        """The loop was left, and what was kept is what counts: the agent makes it durable, whatever the script does next."""
        self._user_save = self.best.due = self._saved_as = None
        self.tracking.hold()
        self._handed_over = self._saver.hand_over_kept()
        self._changed, self._held = False, None

    @property
    def _is_preempted(self) -> bool:
        """Whether what makes the script leave is its machine, and not Ctrl-C."""
        return not (self._signals.interrupted or self.page[Word.INTERRUPTS]) or self._signals.stop

    def leave(self, epoch: int, step: int, *, cut: bool = False) -> NoReturn:
        """Save and end the script: this machine goes away, Ctrl-C came, or a newer attempt has taken over.

        `cut`: the epoch's tail, or its loop, was cut short by `should_stop`; what is held from before it is what counts.
        """
        self._stay_away()
        self._superseded_if_so(f"leaving at epoch {epoch}, step {step}")
        preempted = self._is_preempted
        self._ending = "preempted" if preempted else "interrupted"
        self.tracking.hold()
        handed_over = self._handed_over if cut else None
        number = handed_over or (self._held if cut else self._saver.last_number)
        if not cut and (self._changed or (number is None and self._saved_as is None)):
            reason = Reason.EMERGENCY if preempted else Reason.USER
            pinned = bool(self._user_save)
            number = self._saver.take(Order(step, reason, pinned=pinned, best=self._take_best()))
            saved = number is not None and self._wait_saved(number, step, "the emergency save is durable")
        elif cut and number is None:
            saved = not self._changed  # there was no room to hold it, or the tail is the one that was resumed
        else:
            # What Ctrl-C finds held becomes durable as the script ends, which waits for it.
            is_held = cut and handed_over is None
            waits = number is not None and (preempted or not is_held)
            saved = not waits or self._wait_saved(
                number, step, "the last save is durable", again=not cut, held=is_held
            )
        told = f"step {step} is durable" if saved else f"step {step} did not become durable in time"
        say(f"leaving at epoch {epoch}: {told}")
        self._finish_outside(step, EXIT_PREEMPTED if preempted else EXIT_INTERRUPTED)
        self._signals.at_once = True
        self._depart(Preempted(told) if preempted else SystemExit(EXIT_INTERRUPTED))

    def finish(self, step: int) -> None:
        """The loop is over: exit 0 must mean that its end is durable."""
        self._stay_away()
        if not self.is_finished:
            self._ending = "unsaved"  # whatever the script does with an exception
            number = self._saver.take(Order(step, Reason.FINAL, finished=True, best=self._take_best()))
            if not self._wait_saved(number, step, "the final state is durable"):
                self._leave_unsaved(step)
            self._changed = False
        self._ending = "finished"
        self._signals.at_once = True
        self.page[Word.PHASE] = Phase.ENDED

    def log(self, values: Mapping[str, float]) -> bool:
        """Look at metrics that were logged: one that is the best so far is saved at the next safe point."""
        if not self.best.see(values):
            return False
        self._attend_ns = 0.0
        self.due_next = True
        return True

    def record(self, **fields: Json) -> None:
        """Add a record to the run's events."""
        self._link.add_events([{"utc": utc_now(), **fields}])

    def close(self, attempt: int, step: int) -> None:
        """The process ends: say so, and wait until what is complete is durable."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._close(attempt, step)

    def _close(self, attempt: int, step: int) -> None:
        self._signals.at_once = False  # the script ends anyway, and what is complete is waited for
        exception = ended_by()
        if exception is not None:
            self._ending = "error" if self._ending == "ended" else self._ending
            self.record(kind="exception", attempt=attempt, step=step, text=exception, trace=trace_of_end())
        elif self._ending == "ended" and self._changed:
            say(
                f"warning: the script ends at step {step} and its loop was left before its end; what came after the "
                "last save is not durable. Let the loop end by itself (run.epochs(n), run.batches(..., steps=n), "
                "run.steps(n)), or call run.save() after it"
            )
        if self._signals.abandon or self._give_up:
            return
        in_time = True
        if self._ending == "finished" or self.is_finished:
            # All is durable, and the agent is still there to read back.
            in_time = self._outside.finish_trackers(self._ending, final=True)
        self._saver.finish()
        self.tracking.cut()
        self._link.close(self._ending)
        in_time = self._outside.finish_trackers(self._ending) and in_time
        if not in_time and self._signals.stop:
            self._exit_soon(step, EXIT_PREEMPTED)

    def _take_due(self, order: Order) -> bool:
        asked = self.page[Word.EMERGENCIES]
        if order.reason is Reason.EMERGENCY:
            self.tracking.hold()
        if self._saver.take(order, in_loop=True) is None:
            return False
        self._changed, self._held = False, None
        self._saved_as = None  # that was what training began with
        if order.reason is Reason.EMERGENCY:
            self._emergencies = asked
        if order.reason in (Reason.USER, Reason.EMERGENCY):
            self._user_save = self.best.due = None
        return True

    def _take_best(self) -> float | None:
        """The best value so far goes with the snapshot that is taken now."""
        best, self.best.due = self.best.due, None
        return best

    def _store_is_lost(self, epoch: int, step: int) -> bool:
        """The store fails: hold here until it is back, or end, as `on_store_loss` says. Whether a snapshot was taken again meanwhile.

        Raises:
            StoreError: it says "exit".
        """
        durable = self._saver.durable
        known = "nothing of this attempt is durable" if durable is None else f"step {durable} is durable"
        if self._on_loss == "exit":
            self._ending = "unsaved"
            self._give_up = True
            self._link.flush_events()
            msg = f'the store fails at step {step} and on_store_loss is "exit"; {known}. What is saved stands'
            raise StoreError(msg)
        say(
            f'the store fails at step {step}, and {known}: training is held (on_store_loss="pause") until it is back'
        )
        taken = False
        while self.page[Word.STORE_LOST_NS]:
            if self.should_stop():
                self.leave(epoch, step)
            self._link.raise_if_lost()
            self.page[Word.SAFE_POINT_NS] = time.monotonic_ns()
            time.sleep(_HELD_LOOK_S)
            taken = self._take_again(step) or taken
        say(f"the store is back: training goes on at step {step}")
        return taken

    def _take_again(self, step: int) -> bool:
        """Take the snapshot that the agent asks for anew, if it does; whether it was taken."""
        self._saver.settle()
        order = self._due(step, time.monotonic_ns()) if self._saver.redo is not None else None
        return order is not None and self._take_due(order)

    def _leave_unsaved(self, step: int) -> NoReturn:
        self._superseded_if_so(f"step {step} is not saved")
        self._ending = "preempted"
        msg = f"step {step} did not become durable in time"
        say(msg)
        self._finish_outside(step, EXIT_PREEMPTED)
        self._depart(Preempted(msg))

    def _superseded_if_so(self, what: str) -> None:
        if self.page[Word.STOP] == Stop.SUPERSEDED:
            self._ending = "superseded"
            msg = f"{what}: a newer attempt has taken over"
            say(msg)
            self._finish_outside(self.page[Word.STEPS], EXIT_SUPERSEDED)
            self._depart(Superseded(msg))

    def _finish_outside(self, step: int, code: int) -> None:
        """All that could be saved is: trackers and logs have a bounded time, then this process ends whatever they do."""
        if not self._outside.finish(self._ending):
            self._exit_soon(step, code)

    def _exit_soon(self, step: int, code: int) -> None:
        welcome = self._link.welcome
        assert welcome is not None
        self._outside.exit_soon(code, lambda: self.close(welcome.attempt, step))

    def _depart(self, how: SystemExit) -> NoReturn:
        self._left = how
        raise how

    def _stay_away(self) -> None:
        """A script that caught what ends it, and goes on, is ended again: what it does now belongs to no step."""
        if self._left is not None:
            say("the script has caught the exception that ends it, and is ended again; nothing more is saved")
            raise self._left

    def _wait_saved(
        self, number: int | None, step: int, why: str, *, again: bool = True, held: bool = False
    ) -> bool:
        """Wait until a snapshot is durable; False if a notice's deadline passed first, or a newer attempt came.

        `again`: whether the state is still the snapshot's, so that it may be taken again; False if it must be, and is not. `held`: whether
        the agent holds it, and saves it only because this machine goes.

        Raises:
            StoreError: it was refused for a reason that waiting does not mend.
        """
        error: str | None = None
        self._saver.finish()
        for left in range(RETAKES, -1, -1):
            until_s = self._held_until_s if held else self._deadline_s
            saved = None if number is None else self._link.wait_saved(number, until_s, why)
            if number is None or saved is None:
                return False
            if saved.checkpoint is not None:
                return True
            error = saved.error
            if not again:
                return False
            if not saved.retake or not left:
                break
            number = self._saver.retake(number)
        if self.page[Word.STOP] == Stop.SUPERSEDED:
            return False
        msg = f"step {step} was not saved: {error}"
        raise StoreError(msg)

    def _held_until_s(self) -> float | None:
        """As `_deadline_s`, for what is held: once its notice is taken back nobody asks for it until the script ends."""
        return self._deadline_s() if self.should_stop() else 0.0

    def _deadline_s(self) -> float | None:
        shared = self.page[Word.DEADLINE_NS]
        found = [at for at in (shared / 1e9 if shared else None, self._signals.deadline_s) if at is not None]
        return min(found, default=None)
