"""What `outlast status` says that a run has cost, from a ledger that the test wrote and summed up by hand."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from launch import Lab
from outlast._process import process_id
from outlast._types import Capacity
from outlast.checkpoint.manifest import AttemptRecord
from outlast.cli._bills import bills, cost, cost_said
from saving import RUN_ID, id_of

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
HERE = process_id(os.getpid())
SPOT = Capacity(pool="aws-1a", usd_per_hour=3.06, usd_from="outlast run", on_demand_usd_per_hour=10.20)
OTHER = Capacity(pool="aws-1b", usd_per_hour=3.60, usd_from="outlast run", on_demand_usd_per_hour=10.20)
THIRD = Capacity(pool="gcp-b", usd_per_hour=2.80, usd_from="environment", on_demand_usd_per_hour=9.00)


def utc(after_s: float) -> str:
    return (BEGAN + timedelta(seconds=after_s)).isoformat(timespec="milliseconds")


def attempt(
    number: int, at_s: float, capacity: Capacity | None, resumed: int | None = None, of: int | None = None
) -> AttemptRecord:
    """An attempt that began at a time, from the save of step `resumed` of attempt `of`."""
    return AttemptRecord(
        format=1, run_id=RUN_ID, attempt=number, nonce="aaaa", claimed_utc=utc(at_s), world_size=1, global_batch=8, launch_id="l",
        job_id=None, agent=HERE, trainer=HERE, settings={}, capacity=capacity,
        resumed_from=None if resumed is None else id_of(resumed, attempt=of or number - 1).name,
    )  # fmt: skip


def save(number: int, at_s: float, step: int, *, took_s: float, paused_s: float) -> dict[str, object]:
    name = id_of(step, attempt=number).name
    return {
        "kind": "save",
        "attempt": number,
        "utc": utc(at_s),
        "step": step,
        "checkpoint": name,
        "seconds": took_s,
        "paused_s": paused_s,
    }


def sign(number: int, at_s: float, kind: str = "alive", step: int = 0, **fields: object) -> dict[str, object]:
    return {"kind": kind, "attempt": number, "utc": utc(at_s), "step": step, **fields}


RECORDS = [
    attempt(1, 0.0, SPOT),
    attempt(2, 4000.0, SPOT, resumed=100),
    attempt(3, 12_000.0, OTHER, resumed=300),
    attempt(4, 14_000.0, THIRD, resumed=300, of=2),
    attempt(5, 20_000.0, THIRD, resumed=500),
]
EVENTS = [
    save(1, 3310.0, 100, took_s=10.0, paused_s=12.0),  # of a safe point at 3300 s
    sign(1, 3600.0),
    save(2, 11_200.0, 300, took_s=10.0, paused_s=24.0),
    sign(2, 11_200.0, "end", step=300, outcome="preempted"),
    sign(3, 13_800.0),  # gone without a save: the next one resumes from where it did
    save(4, 19_350.0, 500, took_s=10.0, paused_s=18.0),
    sign(4, 19_400.0, "end", step=505, outcome="killed"),
    save(5, 29_000.0, 900, took_s=10.0, paused_s=30.0),
    sign(5, 29_000.0, "end", step=900, outcome="finished"),
]
"""5 attempts in 3 pools: of 1 h, 2 h, 30 min, 90 min and 150 min; 5 min, none, all 30 min and 60 s of them were done again."""


def test_a_ledger_of_five_attempts_in_three_pools_is_exact_to_the_cent() -> None:
    found = cost(RECORDS, EVENTS)
    assert round(found["paid_usd"], 2) == 22.18  # 3.06 + 6.12 + 1.80 + 4.20 + 7.00
    assert round(found["on_demand_usd"], 2) == 65.60  # 9.35 + 20.40 + 0 + 13.35 + 22.50
    assert round(found["saved_usd"], 2) == 43.42
    assert (found["lost_s"], round(found["lost_usd"], 2)) == (2160.0, 2.10)  # 0.255 + 0 + 1.80 + 0.046667
    assert (found["saving_s"], round(found["saving_usd"], 2)) == (84.0, 0.07)  # 0.0306 + 0.014 + 0.0233 + ...
    assert (found["attempts_counted"], found["attempts_not_read"], found["attempts_with_unknown_loss"]) == (
        5,
        0,
        0,
    )
    assert cost_said(found) == (
        "22.18 USD paid for 7.5 h of machines; on demand the same work costs 65.60 USD, 43.42 USD saved (66%); 2.10 USD went into work "
        "done again, 0.07 USD into saves"
    )


def test_a_loss_that_was_not_read_is_counted_as_unknown() -> None:
    """The save that the next attempt resumed from lies in a part that was not read."""
    found = cost(RECORDS, [event for event in EVENTS if event["attempt"] != 1 or event["kind"] != "save"])
    assert found["attempts_with_unknown_loss"] == 1
    assert bills(RECORDS, EVENTS[1:])[0].lost_s is None


def test_an_attempt_whose_events_are_gone_is_counted_as_not_read() -> None:
    found = cost(RECORDS, [event for event in EVENTS if event["attempt"] != 5])
    assert (found["attempts_counted"], found["attempts_not_read"]) == (4, 1)
    assert round(found["paid_usd"], 2) == 15.18


def test_without_prices_there_is_nothing_to_say() -> None:
    """Not that it was free."""
    records = [attempt(1, 0.0, Capacity(pool="unknown")), attempt(2, 4000.0, None, resumed=100)]
    found = cost(records, EVENTS)
    assert found["paid_usd"] is found["on_demand_usd"] is None
    assert cost_said(found) is None


def test_the_price_given_to_outlast_run_is_in_the_record_and_in_what_status_says(lab: Lab) -> None:
    """Of a real run; a price that is none is refused before anything starts."""
    started = lab.supervised("--usd-per-hour", "3600", "--on-demand-usd-per-hour", "7200", OUTLAST_POOL="a")
    assert started.wait() == 0
    found = json.loads(lab.outlast("status", "run", "--json").stdout)
    assert found["attempts"][0]["capacity"] == {
        "pool": "a", "machine_type": None, "usd_per_hour": 3600.0, "usd_from": "outlast run", "on_demand_usd_per_hour": 7200.0,
    }  # fmt: skip
    assert found["cost"]["paid_usd"] == pytest.approx(found["cost"]["seconds"])  # 1 USD a second
    assert found["cost"]["on_demand_usd"] == pytest.approx(2 * found["cost"]["paid_usd"])
    assert "USD paid for" in " ".join(lab.outlast("status", "run").stdout.split())
    refused = lab.supervised("--usd-per-hour", "0")
    assert refused.wait() == 78
    assert "expected USD per hour above 0" in refused.text
