"""What a run's ledger says that a plan needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from outlast.agent.precedent import saves_in
from outlast.checkpoint import catalog
from outlast.cli._place import open_run
from outlast.cli._recent import recent_events
from outlast.cli._show import age_s
from outlast.policy.plan_records import Price

if TYPE_CHECKING:
    from outlast.checkpoint.manifest import AttemptRecord

SAVES_READ = 3
"""The slowest of so many last saves is what the next one is reckoned by, as an agent does."""
PRIOR = "zones that were measured, none of them yours"


@dataclass(frozen=True)
class Measured:
    """What is known of a run; None where its ledger does not say."""

    state_bytes: int | None = None
    whole_bytes: int | None = None
    bytes_per_s: float | None = None
    pause_s: float | None = None
    restart_s: float | None = None
    per_hour: float | None = None
    per_hour_source: str = PRIOR
    recall: float | None = None
    spot: Price | None = None
    on_demand: Price | None = None


def measured(run: str) -> Measured:
    """Read the ledger of a run's newest attempts.

    Raises:
        ConfigError: no run is there.
        StoreError: the store cannot be read.
    """
    store, _ = open_run(run)
    numbers = catalog.attempts(store)
    records = [catalog.read_attempt(store, number) for number in numbers[-SAVES_READ:]]
    events = recent_events(store, numbers, (), lambda _: None)
    took_s, wrote = max(saves_in(events)[-SAVES_READ:], default=(None, None))
    tuned = _last(events, "interval")
    seen = tuned.get("interruptions") if tuned else None
    spot, on_demand = _prices([record for record in records if record is not None])
    return Measured(
        state_bytes=wrote,
        whole_bytes=_whole(events),
        bytes_per_s=wrote / took_s if wrote and took_s else None,
        pause_s=_number(tuned, "pause_s"),
        restart_s=_restart_s([record for record in records if record is not None], events),
        per_hour=3600 / tuned["mean_s"] if seen and _number(tuned, "mean_s") else None,
        per_hour_source=f"the run's ledger: {seen} interruptions in pool {tuned.get('pool')}"
        if seen
        else PRIOR,
        recall=_number(tuned, "recall", or_none_at_all=True) if seen else None,
        spot=spot,
        on_demand=on_demand,
    )


def _whole(events: Sequence[Mapping[str, Any]]) -> int | None:
    """What the newest checkpoint holds, what it refers to included."""
    found = next((event.get("bytes") for event in reversed(events) if event.get("kind") == "save"), None)
    return found if isinstance(found, int) and found > 0 else None


def _last(events: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    return next((event for event in reversed(events) if event.get("kind") == kind and "pause_s" in event), {})


def _number(event: Mapping[str, Any], name: str, *, or_none_at_all: bool = False) -> float | None:
    found = event.get(name)
    if not isinstance(found, int | float) or found < 0 or (found == 0 and not or_none_at_all):
        return None
    return float(found)


def _restart_s(records: Sequence[AttemptRecord], events: Sequence[Mapping[str, Any]]) -> float | None:
    """From the claim to the resume, the longest of the newest attempts."""
    found = []
    for record in records:
        for event in events:
            if event.get("kind") == "resume" and event.get("attempt") == record.attempt:
                took = datetime.fromisoformat(str(event["utc"])) - datetime.fromisoformat(record.claimed_utc)
                found.append(max(took.total_seconds(), 0.0))
    return max(found, default=None)


def _prices(records: Sequence[AttemptRecord]) -> tuple[Price | None, Price | None]:
    """What the newest attempt that knows it was told of its machine."""
    paid: Price | None = None
    own: Price | None = None
    for record in records:
        said = record.capacity
        if said is None:
            continue
        source, age = f"the run's ledger, from {said.usd_from}", age_s(record.claimed_utc)
        if said.usd_per_hour is not None:
            paid = Price(said.usd_per_hour, source, age)
        if said.on_demand_usd_per_hour is not None:
            own = Price(said.on_demand_usd_per_hour, source, age)
    return paid, own
