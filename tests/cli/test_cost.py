"""What `outlast status` says that a run has cost, from a ledger that the test wrote and summed up by hand."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import msgspec
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


def shifted(at_utc: object, by_s: float) -> str:
    return (datetime.fromisoformat(str(at_utc)) + timedelta(seconds=by_s)).isoformat(timespec="milliseconds")


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
    sign(2, 4060.0, "resume", step=100),
    save(2, 7000.0, 200, took_s=10.0, paused_s=23.0),
    save(2, 11_200.0, 300, took_s=10.0, paused_s=24.0),
    sign(2, 11_200.0, "end", step=300, outcome="preempted"),
    sign(3, 12_060.0, "resume", step=300),
    sign(3, 13_800.0),  # gone without a save: the next one resumes from where it did
    sign(4, 14_120.0, "resume", step=300),
    save(4, 17_000.0, 400, took_s=10.0, paused_s=16.0),
    save(4, 19_350.0, 500, took_s=10.0, paused_s=18.0),
    sign(4, 19_400.0, "end", step=505, outcome="killed"),
    sign(5, 20_300.0, "resume", step=500),
    save(5, 29_000.0, 900, took_s=10.0, paused_s=30.0),
    sign(5, 29_000.0, "end", step=900, outcome="finished"),
]
"""5 attempts in 3 pools: of 1 h, 2 h, 30 min, 90 min and 150 min; 5 min, none, all 30 min and 60 s of them were done again. From the second on
they started for 60, 60, 120 and 300 s. A save stopped training for 1 s in attempt 2 and for 2 s in attempt 4; 1.5 s is the median."""


def test_a_ledger_of_five_attempts_in_three_pools_is_exact_to_the_cent() -> None:
    found = cost(RECORDS, EVENTS)
    assert round(found["paid_usd"], 2) == 22.18  # 3.06 + 6.12 + 1.80 + 4.20 + 7.00
    # 55 min 9.35 + 119 min 20.23 + nothing + 87 min 13.05 + 145 min 21.75
    assert round(found["on_demand_usd"], 2) == 64.38
    assert round(found["saved_usd"], 2) == 42.20
    assert (found["lost_s"], round(found["lost_usd"], 2)) == (2160.0, 2.10)  # 0.255 + 0 + 1.80 + 0.046667
    assert (found["saving_s"], round(found["saving_usd"], 2)) == (84.0, 0.07)  # 0.0306 + 0.014 + 0.0233 + ...
    # 3289.5 s and 7177 s of 3.06 = 2.796075 + 6.100450, 61.5 s of 3.60 = 0.0615, 5324 s and 8971.5 s of 2.80 = 4.140889 + 6.977833
    assert round(found["optimum_usd"], 2) == 20.08
    assert {name: value for name, value in found.items() if name.startswith("attempts")} == {
        "attempts_counted": 5,
        "attempts_not_counted": 0,
        "attempts_with_unknown_loss": 0,
        "attempts_with_unknown_saves": 0,
    }
    assert cost_said(found) == (
        "22.18 USD paid for 7.5 h of machines; on demand the same work costs 64.38 USD, 42.20 USD saved (66%); 2.10 USD went into work "
        "done again, 0.07 USD into saves; over the hindsight optimum: 10.5%"
    )


def test_a_loss_that_was_not_read_is_unknown_and_what_is_said_says_so() -> None:
    """The save that the next attempt resumed from lies in a part that was not read."""
    found = cost(RECORDS, EVENTS[1:])
    assert (found["attempts_with_unknown_loss"], found["attempts_with_unknown_saves"]) == (1, 1)
    assert bills(RECORDS, EVENTS[1:])[0].lost_s is None
    assert round(found["on_demand_usd"], 2) == 55.03  # without the first attempt's 9.35
    assert cost_said(found) == (
        "22.18 USD paid for 7.5 h of machines; on demand the work of 6.5 h of it costs 55.03 USD, 35.91 USD saved (65%); at least "
        "1.85 USD went into work done again, at least 0.06 USD into saves; over the hindsight optimum: 10.6% (of 6.5 h, the rest is not known)"
    )


def test_an_attempt_whose_events_are_gone_is_said_not_to_be_counted() -> None:
    found = cost(RECORDS, [event for event in EVENTS if event["attempt"] != 5])
    assert (found["attempts_counted"], found["attempts_not_counted"]) == (4, 1)
    assert round(found["paid_usd"], 2) == 15.18
    said = "15.18 USD paid for 5.0 h of machines, 1 of 5 attempts not counted, of which too little was read;"
    assert cost_said(found).startswith(said)


def test_clocks_of_two_machines_that_differ_change_nothing() -> None:
    """The second machine's is an hour behind: it claimed before the first one's last sign."""
    its = [{**event, "utc": shifted(event["utc"], -3600.0)} for event in EVENTS if event["attempt"] == 2]
    others = [event for event in EVENTS if event["attempt"] != 2]
    records = [*RECORDS]
    elsewhere = msgspec.structs.replace(HERE, machine="another/1")
    records[1] = msgspec.structs.replace(RECORDS[1], claimed_utc=utc(400.0), agent=elsewhere)
    assert bills(records, [*others, *its]) == bills(RECORDS, EVENTS)


@pytest.mark.parametrize("beats", [(-3000.0, -2000.0), (1000.0, 2000.0, 500.0, 1500.0)])
def test_a_clock_that_was_set_back_leaves_no_time_that_could_be_billed(beats: tuple[float, ...]) -> None:
    """To before the claim, or to before an earlier sign of life: not counted, rather than as free."""
    found = cost([attempt(1, 0.0, SPOT)], [sign(1, at_s) for at_s in beats])
    assert (found["attempts_counted"], found["attempts_not_counted"], found["paid_usd"]) == (0, 1, None)


def test_a_machine_on_which_two_attempts_overlap_is_paid_for_once() -> None:
    """The first one's agent still finishes while the second trains there; another machine would be paid for beside it."""
    records = [attempt(1, 0.0, SPOT), attempt(2, 3600.0, SPOT, resumed=100)]
    events = [save(1, 3500.0, 100, took_s=10.0, paused_s=1.0), sign(1, 4600.0), sign(2, 7200.0)]
    assert [bill.seconds for bill in bills(records, events)] == [3600.0, 3600.0]
    assert bills(records, events)[0].lost_s == 110.0
    records[1] = msgspec.structs.replace(records[1], agent=msgspec.structs.replace(HERE, machine="another/1"))
    assert [bill.seconds for bill in bills(records, events)] == [4600.0, 3600.0]


def test_the_machines_of_an_attempt_are_those_that_gave_a_sign_of_life() -> None:
    """Two agents on one machine, in two containers, are one machine; the price is that of one."""
    record = msgspec.structs.replace(
        attempt(1, 0.0, SPOT), world_size=3, agent=msgspec.structs.replace(HERE, machine="boot-1/1")
    )
    agents = [
        msgspec.to_builtins(msgspec.structs.replace(HERE, machine=machine))
        for machine in ("boot-1/1", "boot-1/2", "boot-2/1")
    ]
    found = cost([record], [sign(1, 3600.0, agent=agent) for agent in agents])
    assert (found["paid_usd"], found["seconds"]) == (pytest.approx(6.12), 7200.0)


def test_what_the_newest_attempt_has_not_saved_is_lost_once_it_has_ended() -> None:
    """While it lives nothing is; had it ended before its first save, nobody knows what it had done."""
    records, events = [attempt(1, 0.0, SPOT)], [save(1, 3310.0, 100, took_s=10.0, paused_s=12.0)]
    assert bills(records, [*events, sign(1, 3600.0)])[0].lost_s == 0.0
    ended = sign(1, 3600.0, "end", step=105, outcome="killed")
    assert bills(records, [*events, ended])[0].lost_s == 300.0
    assert bills(records, [ended])[0].lost_s is None


def test_a_run_whose_work_was_all_lost_is_shown_as_well() -> None:
    """On demand, nothing would have cost nothing: there is no share to say."""
    records = [attempt(1, 0.0, SPOT), attempt(2, 4000.0, None)]
    found = cost(records, [sign(1, 3600.0)])
    assert (found["on_demand_usd"], found["saved_share"]) == (0.0, None)
    assert "costs 0.00 USD, 3.06 USD lost; 3.06 USD went" in cost_said(found)


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
