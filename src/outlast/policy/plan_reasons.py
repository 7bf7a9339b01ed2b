"""Why spot pays for a job, or does not (pure). A reason is an input that alone decides: with another value of it, spot would pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from outlast.policy.plan import TOO_CLOSE, Counted, count, pays_below_usd
from outlast.policy.plan_records import Ask, Job, Prices, Risk

LONG_SHARE = 0.7
"""Of the deadline: a job of so much work still has room."""
ROOMY = 3.0
"""A deadline of so many times the work leaves all the room that helps."""
RARE = 10.0
"""An interruption that comes so many times less often."""


@dataclass(frozen=True)
class Reason:
    """Why.

    Attributes:
        about: which input.
        text: for people, with its numbers.
    """

    about: str
    text: str


def reasons(job: Job, prices: Prices, risk: Risk, counted: Counted, ask: Ask) -> list[Reason]:
    """Return why the verdict is what it is, at least one."""
    if counted.verdict == "worth it":
        return [_worth(counted)]
    again = _Again(job, prices, risk, ask)
    return list(_deciding(job, prices, risk, counted, again)) or [_nothing(job, counted)]


@dataclass(frozen=True)
class _Again:
    """Counts anew with another job or risk: whether spot would pay."""

    job: Job
    prices: Prices
    risk: Risk
    ask: Ask

    def pays(self, *, risk: Risk | None = None, **changes: Any) -> bool:
        found = count(replace(self.job, **changes), self.prices, risk or self.risk, self.ask)
        return found.verdict == "worth it"


def _deciding(job: Job, prices: Prices, risk: Risk, counted: Counted, again: _Again) -> Iterator[Reason]:
    before_usd = counted.net_usd + counted.engineering_usd
    if counted.engineering_usd and before_usd >= TOO_CLOSE * counted.on_demand_usd:
        yield Reason(
            "effort",
            f"saving smaller than the effort: a run saves {before_usd:.2f} USD, its share of the effort is {job.engineering_usd:.2f} / "
            f"{job.runs} = {counted.engineering_usd:.2f} USD; that is earned back after {math.ceil(job.engineering_usd / before_usd)} runs",
        )
    best_usd = counted.on_demand_usd * (1 - prices.spot.usd / prices.on_demand.usd) - counted.others_usd
    could_pay = best_usd >= TOO_CLOSE * counted.on_demand_usd
    checks: tuple[tuple[bool, Callable[[], bool], Reason], ...] = (
        (
            job.work_s < LONG_SHARE * job.deadline_s,
            lambda: again.pays(work_s=LONG_SHARE * job.deadline_s),
            Reason(
                "work",
                f"job too short: {_hours(job.work_s)} of work; with {_hours(LONG_SHARE * job.deadline_s)} it would pay",
            ),
        ),
        (
            could_pay and job.deadline_s < ROOMY * job.work_s,
            lambda: again.pays(deadline_s=ROOMY * job.work_s + job.start_s),
            Reason(
                "deadline",
                f"deadline leaves no room: {_hours(job.deadline_s - job.work_s)} more than the work, so that on-demand does "
                f"{counted.forecast.on_demand_h / max(counted.forecast.on_demand_h + counted.forecast.spot_h, 1e-9):.0%} of it",
            ),
        ),
        (
            could_pay and job.nodes > 1 and not job.is_elastic and not risk.is_of_all,
            lambda: again.pays(is_elastic=True),
            Reason(
                "elastic",
                f"tightly synchronised multi-node without elasticity: any of {job.nodes} machines stops all, {counted.per_hour:.2g} times "
                "an hour; a job that goes on with those that are left would pay",
            ),
        ),
        (
            could_pay and not counted.fit.fits and risk.recall > 0,
            lambda: again.pays(notice_s=counted.fit.needs_s * 2 + 60),
            Reason(
                "notice",
                f"save does not fit and hazard is high: {counted.fit.why}; an interruption comes {_often(counted)}",
            ),
        ),
        (
            could_pay and risk.per_hour > 0,
            lambda: again.pays(risk=replace(risk, per_hour=risk.per_hour / RARE)),
            Reason("hazard", _interrupted(counted)),
        ),
    )
    for applies, would_pay, reason in checks:
        if applies and would_pay():
            yield reason


def _interrupted(counted: Counted) -> str:
    cost_s = counted.question.overhead_s
    said = f"an interruption comes {_often(counted)} and costs {cost_s / 60:.0f} min"
    if counted.fit.fits:
        return f"hazard is high: {said}"
    return f"save does not fit and hazard is high: {counted.fit.why}; {said}"


def _often(counted: Counted) -> str:
    return f"every {_hours(3600 / counted.per_hour)} on spot" if counted.per_hour else "never"


def _worth(counted: Counted) -> Reason:
    spot, own = counted.question.usd_per_hour
    return Reason(
        "discount",
        f"spot is {1 - spot / own:.0%} cheaper and does {counted.forecast.spot_h:.0f} of "
        f"{counted.forecast.spot_h + counted.forecast.on_demand_h:.0f} h; interruptions, saves and effort do not use that up",
    )


def _nothing(job: Job, counted: Counted) -> Reason:
    price = pays_below_usd(job, counted, TOO_CLOSE)
    if price is None:
        return Reason(
            "price",
            "no single change makes it pay: even spot for nothing would save too little beside what else it costs",
        )
    spot, own = counted.question.usd_per_hour
    return Reason(
        "price",
        f"spot is only {1 - spot / own:.0%} cheaper: below {price:.2f} USD per machine and hour it would pay",
    )


def _hours(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.2g} s"
