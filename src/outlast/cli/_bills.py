"""What each attempt is to be billed for, from its record and what was read of its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Any

import msgspec

from outlast._types import Json
from outlast.checkpoint.manifest import AttemptRecord, ProcessId, parse_checkpoint_name
from outlast.cli._interval import duration
from outlast.policy.hazard import end_of
from outlast.policy.savings import Bill, savings

CLOCK_S = 5.0
"""Signs of life that go back by more than this were written by a clock that was set: how long the attempt lived is not known then."""

Events = Sequence[Mapping[str, Json]]


def bills(records: Sequence[AttemptRecord | None], events: Events) -> list[Bill]:
    """Return the attempts' bills, those left out whose record or events were not read, or whose clock was set back.

    Args:
        records: of all attempts, in order.
        events: of the newest of them, each attempt's in the order in which they were written.
    """
    found, pauses = [], []
    for index, record in enumerate(records):
        its = [event for event in events if record is not None and event.get("attempt") == record.attempt]
        following = [later for later in records[index + 1 :] if later is not None]
        lived = None if record is None else _lived(record, its, following)
        if record is None or lived is None:
            continue
        pauses.append(_pauses_s(its))
        found.append(_bill(record, its, following, lived))
    everywhere = [pause_s for its in pauses for pause_s in its]
    return [
        replace(bill, pause_s=median(own or everywhere) if own or everywhere else None)
        for bill, own in zip(found, pauses, strict=True)
    ]


def cost(records: Sequence[AttemptRecord | None], events: Events) -> dict[str, Json]:
    """What the run has cost, for `--json`: the sums, the attempts that they are of, and those left out."""
    billed = bills(records, events)
    total = savings(billed)
    return {
        **{name: getattr(total, name) for name in total.__dataclass_fields__},
        "attempts_counted": len(billed),
        "attempts_not_counted": len(records) - len(billed),
        "attempts_with_unknown_loss": sum(bill.lost_s is None for bill in billed),
        "attempts_with_unknown_saves": sum(bill.saving_s is None for bill in billed),
    }


def interruptions(records: Sequence[AttemptRecord | None], events: Events) -> int | None:
    """How many attempts ended by their machine, as the interval's policy counts them; None where the end of one was not read."""
    count = 0
    for number, record in enumerate(records, 1):
        its = [event for event in events if record is not None and event.get("attempt") == record.attempt]
        if not its:
            return None
        end = next((event for event in reversed(its) if event.get("kind") == "end"), None)
        if end is None and number == len(records):
            continue  # it may live
        count += end_of(end.get("outcome") if end else None, is_saved=False) != "none"
    return count


def cost_said(found: Mapping[str, Any]) -> str | None:
    """The same in words; None where no price is known, so that there is nothing to say."""
    if found["paid_usd"] is None:
        return None
    said = f"{found['paid_usd']:.2f} USD paid for {duration(found['priced_s'])} of machines"
    if found["priced_s"] < found["seconds"]:
        said += f" (no price is known of {duration(found['seconds'] - found['priced_s'])} more)"
    if left := found["attempts_not_counted"]:
        said += f", {left} of {left + found['attempts_counted']} attempts not counted, of which too little was read"
    if found["saved_usd"] is not None:
        whole = found["compared_s"] == found["priced_s"]
        work = "the same work" if whole else f"the work of {duration(found['compared_s'])} of it"
        what = "saved" if found["saved_usd"] >= 0 else "lost"
        said += f"; on demand {work} costs {found['on_demand_usd']:.2f} USD, {abs(found['saved_usd']):.2f} USD {what}"
        said += "" if found["saved_share"] is None else f" ({found['saved_share']:.0%})"
    lost = _at_least(found["lost_usd"], found["attempts_with_unknown_loss"])
    saving = _at_least(found["saving_usd"], found["attempts_with_unknown_saves"])
    said += f"; {lost} went into work done again, {saving} into saves"
    if found["over_optimum"] is not None:
        said += f"; over the hindsight optimum: {found['over_optimum']:.1%}"
        if found["hindsight_s"] < found["priced_s"]:
            said += f" (of {duration(found['hindsight_s'])}, the rest is not known)"
    return said


def _at_least(usd: float | None, unknown: int) -> str:
    if usd is None:
        return "an unknown amount"
    return f"at least {usd:.2f} USD" if unknown else f"{usd:.2f} USD"


def _lived(
    record: AttemptRecord, its: Events, following: Sequence[AttemptRecord]
) -> tuple[datetime, datetime] | None:
    """From when to when a machine is billed for an attempt; None where no event was read, or its clock was set back.

    All times are of one machine's clock, so that it does not matter how the clocks of two differ. An agent that still finishes while the
    next attempt trains on the same machine is billed up to there: the machine is paid for once.
    """
    began = _at(record.claimed_utc)
    ended = max((at for event in its if (at := _at(event.get("utc"))) is not None), default=None)
    if began is None or ended is None or _is_set_back(record, began, its):
        return None
    for later in following:
        claimed = _at(later.claimed_utc)
        if claimed is not None and _boot(later.agent) == _boot(record.agent) and claimed >= began:
            ended = min(ended, claimed)
    return began, max(began, ended)


def _is_set_back(record: AttemptRecord, began: datetime, its: Events) -> bool:
    beats = [
        at for event in its if event.get("kind") == "alive" and (at := _at(event.get("utc"))) is not None
    ]
    if any((began - at).total_seconds() > CLOCK_S for at in beats):
        return True
    # Those of several ranks stand one behind the other.
    return record.world_size == 1 and any((a - b).total_seconds() > CLOCK_S for a, b in pairwise(beats))


def _bill(
    record: AttemptRecord,
    its: Events,
    following: Sequence[AttemptRecord],
    lived: tuple[datetime, datetime],
) -> Bill:
    """All but the pause, for which the other attempts are needed."""
    began, ended = lived
    seconds = (ended - began).total_seconds()
    end = next((event for event in reversed(its) if event.get("kind") == "end"), None)
    saves = _paused_s(its)
    # What the next attempt resumed from, or would: as long as this one lives, nothing is lost.
    newest = max(saves, default="") if end is not None else None
    kept = following[0].resumed_from if following else newest
    is_in_vain = bool(following) and kept == record.resumed_from
    if is_in_vain:
        lost_s: float | None = seconds
    elif not following and (end is None or end.get("outcome") == "finished"):
        lost_s = 0.0
    else:
        lost_s = _lost_s(its, ended, record, kept, end)
    paid = record.capacity
    return Bill(
        pool=paid.pool if paid else "unknown",
        seconds=seconds,
        usd_per_hour=paid.usd_per_hour if paid else None,
        on_demand_usd_per_hour=paid.on_demand_usd_per_hour if paid else None,
        lost_s=None if lost_s is None else min(max(lost_s, 0.0), seconds),
        saving_s=0.0 if is_in_vain else saves.get(kept or "", max(saves.values(), default=None)),
        is_restart=record.resumed_from is not None,
        start_s=_start_s(its, began, seconds),
        machines=_machines(record, its),
    )


def _lost_s(
    its: Events, ended: datetime, record: AttemptRecord, kept: str | None, end: Mapping[str, Json] | None
) -> float | None:
    """From the safe point that is kept to the end of this attempt; None where that save was not read."""
    resumed = parse_checkpoint_name(kept or "")
    if resumed is None or resumed.attempt != record.attempt:
        return None
    if end is not None and end.get("step") == resumed.step:
        return 0.0
    for event in its:
        if event.get("kind") == "save" and event.get("checkpoint") == kept:
            at, took_s = _at(event.get("utc")), event.get("seconds")
            if at is not None and isinstance(took_s, int | float):
                return (ended - (at - timedelta(seconds=took_s))).total_seconds()
    return None


def _paused_s(its: Events) -> dict[str, float]:
    """For how long training had stood still when each checkpoint became durable: that of the slowest rank, since all stand still together."""
    found: dict[str, float] = {}
    for event in its:
        name, paused_s = event.get("checkpoint"), event.get("paused_s")
        if event.get("kind") == "save" and isinstance(paused_s, int | float) and paused_s > 0:
            found[str(name)] = max(found.get(str(name), 0.0), float(paused_s))
    return found


def _pauses_s(its: Events) -> list[float]:
    """Single ones: what was added between two saves, or where only one was read, what the interval was decided from."""
    added = [later - before for before, later in pairwise(sorted(_paused_s(its).values()))]
    told = [event.get("pause_s") for event in its if event.get("kind") == "interval"]
    return added or [float(pause_s) for pause_s in told if isinstance(pause_s, int | float)]


def _start_s(its: Events, began: datetime, seconds: float) -> float | None:
    """Until it went on from where it resumed; not known of one that began afresh, nor where that was not read."""
    resumed = [_at(event.get("utc")) for event in its if event.get("kind") == "resume"]
    found = [(at - began).total_seconds() for at in resumed if at is not None]
    return min(max(*found, 0.0), seconds) if found else None


def _machines(record: AttemptRecord, its: Events) -> int:
    """Those whose agents gave a sign of life."""
    found = {_boot(record.agent)}
    for event in its:
        try:
            found.add(_boot(msgspec.convert(event.get("agent"), ProcessId)))
        except msgspec.ValidationError:
            pass  # no sign of life
    return len(found) if record.world_size > 1 else 1


def _boot(process: ProcessId) -> str:
    """Which machine it is: containers of one have its boot id in common."""
    return process.machine.partition("/")[0]


def _at(utc: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(utc))
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
