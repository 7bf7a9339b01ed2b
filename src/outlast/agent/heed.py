"""What one attempt does about the notices that stand: save at once, train on, leave in time; and a record of all of it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from outlast._types import Reason
from outlast.agent.control import ControlPage, Phase, Stop, Word
from outlast.agent.persist import Persister
from outlast.agent.retain import Retention
from outlast.checkpoint.manifest import CheckpointId
from outlast.notice.base import Notice
from outlast.policy.emergency import EXIT_S, Choice, Facts, choose, latest_leave_s, leave_s

POINTS_KEPT = 50
"""Of so many last looks at safe points the slowest step is the one that is reckoned with."""
LATE_STEPS = 2
"""A step that takes so often as long as the slowest of the last ones may not end."""
AWAITED_S = 10.0
"""So long after a notice its save may still begin, for the trainer to reach a safe point; what it prints is of use to whoever looks for why
it does not."""
QUIET_S = 600.0
"""Nothing is deleted and nothing written in full in the last minutes before a deadline. A machine that goes next week must not
fill its store until then."""


@dataclass
class _Heeded:
    """A notice that stands, what it got, and since when."""

    notice: Notice
    since_s: float
    asked: bool = False
    durable: bool = False


class Heed:
    """Answers the notices that stand, for one claimed attempt. `look` is called often, by one thread at a time.

    Args:
        page: of the attempt; the agent's words that a notice moves are written here and nowhere else.
        persister: saves.
        retention: deletes, but not in the last minutes.
        say: a line for whoever watches.
        note: writes an event into the ledger, by its kind and fields.

    Attributes:
        leaves_at_s: monotonic time at which the trainer is to be told to leave; infinite while no notice says so.
    """

    def __init__(
        self,
        page: ControlPage,
        persister: Persister,
        retention: Retention,
        *,
        say: Callable[[str], None],
        note: Callable[..., None],
    ) -> None:
        self._page = page
        self._persister = persister
        self._retention = retention
        self._say = say
        self._note = note
        self._lock = threading.Lock()
        self._heeded: dict[str, _Heeded] = {}
        self._leaving = False
        self._quiet = False
        self._seen = (0, 0)
        self._steps_s: deque[float] = deque(maxlen=POINTS_KEPT)
        self.leaves_at_s = float("inf")

    def look(self, notices: tuple[Notice, ...]) -> bool:
        """Do what the notices ask for now; whether something has changed that the ledger should show soon."""
        now = time.monotonic()
        with self._lock:
            self._learn()
            news = self._compare({notice.id: notice for notice in notices}, now)
            ending = [h.notice for h in self._heeded.values() if h.notice.kind != "hint"]
            if not self._heeded and not news:
                return False
            return self._answer(ending, now) or news

    def superseded(self) -> None:
        """Another attempt has taken over: whatever notices say from now on, the trainer leaves for that."""
        with self._lock:
            self._page[Word.STOP] = Stop.SUPERSEDED

    def committed(self, id: CheckpointId, reason: Reason) -> None:  # noqa: A002 - the field's name
        """A checkpoint has become durable. Thread-safe, and returns at once."""
        if reason is not Reason.EMERGENCY:
            return
        now = time.monotonic()
        with self._lock:
            for heeded in self._heeded.values():
                if not heeded.durable:
                    heeded.durable = True
                    self._outcome(heeded, now, checkpoint=id.name)

    def end(self) -> None:
        """The trainer is gone, and nothing more is saved: what each notice led to that has led to no emergency save."""
        now = time.monotonic()
        durable = self._persister.durable
        is_whole = durable is not None and durable.step >= self._page[Word.STEPS]
        with self._lock:
            for heeded in self._heeded.values():
                if not heeded.durable:
                    heeded.durable = is_whole  # the last save was of the last step, for whatever reason
                    self._outcome(heeded, now, checkpoint=durable.name if durable and is_whole else None)

    @property
    def is_leaving(self) -> bool:
        """Whether the trainer is told to leave."""
        return self._leaving

    @property
    def is_saving(self) -> bool:
        """Whether a save for a notice is written or expected, so that nothing else is to go to the store. Thread-safe."""
        awaited_s = time.monotonic() - AWAITED_S
        with self._lock:
            is_awaited = any(not h.durable and h.since_s > awaited_s for h in self._heeded.values())
            return self._quiet and (is_awaited or self._persister.measured().in_flight_bytes is not None)

    @property
    def served(self) -> tuple[str, ...]:
        """Ids of the notices that stand and led to a durable save."""
        with self._lock:
            return tuple(h.notice.id for h in self._heeded.values() if h.durable)

    def _learn(self) -> None:
        """How long the trainer takes from one safe point to the next."""
        steps, safe_ns = self._page[Word.STEPS], self._page[Word.SAFE_POINT_NS]
        before_steps, before_ns = self._seen
        if before_ns and steps > before_steps:
            self._steps_s.append((safe_ns - before_ns) / 1e9 / (steps - before_steps))
        self._seen = steps, safe_ns

    def _safe_point_s(self, now: float) -> float:
        """Until the next safe point: as the slowest of the last steps, or as long as the present one takes already.

        One that has not begun, since a snapshot is taken before it, takes no time yet.
        """
        safe_ns = self._page[Word.SAFE_POINT_NS]
        since_s = now - safe_ns / 1e9 if safe_ns and not self._page[Word.TAKING] else 0.0
        return max(since_s, *self._steps_s, 0.0)

    def _is_late(self, deadline_s: float | None, save_s: float | None, now: float) -> bool:
        """Whether the save that a trainer leaves with is not waited for: what is complete is saved without it.

        Where the margin before a deadline is used up already, a safe point is still waited for that is not overdue and leaves time for
        its save. While a snapshot is taken the safe point is reached, and is late only as its save would not fit any more.
        """
        if deadline_s is None or save_s is None:
            return True
        if self._page[Word.TAKING]:
            return now + save_s > deadline_s
        if not self._steps_s or self._page[Word.PHASE] != Phase.TRAINING:
            return True
        since_s = now - self._page[Word.SAFE_POINT_NS] / 1e9
        slowest_s = max(self._steps_s)
        if now < latest_leave_s(deadline_s, save_s, 0.0):
            return since_s > LATE_STEPS * slowest_s + EXIT_S
        needs_s = max(slowest_s - since_s, 0.0) + EXIT_S + save_s
        return since_s > slowest_s + EXIT_S or now + needs_s > deadline_s

    def _compare(self, standing: dict[str, Notice], now: float) -> bool:
        """Let go what stands no more, take over what is new and what has moved; both by the notices' ids.

        What announces something else than before is new: a save for a hint is not what the end that it becomes has led to.
        """
        news = False
        for id in self._heeded.keys() - standing.keys():  # noqa: A001 - the field's name
            gone = self._heeded.pop(id)
            self._note("notice-cancelled", source=gone.notice.source, durable=gone.durable)
            news = True
        for id, notice in standing.items():  # noqa: A001 - the field's name
            known = self._heeded.get(id)
            if known is not None and known.notice == notice:
                continue
            if known is not None and known.notice.kind != "hint" and notice.kind == "hint":
                self._note("notice-cancelled", source=notice.source, durable=known.durable)
            utc = notice.deadline_utc
            self._note(
                "notice",
                source=notice.source,
                id=id,
                announces=notice.kind,
                confidence=notice.confidence,
                deadline_utc=utc.isoformat(timespec="milliseconds") if utc else None,
            )
            news = True
            if known is not None and known.notice.kind == notice.kind:
                known.notice = notice
            else:
                self._heeded[id] = _Heeded(notice, now)
        return news

    def _answer(self, ending: list[Notice], now: float) -> bool:
        """Bring the page up to what stands; whether a decision was made."""
        measured = self._persister.measured()
        point_s = self._safe_point_s(now)
        self.leaves_at_s = min(
            (
                leave_s(
                    notice.kind,
                    notice.deadline_s,
                    save_s=measured.save_s,
                    safe_point_s=point_s,
                    in_flight_s=measured.in_flight_s,
                )
                for notice in ending
            ),
            default=float("inf"),
        )
        deadline_s = _next_deadline_s(ending, now)
        self._page[Word.DEADLINE_NS] = 0 if deadline_s is None else int(deadline_s * 1e9)
        self._be_quiet(bool(ending) and (deadline_s is None or deadline_s - now < QUIET_S))
        leaves = bool(ending) and (self._leaving or now >= self.leaves_at_s)
        decided = leaves and not self._leaving
        self._leaving = leaves
        if leaves and self._is_late(deadline_s, measured.save_s, now):
            self._persister.release(Reason.EMERGENCY)
        fresh = [heeded for heeded in self._heeded.values() if not heeded.asked]
        if fresh:
            decided = True
            choice = self._choose(deadline_s, now, point_s)
            for heeded in fresh:
                heeded.asked = True
                self._decided(heeded, choice, now)
            if choice.what == "flush":
                self._persister.release(Reason.EMERGENCY)
            if not leaves and choice.what == "snapshot":
                self._page[Word.EMERGENCIES] += 1
        elif decided:
            self._note("leaving", left_s=None if deadline_s is None else round(deadline_s - now, 3))
            self._say("this is the latest safe leave: the trainer leaves at its next safe point")
        if self._page[Word.STOP] != Stop.SUPERSEDED:
            self._page[Word.STOP] = Stop.LEAVE if leaves else Stop.NO
        return decided

    def _choose(self, deadline_s: float | None, now: float, point_s: float) -> Choice:
        measured = self._persister.measured()
        return choose(
            Facts(
                left_s=None if deadline_s is None else max(deadline_s - now, 0.0),
                safe_point_s=point_s,
                changed_bytes=measured.changed_bytes,
                complete_bytes=measured.changed_bytes if self._persister.has_complete else None,
                in_flight_bytes=measured.in_flight_bytes,
                bytes_per_s=measured.bytes_per_s,
            )
        )

    def _decided(self, heeded: _Heeded, choice: Choice, now: float) -> None:
        """Write down and say what a notice leads to."""
        if heeded.notice.kind == "hint":
            then = "then training goes on"
        elif self._leaving:
            then = "then the trainer leaves"
        else:
            then = f"training goes on for {self.leaves_at_s - now:.1f} s"
        measured = self._persister.measured()
        self._note(
            "decision",
            source=heeded.notice.source,
            id=heeded.notice.id,
            what=choice.what,
            why=choice.why,
            then=then,
            save_s=measured.save_s,
            bytes=measured.changed_bytes,
            bytes_per_s=round(measured.bytes_per_s),
            bytes_in_flight=measured.in_flight_bytes,
        )
        self._say(f"{heeded.notice.source}: {choice.why}; {then}")

    def _outcome(self, heeded: _Heeded, now: float, *, checkpoint: str | None) -> None:
        self._note(
            "notice-outcome",
            source=heeded.notice.source,
            id=heeded.notice.id,
            durable=checkpoint is not None,
            checkpoint=checkpoint,
            seconds=round(now - heeded.since_s, 3),
        )

    def _be_quiet(self, quiet: bool) -> None:
        """From here to the deadline nothing but saves runs."""
        if quiet == self._quiet:
            return
        self._quiet = quiet
        self._retention.pause(quiet)
        self._persister.hurry(quiet)


def _next_deadline_s(ending: list[Notice], now: float) -> float | None:
    """The earliest deadline that has not come yet, else the last that has; None where none is named."""
    named = [notice.deadline_s for notice in ending if notice.deadline_s is not None]
    return min((at for at in named if at > now), default=max(named, default=None))
