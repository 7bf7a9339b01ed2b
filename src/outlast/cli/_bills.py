"""What each attempt is to be billed for, from its record and what was read of its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from outlast._types import Json
from outlast.checkpoint.manifest import AttemptRecord, parse_checkpoint_name
from outlast.cli._interval import duration
from outlast.policy.savings import Bill, savings

Events = Sequence[Mapping[str, Json]]


def bills(records: Sequence[AttemptRecord | None], events: Events) -> list[Bill]:
    """Return the attempts' bills, those left out whose record or events were not read.

    Args:
        records: of all attempts, in order.
        events: of the newest of them, each attempt's in the order in which they were written.
    """
    found = []
    for index, record in enumerate(records):
        its = [event for event in events if record is not None and event.get("attempt") == record.attempt]
        if record is None or not its:
            continue
        began = datetime.fromisoformat(record.claimed_utc)
        ended = max((at for event in its if (at := _at(event)) is not None), default=began)
        seconds = max((ended - began).total_seconds(), 0.0)
        after = next((later for later in records[index + 1 :] if later is not None), None)
        lost_s = 0.0 if after is None else _lost_s(its, began, ended, record, after)
        paid = record.capacity
        found.append(
            Bill(
                pool=paid.pool if paid else "unknown",
                seconds=seconds,
                usd_per_hour=paid.usd_per_hour if paid else None,
                on_demand_usd_per_hour=paid.on_demand_usd_per_hour if paid else None,
                lost_s=None if lost_s is None else min(max(lost_s, 0.0), seconds),
                saving_s=_saving_s(its),
            )
        )
    return found


def cost(records: Sequence[AttemptRecord | None], events: Events) -> dict[str, Json]:
    """What the run has cost, for `--json`: the sums, the attempts that they are of, and those left out."""
    billed = bills(records, events)
    total = savings(billed)
    return {
        **{name: getattr(total, name) for name in total.__dataclass_fields__},
        "attempts_counted": len(billed),
        "attempts_not_read": len(records) - len(billed),
        "attempts_with_unknown_loss": sum(bill.lost_s is None for bill in billed),
    }


def cost_said(found: Mapping[str, Any]) -> str | None:
    """The same in words; None where no price is known, so that there is nothing to say."""
    if found["paid_usd"] is None:
        return None
    said = f"{found['paid_usd']:.2f} USD paid for {duration(found['priced_s'])} of machines"
    if found["priced_s"] < found["seconds"]:
        said += f" (no price is known of {duration(found['seconds'] - found['priced_s'])} more)"
    if found["saved_usd"] is not None:
        what = "saved" if found["saved_usd"] >= 0 else "lost"
        said += f"; on demand the same work costs {found['on_demand_usd']:.2f} USD, {abs(found['saved_usd']):.2f} USD {what}"
        said += f" ({found['saved_share']:.0%})"
    return f"{said}; {found['lost_usd']:.2f} USD went into work done again, {found['saving_usd']:.2f} USD into saves"


def _lost_s(
    its: Events, began: datetime, ended: datetime, record: AttemptRecord, after: AttemptRecord
) -> float | None:
    """From the safe point that the next attempt resumed from to the end of this one; None where that save was not read."""
    resumed = parse_checkpoint_name(after.resumed_from or "")
    if after.resumed_from == record.resumed_from:
        return (ended - began).total_seconds()
    if resumed is None or resumed.attempt != record.attempt:
        return None
    end = next((event for event in reversed(its) if event.get("kind") == "end"), None)
    if end is not None and end.get("step") == resumed.step:
        return 0.0
    for event in its:
        if event.get("kind") == "save" and event.get("checkpoint") == after.resumed_from:
            at, took_s = _at(event), event.get("seconds")
            if at is not None and isinstance(took_s, int | float):
                return (ended - (at - timedelta(seconds=took_s))).total_seconds()
    return None


def _saving_s(its: Events) -> float | None:
    """As the last record has it that says for how long training stood still for saves so far."""
    for event in reversed(its):
        paused_s = event.get("paused_s")
        if isinstance(paused_s, int | float):
            return float(paused_s)
    return None


def _at(event: Mapping[str, Json]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(event.get("utc")))
    except ValueError:
        return None
