"""Every term of a plan with its formula and its numbers (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from outlast.policy.plan import JOINT_SHARE, KEPT, Counted
from outlast.policy.plan_records import Job, Prices, Risk


@dataclass(frozen=True)
class Term:
    """One line of the calculation.

    Attributes:
        name: what it is.
        value: in `unit`.
        unit: USD, h, %, or 1/h.
        formula: in words.
        numbers: the same with the numbers in it.
    """

    name: str
    value: float
    unit: str
    formula: str
    numbers: str


def terms(job: Job, prices: Prices, risk: Risk, counted: Counted) -> list[Term]:
    """All terms, in the order in which they are reckoned; those in USD from `machines` on are what spot costs."""
    n, spot, own = job.nodes, prices.spot.usd, prices.on_demand.usd
    work_h, start_h, gb = job.work_s / 3600, job.start_s / 3600, job.whole_gb
    f, every_s = counted.forecast, counted.interval.seconds
    saves, restarts = job.work_s / every_s, f.starts - 1
    seconds = (every_s + job.pause_s) / 2 + job.upload_s
    return [
        Term(
            "on-demand alone",
            counted.on_demand_usd,
            "USD",
            "(work + start) x nodes x on-demand",
            f"({work_h:.2f} h + {start_h:.2f} h) x {n} x {own:g}",
        ),
        Term("discount", 100 * (1 - spot / own), "%", "1 - spot / on-demand", f"1 - {spot:g} / {own:g}"),
        Term("hazard of the job", counted.per_hour, "1/h", *_hazard(job, risk)),
        Term(
            "interruptions",
            counted.interruptions,
            "",
            "hazard x hours on spot",
            f"{counted.per_hour:.4f}/h x {f.spot_h:.2f} h",
        ),
        Term(
            "lost work",
            counted.interruptions * counted.lost_s / 3600,
            "h",
            "interruptions x (1 - recall) x ((interval + pause) / 2 + upload)",
            f"{counted.interruptions:.2f} x (1 - {counted.recall:g}) x {seconds:.0f} s",
        ),
        Term(
            "save overhead",
            saves * job.pause_s / 3600,
            "h",
            "work / interval x pause",
            f"{work_h:.2f} h / {every_s:.0f} s x {job.pause_s:g} s",
        ),
        Term(
            "restarts",
            restarts * start_h,
            "h",
            "starts but the first, moves to on-demand counted, x (provisioning + restart)",
            f"{restarts:.2f} x {job.start_s:.0f} s",
        ),
        Term(
            "machines",
            f.mean_usd,
            "USD",
            "(hours on spot x spot + hours on demand x on-demand) x nodes",
            f"({f.spot_h:.2f} h x {spot:g} + {f.on_demand_h:.2f} h x {own:g}) x {n}",
        ),
        Term(
            "egress",
            counted.egress_usd,
            "USD",
            "restarts x state x USD per GB",
            f"{restarts:.2f} x {gb:g} GB x {prices.egress_per_gb.usd:g}",
        ),
        Term(
            "storage",
            counted.storage_usd,
            "USD",
            f"{KEPT} checkpoints x state x months x USD per GB and month",
            f"{KEPT} x {gb:g} GB x {f.finish_h / 730:.4f} x {prices.storage_per_gb_month.usd:g}",
        ),
        Term(
            "requests",
            counted.requests_usd,
            "USD",
            "saves x (state / 8 MiB + 4) / 1000 x USD per 1,000",
            f"{saves:.0f} saves x {prices.per_1000_requests.usd:g}",
        ),
        Term(
            "engineering",
            counted.engineering_usd,
            "USD",
            "effort / runs",
            f"{job.engineering_usd:g} / {job.runs}",
        ),
        Term(
            "saved",
            counted.net_usd,
            "USD",
            "on-demand alone - machines - egress - storage - requests - engineering",
            f"{counted.on_demand_usd:.2f} - {f.mean_usd:.2f} - {counted.others_usd:.2f}",
        ),
    ]


def _hazard(job: Job, risk: Risk) -> tuple[str, str]:
    if job.nodes == 1:
        return "hazard of the machine", f"{risk.per_hour:.4f}/h"
    if risk.is_of_all:
        return "all machines together, as traced", f"{risk.per_hour:.4f}/h"
    share = f"{JOINT_SHARE:g}"
    if job.is_elastic:
        return "hazard of a machine x share that takes all", f"{risk.per_hour:.4f}/h x {share}"
    return (
        "hazard of a machine x (share that takes all + nodes x share that takes one)",
        f"{risk.per_hour:.4f}/h x ({share} + {job.nodes} x (1 - {share}))",
    )
