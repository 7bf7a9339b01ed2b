"""Whether spot pays for a job, and what it risks (pure): every term beside its formula, a verdict beside its reasons.

What machines cost is not a formula: how much of the work on-demand has to do depends on deadline and luck. A replay of our policy says it, asked
through `Ask`. All else is counted here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from outlast.policy.emergency import Fit, fits
from outlast.policy.hazard import Constant
from outlast.policy.interval import Costs, Interval, interval, overhead
from outlast.policy.plan_records import Ask, Forecast, Job, Prices, Question, Risk

Verdict: TypeAlias = Literal["worth it", "not worth it", "too close to call"]

TOO_CLOSE = 0.05
"""Of what on-demand costs: prices, hazards and luck move a result by as much."""
JOINT_SHARE = 0.64
"""Interruptions that take all machines of a job, of those that take any: 270 of 425 in the traces of 4 and 16 nodes of the SkyNomad artifact (NSDI '27)."""
WITHIN_3_MIN = 0.92
"""Of the interruptions that take all, those in which the last machine goes within 3 minutes of the first."""
KEPT = 4
"""Checkpoints that lie on the store on average: three kept, one being written or deleted."""
PIECE_BYTES = 8 << 20
"""An upload is a request for each of these, and a few small ones."""
SMALL_PUTS = 4
ROWS: tuple[tuple[str, float], ...] = (("minutes", 300.0), ("tens of minutes", 1800.0), ("hours", 10_800.0))
"""The intervals that people choose between."""
_MONTH_H = 730.0
_HOUR_S = 3600.0


@dataclass(frozen=True)
class Row:
    """An interval and what it means for this job.

    Attributes:
        name: the interval in words.
        seconds: of training between two saves; an upload that takes longer makes it longer.
        at_risk_s: the most work that an interruption without a notice costs.
        lost_s: the work that an interruption costs on average, those with a notice counted.
        overhead: time lost to saves and to work done again, per second of training on spot.
        saving: the part of that which saves are.
    """

    name: str
    seconds: float
    at_risk_s: float
    lost_s: float
    overhead: float
    saving: float


@dataclass(frozen=True)
class Joint:
    """Several machines of one zone and type.

    Attributes:
        all_share: interruptions of the job in which all of them are lost within 3 minutes of each other.
        all_in_run: how likely that happens during the run.
    """

    all_share: float
    all_in_run: float


@dataclass(frozen=True)
class Counted:
    """What comes of a job on spot, per run.

    Attributes:
        interval: how often to save.
        fit: whether the emergency save fits the notice.
        recall: share of interruptions that cost no work.
        per_hour: interruptions of the job while it is on spot.
        interruptions: expected.
        lost_s: work that each costs on average.
        question, forecast: what was replayed, and what came of it.
        on_demand_usd: what on-demand alone costs.
        egress_usd, storage_usd, requests_usd, engineering_usd: beside the machines.
    """

    interval: Interval
    fit: Fit
    recall: float
    per_hour: float
    interruptions: float
    lost_s: float
    question: Question
    forecast: Forecast
    on_demand_usd: float
    egress_usd: float
    storage_usd: float
    requests_usd: float
    engineering_usd: float

    @property
    def others_usd(self) -> float:
        """All that is no machine."""
        return self.egress_usd + self.storage_usd + self.requests_usd + self.engineering_usd

    @property
    def net_usd(self) -> float:
        """What is expected to be saved."""
        return self.on_demand_usd - self.forecast.mean_usd - self.others_usd

    @property
    def verdict(self) -> Verdict:
        """By what is expected."""
        if abs(self.net_usd) < TOO_CLOSE * self.on_demand_usd:
            return "too close to call"
        return "worth it" if self.net_usd > 0 else "not worth it"

    def net_at(self, share: float) -> float:
        """What is saved at least in all but `share` of the cases, USD."""
        return self.on_demand_usd - _quantile(self.forecast, 1 - share) - self.others_usd


def count(job: Job, prices: Prices, risk: Risk, ask: Ask) -> Counted:
    """Count what comes of a job on spot."""
    fit = fits(job.state_bytes, job.bytes_per_s, job.notice_s)
    recall = risk.recall if fit.fits else 0.0
    per_hour = job_per_hour(job, risk)
    costs = Costs(job.pause_s, job.upload_s, 0.0, recall)
    found = interval(costs, Constant(per_hour / _HOUR_S), job.max_lost_s)
    lost_s = _lost_s(found.seconds, costs)
    saves = job.work_s / found.seconds
    reforms_s = _reforms_per_hour(job, risk) * job.work_s / _HOUR_S * job.restart_s
    machines = (prices.spot.usd * job.nodes, prices.on_demand.usd * job.nodes)
    question = Question(
        job.work_s + saves * job.pause_s + reforms_s, job.deadline_s, job.start_s + lost_s, machines, per_hour
    )
    forecast = ask(question) if question.work_s + question.overhead_s <= job.deadline_s else _never(question)
    gb = job.whole_gb
    puts = saves * (math.ceil(job.state_bytes / PIECE_BYTES) + SMALL_PUTS)
    return Counted(
        interval=found,
        fit=fit,
        recall=recall,
        per_hour=per_hour,
        interruptions=per_hour * forecast.spot_h,
        lost_s=lost_s,
        question=question,
        forecast=forecast,
        on_demand_usd=(job.work_s + job.start_s) / _HOUR_S * machines[1],
        egress_usd=(forecast.starts - 1) * gb * prices.egress_per_gb.usd,
        storage_usd=KEPT * gb * forecast.finish_h / _MONTH_H * prices.storage_per_gb_month.usd,
        requests_usd=puts / 1000 * prices.per_1000_requests.usd,
        engineering_usd=job.engineering_usd / job.runs,
    )


def job_per_hour(job: Job, risk: Risk) -> float:
    """Interruptions of the whole job: one machine is enough for a job that is not elastic, all have to go for one that is."""
    if risk.is_of_all or job.nodes == 1:
        return risk.per_hour
    alone = 0 if job.is_elastic else job.nodes * (1 - JOINT_SHARE)
    return risk.per_hour * (JOINT_SHARE + alone)


def rows(job: Job, counted: Counted) -> list[Row]:
    """The intervals that people choose between, and the one that is recommended."""
    asked: Sequence[tuple[str, float]] = (*ROWS, ("recommended", counted.interval.seconds))
    return [row(job, counted, name, seconds) for name, seconds in asked]


def row(job: Job, counted: Counted, name: str, wanted_s: float) -> Row:
    """What an interval means; where an upload takes longer, the save comes when that is over."""
    costs = Costs(job.pause_s, job.upload_s, 0.0, counted.recall)
    seconds = max(wanted_s, job.upload_s - job.pause_s)
    return Row(
        name,
        seconds,
        seconds + job.pause_s + job.upload_s,
        _lost_s(seconds, costs),
        overhead(seconds, costs, counted.per_hour / _HOUR_S),
        job.pause_s / seconds,
    )


def joint(job: Job, risk: Risk, counted: Counted) -> Joint | None:
    """How likely all machines are lost together; None for a single one."""
    if job.nodes == 1:
        return None
    together = risk.per_hour * JOINT_SHARE * WITHIN_3_MIN
    share = min(together / counted.per_hour, WITHIN_3_MIN) if counted.per_hour else 0.0
    return Joint(share, -math.expm1(-share * counted.interruptions))


def pays_below_usd(job: Job, counted: Counted, saving: float = 0.0) -> float | None:
    """The spot price, per hour of one machine, below which spot saves more than a share of on-demand; None where none is low enough.

    That spot does as much of the work at that price is taken for granted.
    """
    if not counted.forecast.spot_h:
        return None
    own_usd = counted.question.usd_per_hour[1]
    rest = counted.on_demand_usd * (1 - saving) - counted.others_usd - counted.forecast.on_demand_h * own_usd
    price = rest / counted.forecast.spot_h / job.nodes
    return price if price > 0 else None


def _lost_s(seconds: float, costs: Costs) -> float:
    """Half an interval and the upload on average: until that is over, the save before it is the last."""
    return (1 - costs.recall) * ((seconds + costs.pause_s) / 2 + costs.upload_s)


def _reforms_per_hour(job: Job, risk: Risk) -> float:
    """How often an elastic job loses one machine and goes on without it."""
    if not job.is_elastic or job.nodes == 1 or risk.is_of_all:
        return 0.0
    return risk.per_hour * (1 - JOINT_SHARE) * job.nodes


def _never(question: Question) -> Forecast:
    """On-demand from the beginning: there is no time for one interruption."""
    whole_h = (question.work_s + question.overhead_s) / _HOUR_S
    usd = np.array([whole_h * question.usd_per_hour[1]])
    return Forecast(usd, np.ones(1), 0.0, whole_h, 1.0, whole_h, "no replay: no time for one interruption")


def _quantile(forecast: Forecast, share: float) -> float:
    order = np.argsort(forecast.machines_usd)
    passed = np.cumsum(forecast.weights[order])
    at = min(int(np.searchsorted(passed, share)), len(order) - 1)
    return float(forecast.machines_usd[order][at])
